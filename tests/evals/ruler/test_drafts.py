"""The most units that fit, found in few evaluations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggufrope.evals.ruler.drafts import largest_fitting


@given(
    fixed=st.integers(0, 300),
    per_unit=st.floats(0.5, 40),
    room=st.integers(1, 200_000),
    least=st.integers(0, 50),
    most=st.none() | st.integers(50, 5000),
)
def test_of_a_line(fixed: int, per_unit: float, room: int, least: int, most: int | None) -> None:
    asked: list[int] = []

    def tokens(units: int) -> int:
        asked.append(units)
        return fixed + int(per_unit * units)

    found = largest_fitting(tokens, room, least=least, most=most)
    if tokens(least) > room:
        assert found is None
        return
    assert found is not None
    assert tokens(found) <= room
    assert found == most or tokens(found + 1) > room
    assert max(asked) <= 9 * found + 20
    assert len(asked) < 30


@given(growth=st.lists(st.integers(0, 30), min_size=1, max_size=200), room=st.integers(0, 3000))
def test_of_any_growth(growth: list[int], room: int) -> None:
    def tokens(units: int) -> int:
        return sum(growth[:units])

    found = largest_fitting(tokens, room, least=0, most=len(growth))
    assert found is not None
    assert tokens(found) <= room
    assert found == len(growth) or tokens(found + 1) > room
