"""Comparisons with their intervals."""

from __future__ import annotations

import pytest

from ggufrope.search.evaluate import CellLoss, Evaluation
from ggufrope.search.holdout import compare, paired


def cells(*by_sample: tuple[float, float]) -> tuple[CellLoss, ...]:
    """Two depths for each sample."""
    return tuple(
        CellLoss(key=f"1024/{depth}/{sample}", loss=loss, exact=loss < 1)
        for sample, losses in enumerate(by_sample)
        for depth, loss in zip((0, 100), losses, strict=True)
    )


def evaluation(*by_sample: tuple[float, float]) -> Evaluation:
    return Evaluation(
        loss=0.0, cells=cells(*by_sample), stopped=False, seconds=1.0, overhead_seconds=0.0
    )


def test_difference_is_paired_by_sample() -> None:
    ours, theirs = cells((1, 3), (5, 7), (2, 2), (0, 0)), cells((2, 4), (7, 9), (5, 5), (2, 2))
    found = paired(ours, theirs)
    # Differences of sample means -1, -2, -3, -2: standard error 0.408, t(3) = 3.182.
    assert found.value == pytest.approx(-2)
    assert found.samples == 4
    assert (found.low, found.high) == pytest.approx((-3.2992, -0.7008), abs=1e-4)
    assert found.verdict == "better"


def test_two_samples_have_the_interval_of_one_degree_of_freedom() -> None:
    found = paired(cells((1, 1), (2, 2)), cells((2, 2), (5, 5)))
    # Differences -1 and -3: standard error 1, t(1) = 12.706.
    assert (found.low, found.high) == pytest.approx((-14.7062, 10.7062), abs=1e-4)
    assert found.verdict == "undecided"


def test_one_sample_decides_nothing() -> None:
    found = paired(cells((1, 1)), cells((9, 9)))
    assert (found.low, found.high) == (float("-inf"), float("inf"))
    assert found.verdict == "undecided"


def test_verdicts() -> None:
    low, high = ((0, 0),) * 4, ((1, 1.2), (1, 1.1), (1, 1), (1, 1.3))
    assert paired(cells(*low), cells(*high)).verdict == "better"
    assert paired(cells(*high), cells(*low)).verdict == "worse"
    assert paired(cells(*low), cells(*low)).verdict == "undecided"


def test_every_score_has_its_recall_and_interval() -> None:
    found = compare(
        "needle",
        {"searched": evaluation((0, 0), (0, 2)), "yarn": evaluation((3, 3), (0, 3))},
        against="yarn",
    )
    searched, yarn = found.scores
    assert searched.recall is not None
    assert yarn.recall is not None
    assert (searched.recall.successes, searched.recall.n) == (3, 4)
    assert (yarn.recall.successes, yarn.recall.n) == (1, 4)
    assert searched.loss.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(0.5 - 2.25)
