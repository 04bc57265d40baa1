"""Comparisons with their intervals, and when they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.evals.stats import ALPHA, proportion
from ggufrope.search.evaluate import CellLoss, Evaluation
from ggufrope.search.holdout import (
    Answers,
    Comparison,
    Difference,
    Judged,
    compare,
    looks,
    paired,
    wins,
)


def evaluation(*losses: float) -> Evaluation:
    """One haystack with a cell for each depth."""
    cells = tuple(
        CellLoss(key=f"1024/{depth}/0", context_tokens=1024, loss=loss, exact=loss < 1)
        for depth, loss in enumerate(losses)
    )
    mean = math.fsum(losses) / len(losses)
    return Evaluation(loss=mean, cells=cells, stopped=False, seconds=1.0, overhead_seconds=0.0)


def judged(*by_haystack: tuple[float, float]) -> Judged:
    return Judged(evaluations=[evaluation(*losses) for losses in by_haystack], whole={})


def test_difference_is_paired_by_haystack() -> None:
    ours, theirs = judged((1, 3), (5, 7), (2, 2), (0, 0)), judged((2, 4), (7, 9), (5, 5), (2, 2))
    found = paired(ours, theirs)
    # Differences of means -1, -2, -3, -2: standard error 0.408, t(3) = 3.182.
    assert found.value == pytest.approx(-2)
    assert found.samples == 4
    assert (found.low, found.high) == pytest.approx((-3.2992, -0.7008), abs=1e-4)
    assert found.verdict == "better"


def test_two_haystacks_have_the_interval_of_one_degree_of_freedom() -> None:
    found = paired(judged((1, 1), (2, 2)), judged((2, 2), (5, 5)))
    # Differences -1 and -3: standard error 1, t(1) = 12.706.
    assert (found.low, found.high) == pytest.approx((-14.7062, 10.7062), abs=1e-4)
    assert found.verdict == "undecided"


def test_one_haystack_decides_nothing() -> None:
    found = paired(judged((1, 1)), judged((9, 9)))
    assert found.low < -100
    assert found.high > 100
    assert found.verdict == "undecided"


def test_verdicts() -> None:
    low, high = ((0, 0),) * 4, ((1, 1.2), (1, 1.1), (1, 1), (1, 1.3))
    assert paired(judged(*low), judged(*high)).verdict == "better"
    assert paired(judged(*high), judged(*low)).verdict == "worse"
    assert paired(judged(*low), judged(*low)).verdict == "undecided"


def test_whole_prompts_correct_what_the_splice_flatters() -> None:
    """Spliced needles say that ours is better; the whole prompts of the same needles deny it."""
    ours, theirs = judged(*((0.1, 0.1),) * 6), judged(*((0.5, 0.5),) * 6)
    assert paired(ours, theirs).verdict == "better"
    for haystack, wobble in ((0, 0.0), (2, 0.01), (4, 0.02)):
        ours.whole[haystack] = evaluation(0.9 + wobble, 0.9)
        theirs.whole[haystack] = evaluation(0.5, 0.5)
    found = paired(ours, theirs)
    assert found.value == pytest.approx(0.4 + 0.005)
    assert found.verdict == "worse"
    asked = [(score.name, score.asked) for score in both(ours, theirs).scores]
    assert asked == [
        ("searched", "spliced"),
        ("yarn", "spliced"),
        ("searched", "whole"),
        ("yarn", "whole"),
    ]


def both(ours: Judged, theirs: Judged) -> Comparison:
    return compare("needle", {"searched": ours, "yarn": theirs}, against="yarn")


def test_every_score_has_its_recall_and_every_changed_answer_is_counted() -> None:
    found = both(judged((0, 0), (0, 2)), judged((3, 3), (0, 3)))
    searched, yarn = found.scores
    assert searched.recall == proportion(3, 4)
    assert yarn.recall == proportion(1, 4)
    assert searched.loss.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(0.5 - 2.25)
    assert found.answers == Answers(gained=2, lost=0, p_value=0.5)


def test_less_loss_with_fewer_answers_is_not_better() -> None:
    ours, theirs = judged(*((1.1, 1.0),) * 8), judged(*((0.9, 9.0),) * 8)
    found = both(ours, theirs)
    assert found.difference.verdict == "better"
    assert found.answers == Answers(gained=0, lost=8, p_value=2 / 2**8)
    assert found.verdict == "undecided"


def test_what_one_comparison_finds_worse_does_not_win() -> None:
    low, high = ((0.0, 0.0),) * 4, ((1, 1.2), (1, 1.1), (1, 1), (1, 1.3))
    better, worse = both(judged(*low), judged(*high)), both(judged(*high), judged(*low))
    undecided = both(judged(*low), judged(*low))
    assert wins([better])
    assert wins([better, undecided])
    assert not wins([better, worse])
    assert not wins([undecided, better])
    assert not wins([worse])
    assert not wins([])


def test_a_comparison_is_read_at_halves_and_its_errors_add_up() -> None:
    assert [look.haystacks for look in looks(32)] == [4, 8, 16, 32]
    assert [look.haystacks for look in looks(5)] == [5]
    assert [look.haystacks for look in looks(2)] == [2]
    for most in range(2, 100):
        assert sum(look.error for look in looks(most)) == pytest.approx(ALPHA)
        assert looks(most)[-1].error >= ALPHA / 2


def read_until_shown(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    for look in looks(len(ours)):
        one, other = (
            judged(*((loss, loss) for loss in side[: look.haystacks])) for side in (ours, theirs)
        )
        found = paired(one, other, look.error)
        if found.verdict != "undecided":
            break
    return found


def test_read_again_and_again_it_errs_in_at_most_five_percent_of_searches() -> None:
    rng = np.random.default_rng(5)
    wrong = sum(
        read_until_shown(rng.normal(size=16).tolist(), rng.normal(size=16).tolist()).verdict
        != "undecided"
        for _ in range(2000)
    )
    assert wrong / 2000 < ALPHA + 3 * math.sqrt(ALPHA / 2000)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=2, max_size=12))
def test_exchanging_the_sides_turns_the_interval_around(losses: list[tuple[float, float]]) -> None:
    one, other = (judged(*((pair[side],) * 2 for pair in losses)) for side in (0, 1))
    found, turned = paired(one, other), paired(other, one)
    assert turned.value == pytest.approx(-found.value)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert found.low <= found.value <= found.high
