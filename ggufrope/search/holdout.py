"""The comparison that counts: schemes on the holdout, samples that the search never saw.

Haystacks are independent of each other and the needles of one are not, so a difference is that of
paired haystacks, with Student's t. It is read a few times, after as many haystacks as were planned
(`looks`), until it is shown. The error of 5 % is divided between the looks, so that all intervals
together hold in 95 % of searches (Bonferroni): the last look has half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.evals.stats import ALPHA, Mean, Proportion, mean, proportion, sign_test
from ggufrope.search.evaluate import MOST_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ggufrope.search.evaluate import CellLoss, Evaluation

Verdict: TypeAlias = Literal["better", "worse", "undecided"]

_FEWEST = 4
"""Haystacks before the first look: below that an interval of Student's t is very wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """When a comparison is read: after so many haystacks, with this error of its interval."""

    haystacks: int
    error: float


def looks(most: int) -> tuple[Look, ...]:
    """Return when a comparison on at most `most` haystacks is read: at the end, and before that at
    the half, a quarter and so on."""
    counts = [most]
    while counts[0] // 2 >= _FEWEST:
        counts.insert(0, counts[0] // 2)
    if len(counts) == 1:
        return (Look(haystacks=most, error=ALPHA),)
    early = ALPHA / 2 / (len(counts) - 1)
    errors = [*(early for _ in counts[1:]), ALPHA / 2]
    return tuple(Look(haystacks=n, error=e) for n, e in zip(counts, errors, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeScore:
    """One scheme on samples that no candidate was judged by: its loss in nat per token, and the
    share of needles it found (None for a fitness without right answers)."""

    name: str
    loss: Mean
    recall: Proportion | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Loss of the one minus loss of the other, paired by haystack, with an interval that holds in
    95 % of searches. `samples` counts haystacks."""

    value: float
    low: float
    high: float
    samples: int

    @property
    def verdict(self) -> Verdict:
        """Whether the one is better than the other beyond chance."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers that only one of two schemes gave: `gained` by the first, `lost` by it. `p_value` is
    that of the exact test of paired answers (McNemar)."""

    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Scores of schemes by one fitness, and the first against `against`."""

    fitness: str
    scores: tuple[SchemeScore, ...]
    against: str
    difference: Difference
    answers: Answers | None

    @property
    def verdict(self) -> Verdict:
        """What the losses say. A scheme that loses less on average and answers fewer needles beyond
        chance is not better: the two contradict each other."""
        found, answers = self.difference.verdict, self.answers
        fewer = answers is not None and answers.lost > answers.gained and answers.p_value < ALPHA
        return "undecided" if found == "better" and fewer else found


def compare(
    fitness: str,
    evaluations: Mapping[str, Sequence[Evaluation]],
    *,
    against: str,
    error: float = ALPHA,
) -> Comparison:
    """Compare whole evaluations on the same haystacks; the first of them with `against`.

    `error` is that of the interval.
    """
    first = next(iter(evaluations))
    ours, theirs = evaluations[first], evaluations[against]
    return Comparison(
        fitness=fitness,
        scores=tuple(_score(name, each) for name, each in evaluations.items()),
        against=against,
        difference=paired(ours, theirs, error),
        answers=_answers(_cells(ours), _cells(theirs)),
    )


def paired(
    ours: Sequence[Evaluation], theirs: Sequence[Evaluation], error: float = ALPHA
) -> Difference:
    """Return the mean difference over haystacks."""
    pairs = zip(ours, theirs, strict=True)
    difference = mean(one.loss - other.loss for one, other in pairs)
    value = difference.value if difference.value is not None else math.nan
    low, high = difference.interval_at(error) or (-MOST_LOSS, MOST_LOSS)
    return Difference(value=value, low=low, high=high, samples=difference.n)


def _answers(ours: Sequence[CellLoss], theirs: Sequence[CellLoss]) -> Answers | None:
    changed = [
        one.exact for one, other in zip(ours, theirs, strict=True) if one.exact is not other.exact
    ]
    if all(cell.exact is None for cell in ours):
        return None
    gained = sum(exact is True for exact in changed)
    lost = len(changed) - gained
    return Answers(gained=gained, lost=lost, p_value=sign_test(lost, gained))


def _score(name: str, evaluations: Sequence[Evaluation]) -> SchemeScore:
    answered = [cell.exact for cell in _cells(evaluations) if cell.exact is not None]
    return SchemeScore(
        name=name,
        loss=mean(each.loss for each in evaluations),
        recall=proportion(sum(answered), len(answered)) if answered else None,
    )


def _cells(evaluations: Sequence[Evaluation]) -> list[CellLoss]:
    return [cell for each in evaluations for cell in each.cells]
