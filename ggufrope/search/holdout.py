"""The comparison that counts: schemes on the holdout, haystacks that the search never saw.

Haystacks are independent of each other and the needles of one are not, so a difference is that of
paired haystacks, with Student's t. It is of whole prompts: some haystacks are asked in that way
too, and what whole prompts add to the difference of their spliced twins is added, with an interval
of its own (prediction-powered inference, Angelopoulos et al. 2023). So nothing is assumed about the
splice, and needles that cost little do most of the work.

The comparison is read a few times, after as many haystacks as were planned (`looks`), until it is
shown. The error of 5 % is divided between the looks, so that all intervals together hold in 95 % of
searches (Bonferroni): the last look has half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.evals.stats import ALPHA, Mean, Proportion, mean, proportion, sign_test
from ggufrope.search.evaluate import MOST_LOSS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from ggufrope.search.evaluate import CellLoss, Evaluation

Verdict: TypeAlias = Literal["better", "worse", "undecided"]

_FEWEST = 4
"""Haystacks before the first look: below that an interval of Student's t is very wide."""
_SPLICED = 0.6
"""The part of an interval's error that goes to the spliced needles; the rest is for the splice,
which is known from fewer haystacks."""


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


def in_whole_prompts(haystack: int) -> bool:
    """Return whether a haystack is asked in whole prompts too: the first four, so that there is a
    useful interval from the first look on, and every fourth."""
    return haystack < _FEWEST or haystack % _FEWEST == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a scheme came to on the haystacks of a holdout, and on those asked in whole prompts."""

    evaluations: list[Evaluation]
    whole: dict[int, Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeScore:
    """One scheme on samples that no candidate was judged by: its loss in nat per token, and the
    share of needles it found (None for a fitness without right answers). `asked` is how: "spliced",
    "whole" or "text"."""

    name: str
    asked: str
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


def wins(comparisons: Sequence[Comparison]) -> bool:
    """Return whether a scheme is better by the first comparison, and worse by none."""
    verdicts = [each.verdict for each in comparisons]
    return verdicts[:1] == ["better"] and "worse" not in verdicts


def compare(
    fitness: str, judged: Mapping[str, Judged], *, against: str, error: float = ALPHA
) -> Comparison:
    """Compare schemes on the same haystacks; the first of them with `against`.

    `error` is that of the interval.
    """
    ours, theirs = next(iter(judged.values())), judged[against]
    spliced = "spliced" if ours.whole else "text"
    scores = [_score(name, spliced, each.evaluations) for name, each in judged.items()]
    if ours.whole:
        scores += [_score(name, "whole", each.whole.values()) for name, each in judged.items()]
    return Comparison(
        fitness=fitness,
        scores=tuple(scores),
        against=against,
        difference=paired(ours, theirs, error),
        answers=_answers(_cells(ours.evaluations), _cells(theirs.evaluations)),
    )


def paired(ours: Judged, theirs: Judged, error: float = ALPHA) -> Difference:
    """Return the mean difference over haystacks; in whole prompts, where there are some."""
    pairs = zip(ours.evaluations, theirs.evaluations, strict=True)
    found = mean(one.loss - other.loss for one, other in pairs)
    parts = [(found, error)]
    if ours.whole:
        added = mean(_added(ours, n) - _added(theirs, n) for n in ours.whole)
        parts = [(found, error * _SPLICED), (added, error * (1 - _SPLICED))]
    bounds = [part.interval_at(share) or (-MOST_LOSS, MOST_LOSS) for part, share in parts]
    return Difference(
        value=math.fsum(part.value or 0.0 for part, _ in parts),
        low=math.fsum(low for low, _ in bounds),
        high=math.fsum(high for _, high in bounds),
        samples=found.n,
    )


def _added(judged: Judged, haystack: int) -> float:
    """What whole prompts of a haystack lose more than the same needles spliced."""
    spliced = {cell.key: cell.loss for cell in judged.evaluations[haystack].cells}
    cells = judged.whole[haystack].cells
    return math.fsum(cell.loss - spliced[cell.key] for cell in cells) / len(cells)


def _answers(ours: Sequence[CellLoss], theirs: Sequence[CellLoss]) -> Answers | None:
    if all(cell.exact is None for cell in ours):
        return None
    changed = [
        one.exact for one, other in zip(ours, theirs, strict=True) if one.exact is not other.exact
    ]
    gained = sum(exact is True for exact in changed)
    lost = len(changed) - gained
    return Answers(gained=gained, lost=lost, p_value=sign_test(lost, gained))


def _score(name: str, asked: str, evaluations: Collection[Evaluation]) -> SchemeScore:
    answered = [cell.exact for cell in _cells(evaluations) if cell.exact is not None]
    return SchemeScore(
        name=name,
        asked=asked,
        loss=mean(each.loss for each in evaluations),
        recall=proportion(sum(answered), len(answered)) if answered else None,
    )


def _cells(evaluations: Iterable[Evaluation]) -> list[CellLoss]:
    return [cell for each in evaluations for cell in each.cells]
