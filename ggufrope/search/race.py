"""Races: candidates judged on the same haystacks, ever more of them, until few are left.

Each round of a race judges those that are left on further haystacks, then drops two kinds:

- what is surely worse than the leader: a paired t-test over the answers both gave, at the 5 % level
  (the t-race of irace, López-Ibáñez et al. 2016, after Birattari et al. 2002);
- all but the better half (successive halving, Karnin et al. 2013; Jamieson and Talwalkar 2016).

So what may win gets more samples, and what cannot win stops early: within a haystack too, once even
the best answers known to the rest of it would leave a candidate behind those that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.evals.stats import Mean, mean

if TYPE_CHECKING:
    from ggufrope.search.evaluate import CellLoss, Evaluation
    from ggufrope.search.schemes import Scheme

Judge: TypeAlias = "Callable[[Scheme, int, float], Evaluation | None]"
"""Judges a scheme on one haystack, given the loss above which it does not matter how bad it is;
None where there are no more haystacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a race knows of a scheme: its evaluations, haystack by haystack."""

    scheme: Scheme
    evaluations: tuple[Evaluation, ...]

    @property
    def haystacks(self) -> int:
        return len(self.evaluations)

    @property
    def stopped(self) -> bool:
        """Whether its last evaluation ended early: it was surely behind."""
        return self.evaluations[-1].stopped

    @property
    def loss(self) -> float:
        """The mean over haystacks; where it was stopped, the least it could have become."""
        return math.fsum(each.loss for each in self.evaluations) / len(self.evaluations)

    @property
    def rank(self) -> tuple[int, float]:
        """What orders standings: those judged on the most haystacks first, then the least loss."""
        return -self.haystacks, self.loss

    def difference(self, other: Standing) -> Mean:
        """Return the loss of this minus that of the other, paired by the answers both gave."""
        theirs = _cells(other)
        return mean(
            cell.loss - theirs[key].loss for key, cell in _cells(self).items() if key in theirs
        )

    def against(self, other: Standing) -> tuple[float, float]:
        """Return the mean losses of this and the other, on the haystacks that both were judged on:
        the ones they have in common come first."""
        common = min(self.haystacks, other.haystacks)
        ours, theirs = (
            math.fsum(each.loss for each in standing.evaluations[:common]) / common
            for standing in (self, other)
        )
        return ours, theirs


def race(
    schemes: Sequence[Scheme],
    judge: Judge,
    rounds: Sequence[int],
    *,
    to_beat: Scheme | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Standing]:
    """Race schemes; return what is known of each, those judged on the most haystacks first, and
    of them the one with the least loss first.

    After round i everyone left is judged on `rounds[i]` haystacks. `to_beat`, one of the schemes,
    never leaves, and once it has one rival left the race ends where the difference is shown.
    `is_over` is read before each evaluation after the first round: a round that it cuts short does
    not count.
    """
    standings = {scheme: Standing(scheme=scheme, evaluations=()) for scheme in schemes}
    left = list(standings)
    for number, haystacks in enumerate(rounds):
        kept = _half(left, to_beat)
        judged = _round(
            [standings[scheme] for scheme in left],
            judge,
            haystacks,
            kept,
            to_beat=to_beat,
            is_over=is_over if number else lambda: False,
        )
        if judged is None:
            break
        standings |= {standing.scheme: standing for standing in judged}
        left = _staying(judged, kept, to_beat)
        if to_beat is not None and _is_decided([standings[s] for s in left], to_beat):
            break
    return sorted(standings.values(), key=lambda each: (-each.haystacks, each.stopped, each.loss))


def _half(left: Sequence[Scheme], to_beat: Scheme | None) -> int:
    """How many stay after a round, the one to beat included."""
    if to_beat is None:
        return max(1, len(left) // 2)
    return 1 + max(1, len(left) // 2)


def _round(
    standings: Sequence[Standing],
    judge: Judge,
    haystacks: int,
    kept: int,
    *,
    to_beat: Scheme | None,
    is_over: Callable[[], bool],
) -> list[Standing] | None:
    """Judge everyone on as many haystacks; None where it did not come to the end."""
    judged: list[Standing] = []
    for standing in standings:
        evaluations = list(standing.evaluations)
        losses = sorted(each.loss for each in judged if not each.stopped)
        most = losses[kept - 1] if len(losses) >= kept and standing.scheme != to_beat else math.inf
        while len(evaluations) < haystacks:
            if is_over():
                return None
            spent = math.fsum(each.loss for each in evaluations)
            found = judge(standing.scheme, len(evaluations), haystacks * most - spent)
            if found is None:
                return None
            evaluations.append(found)
            if found.stopped:
                break
        judged.append(Standing(scheme=standing.scheme, evaluations=tuple(evaluations)))
    return judged


def _staying(judged: Sequence[Standing], kept: int, to_beat: Scheme | None) -> list[Scheme]:
    """Those that go on: the better half without what is surely worse, in the order of their
    loss."""
    ranked = sorted((each for each in judged if not each.stopped), key=lambda each: each.loss)
    leader = ranked[0]
    able = [
        each
        for each in ranked
        if each is leader or each.scheme == to_beat or not _is_worse(each, leader)
    ]
    rivals = [each.scheme for each in able if each.scheme != to_beat]
    if to_beat is None:
        return rivals[:kept]
    return [to_beat, *rivals[: kept - 1]]


def _is_worse(one: Standing, other: Standing) -> bool:
    interval = one.difference(other).interval
    return interval is not None and interval[0] > 0


def _is_decided(left: Sequence[Standing], to_beat: Scheme) -> bool:
    """Whether the one to beat has no rival left, or one whose difference from it is shown."""
    (anchor,) = (each for each in left if each.scheme == to_beat)
    rivals = [each for each in left if each is not anchor]
    return not rivals or (len(rivals) == 1 and rivals[0].difference(anchor).differs)


def _cells(standing: Standing) -> dict[tuple[int, str], CellLoss]:
    return {
        (haystack, cell.key): cell
        for haystack, evaluation in enumerate(standing.evaluations)
        for cell in evaluation.cells
    }
