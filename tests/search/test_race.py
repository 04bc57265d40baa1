"""Races: who stays, who leaves and when, on losses that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.rope.scaling import Linear
from ggufrope.search.evaluate import CellLoss, Evaluation
from ggufrope.search.race import Standing, race
from ggufrope.search.schemes import Scheme

CELLS = 20


def scheme(number: int) -> Scheme:
    return Scheme(scaling=Linear(factor=1.0 + number))


class Track:
    """Judges schemes that lose a mean of `means` with noise: the same haystack, the same losses.

    With `endless` False there are only so many haystacks.
    """

    def __init__(self, *means: float, noise: float = 0.2, endless: int = 1000) -> None:
        self.means = {scheme(number): mean for number, mean in enumerate(means)}
        self.noise = noise
        self.endless = endless
        self.asked: list[tuple[Scheme, int]] = []

    @property
    def schemes(self) -> list[Scheme]:
        return list(self.means)

    def asked_of(self, number: int) -> int:
        return sum(asked == scheme(number) for asked, _ in self.asked)

    def judge(self, which: Scheme, haystack: int, cutoff: float) -> Evaluation | None:
        if haystack >= self.endless:
            return None
        self.asked.append((which, haystack))
        shared = np.random.default_rng(haystack).normal(size=CELLS)
        own = np.random.default_rng(1000 * self.schemes.index(which) + haystack)
        losses = self.means[which] + shared + self.noise * own.normal(size=CELLS)
        loss = float(losses.mean())
        return Evaluation(
            loss=min(loss, cutoff + 1e-9) if loss > cutoff else loss,
            cells=tuple(
                CellLoss(key=f"64/{number}/0", context_tokens=64, loss=float(each))
                for number, each in enumerate(losses)
            ),
            stopped=loss > cutoff,
            seconds=1.0,
            overhead_seconds=0.0,
        )


def test_the_best_comes_first_and_has_seen_the_most() -> None:
    track = Track(0.5, 0.0, 0.9, 0.3, 0.7)
    found = race(track.schemes, track.judge, (1, 2, 4))
    assert found[0].scheme == scheme(1)
    assert found[0].haystacks == 4
    assert [each.haystacks for each in found] == sorted(
        (each.haystacks for each in found), reverse=True
    )


def test_what_is_surely_worse_leaves_after_the_first_round() -> None:
    track = Track(0.0, 5.0, 0.01, 0.02, 6.0, noise=0.5)
    race(track.schemes, track.judge, (1, 2, 4), to_beat=scheme(0))
    assert track.asked_of(1) == track.asked_of(4) == 1
    assert track.asked_of(0) == 4


def test_half_leave_where_nothing_is_sure() -> None:
    track = Track(*(0.001 * number for number in range(8)), noise=3.0)
    race(track.schemes, track.judge, (1, 2, 4, 8))
    seen = sorted(track.asked_of(number) for number in range(8))
    assert seen[:4] == [1, 1, 1, 1]
    assert seen[-1] == 8


def test_it_ends_once_the_last_rival_is_shown_to_differ() -> None:
    track = Track(1.0, 0.0)
    race(track.schemes, track.judge, (1, 2, 4, 8, 16), to_beat=scheme(0))
    assert track.asked_of(0) == track.asked_of(1) == 1


def test_it_goes_on_to_the_end_where_no_difference_shows() -> None:
    track = Track(0.0, 0.0, noise=0.0)
    race(track.schemes, track.judge, (1, 2, 4, 8), to_beat=scheme(0))
    assert track.asked_of(0) == track.asked_of(1) == 8


def test_the_one_to_beat_never_leaves_and_is_never_stopped() -> None:
    track = Track(9.0, 0.0, 0.1, 0.2, noise=0.0)
    found = race(track.schemes, track.judge, (1, 2), to_beat=scheme(0))
    anchor = next(each for each in found if each.scheme == scheme(0))
    assert not anchor.stopped
    assert anchor.loss == pytest.approx(9.0, abs=1.0)


def test_a_round_cut_short_does_not_count() -> None:
    track = Track(0.0, 0.01, 0.02, 0.03, noise=3.0)
    left = 5  # the first round asks four
    found = race(track.schemes, track.judge, (1, 2, 4), is_over=lambda: len(track.asked) >= left)
    assert len(track.asked) == left
    assert {each.haystacks for each in found} == {1}


def test_the_first_round_is_run_whatever_the_time() -> None:
    track = Track(0.0, 0.1, 0.2)
    found = race(track.schemes, track.judge, (1, 2), is_over=lambda: True)
    assert len(found) == len(track.asked) == 3


def test_it_ends_where_there_are_no_more_haystacks() -> None:
    track = Track(0.0, 0.01, noise=3.0, endless=2)
    found = race(track.schemes, track.judge, (1, 2, 4))
    assert max(each.haystacks for each in found) == 2


def test_two_are_compared_on_the_haystacks_of_both() -> None:
    def standing(number: int, *losses: float) -> Standing:
        evaluations = tuple(
            Evaluation(loss=loss, cells=(), stopped=False, seconds=0.0, overhead_seconds=0.0)
            for loss in losses
        )
        return Standing(scheme=scheme(number), evaluations=evaluations)

    assert standing(0, 1.0, 2.0, 9.0).against(standing(1, 2.0, 4.0)) == (1.5, 3.0)


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=12),
    st.booleans(),
    st.floats(0, 3),
)
def test_nobody_is_lost_and_more_haystacks_mean_a_better_place(
    means: list[float], anchored: bool, noise: float
) -> None:
    track = Track(*means, noise=noise)
    found = race(
        track.schemes, track.judge, (1, 2, 4), to_beat=track.schemes[0] if anchored else None
    )
    assert {each.scheme for each in found} == set(track.schemes)
    assert all(each.haystacks >= 1 and math.isfinite(each.loss) for each in found)
    assert found[0].haystacks == max(each.haystacks for each in found)
    if anchored:
        anchor = next(each for each in found if each.scheme == track.schemes[0])
        assert anchor.haystacks == found[0].haystacks
