"""The comparison that counts: schemes on the holdout, samples that the search never saw."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.evals.stats import Mean, Proportion, mean, proportion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ggufrope.search.evaluate import CellLoss, Evaluation

Verdict: TypeAlias = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeScore:
    """One scheme on samples that no candidate was judged by: its loss in nat per token, and the
    share of needles it found (None for a fitness without right answers)."""

    name: str
    loss: Mean
    recall: Proportion | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Loss of the one minus loss of the other, paired by sample, with its 95 % interval."""

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
class Comparison:
    """Scores of schemes by one fitness, and the first against `against`."""

    fitness: str
    scores: tuple[SchemeScore, ...]
    against: str
    difference: Difference


def compare(fitness: str, evaluations: Mapping[str, Evaluation], *, against: str) -> Comparison:
    """Compare whole evaluations of the same cells; the first of them with `against`."""
    first = next(iter(evaluations))
    return Comparison(
        fitness=fitness,
        scores=tuple(_score(name, each.cells) for name, each in evaluations.items()),
        against=against,
        difference=paired(evaluations[first].cells, evaluations[against].cells),
    )


def paired(one: Sequence[CellLoss], other: Sequence[CellLoss]) -> Difference:
    """Return the mean difference over samples: cells of one haystack depend on each other, samples
    do not."""
    ours, theirs = _by_sample(one), _by_sample(other)
    difference = mean(ours[sample] - theirs[sample] for sample in ours)
    value = difference.value if difference.value is not None else math.nan
    low, high = difference.interval or (-math.inf, math.inf)
    return Difference(value=value, low=low, high=high, samples=difference.n)


def _score(name: str, cells: Sequence[CellLoss]) -> SchemeScore:
    answered = [cell.exact for cell in cells if cell.exact is not None]
    return SchemeScore(
        name=name,
        loss=mean(_by_sample(cells).values()),
        recall=proportion(sum(answered), len(answered)) if answered else None,
    )


def _by_sample(cells: Sequence[CellLoss]) -> dict[str, float]:
    """The mean loss of each sample: the last part of a cell's key."""
    losses: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        losses[cell.key.rpartition("/")[2]].append(cell.loss)
    return {sample: math.fsum(each) / len(each) for sample, each in losses.items()}
