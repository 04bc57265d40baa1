"""The largest number that fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggufrope._bisect import largest


@given(st.integers(-5, 50), st.integers(0, 50), st.integers(-10, 110))
def test_the_largest_number_that_fits(low: int, width: int, limit: int) -> None:
    high = low + width
    calls: list[int] = []

    def fits(number: int) -> bool:
        calls.append(number)
        return number <= limit

    assert largest(fits, low, high) == max(low, min(high, limit))
    assert len(calls) <= width.bit_length()
    assert all(low < number <= high for number in calls)
