"""Estimates against values worked out by hand or by another library."""

from __future__ import annotations

import statistics
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.evals.stats import mean, percentiles, proportion, sign_test, t_quantile


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Wilson intervals as published for these counts (e.g. Newcombe, 1998, table I).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes: int, n: int, low: float, high: float) -> None:
    found = proportion(successes, n)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(n=st.integers(1, 1000), data=st.data())
def test_interval_holds_the_share_and_stays_in_range(n: int, data: st.DataObject) -> None:
    found = proportion(data.draw(st.integers(0, n)), n)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_measured_has_no_value() -> None:
    assert proportion(0, 0).value is None
    assert mean([]).value is None
    assert isnan(percentiles([], [50])[0])


def test_one_value_has_no_error() -> None:
    assert mean([2.0]).standard_error is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_mean_and_error_as_the_standard_library(values: list[float]) -> None:
    found = mean(values)
    assert found.value == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-9)
    expected = statistics.stdev(values) / len(values) ** 0.5
    assert found.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Published tables of Student's t, two-sided, 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (9, 2.262), (30, 2.042), (1000, 1.962)],
)
def test_students_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_nothing_is_different_by_one_value() -> None:
    assert t_quantile(0) == float("inf")
    assert mean([5.0]).interval is None
    assert not mean([5.0]).differs


def test_two_values_far_from_zero_are_not_yet_different_from_it() -> None:
    """By z = 1.96 they would be: (1, 3) has mean 2 and standard error 1."""
    assert not mean([1.0, 3.0]).differs
    assert mean([1.0, 1.1]).differs


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (0, 6, 0.03125), (8, 2, 0.109375)],
)
def test_the_sign_test_is_exact(lost: int, gained: int, p: float) -> None:
    assert sign_test(lost, gained) == pytest.approx(p)
