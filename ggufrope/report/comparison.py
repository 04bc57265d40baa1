"""Two runs side by side: what got better, what got worse, and what else is different.

Cells of the same place ask the same thing in both, so they are compared in pairs: a handful of
needles lost tells more than two overlapping intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufrope.evals.stats import ALPHA, mean, sign_test
from ggufrope.report.summary import SHARES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ggufrope.evals.results import Cell, CellResult, Metric
    from ggufrope.report.record import RunReport

BETTER: Mapping[str, int] = MappingProxyType(
    {
        "recall": 1,
        "top_ranked": 1,
        "log_probability": 1,
        "score": 1,
        "same_top": 1,
        "prefill_tokens_per_second": 1,
        "decode_tokens_per_second": 1,
        "perplexity": -1,
        "mean_divergence": -1,
        "nll_difference": -1,
        "cache_bytes_per_token": -1,
    }
)
"""The metrics compared, and which way is better."""
NOISE = 0.1
"""Share by which a number without an interval, a speed say, must change to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A metric of one setting, task and context, in both runs, over the same `cells`.

    `lost` and `gained` count the cells of a share that went from 1 to 0, and from 0 to 1.
    `significant` is at the 5 % level: an exact sign test for shares, the paired difference's
    interval for means, the two intervals for a lone estimate.
    """

    model: str
    scaling: str
    kv: str
    task: str
    part: str | None
    context_tokens: int
    metric: str
    cells: int
    before: float
    after: float
    lost: int
    gained: int
    significant: bool

    @property
    def worse(self) -> bool:
        return BETTER[self.metric] * (self.after - self.before) < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that was not the same in the two runs; None where one has none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Changes in the plan's order, what differs in models and environments, and how many cells
    only one of the runs has a score for."""

    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    only_before: int
    only_after: int

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What is worse, and more than noise."""
        return tuple(change for change in self.changes if change.significant and change.worse)

    @property
    def improvements(self) -> tuple[Change, ...]:
        """What is better, and more than noise."""
        return tuple(change for change in self.changes if change.significant and not change.worse)


def compare(before: RunReport, after: RunReport) -> Comparison:
    """Hold `after` against `before`.

    Models are matched by name; where each run has one, they are matched whatever their names, so
    that two quantizations compare.
    """
    rename = len(before.models) == len(after.models) == 1
    old = _scored(before, after.models[0].file.name if rename else None)
    new = _scored(after, None)
    groups: dict[Cell, list[Cell]] = {}
    for cell in new:
        if cell in old:
            row = replace(cell, depth_percent=None, sample=None, seed=0)
            groups.setdefault(row, []).append(cell)
    changes = [
        change
        for row, cells in groups.items()
        for name in BETTER
        if (change := _change(row, name, [old[c] for c in cells], [new[c] for c in cells]))
    ]
    return Comparison(
        changes=tuple(changes),
        differences=tuple(_differences(before, after)),
        only_before=len(old.keys() - new.keys()),
        only_after=len(new.keys() - old.keys()),
    )


def _scored(report: RunReport, model: str | None) -> dict[Cell, CellResult]:
    return {
        replace(r.cell, model=model or r.cell.model, control=False): r
        for r in report.cells
        if r.status == "ok"
    }


def _change(
    row: Cell, name: str, before: Sequence[CellResult], after: Sequence[CellResult]
) -> Change | None:
    found = [(a.metric(name), b.metric(name)) for a, b in zip(before, after, strict=True)]
    pairs = [
        (a.value, b.value)
        for a, b in found
        if a is not None and b is not None and a.value is not None and b.value is not None
    ]
    if not pairs:
        return None
    lost = sum(a == 1 and b == 0 for a, b in pairs) if name in SHARES else 0
    gained = sum(a == 0 and b == 1 for a, b in pairs) if name in SHARES else 0
    if len(found) == 1:
        significant = _apart(*found[0])
    elif name in SHARES:
        significant = sign_test(lost, gained) < ALPHA
    else:
        significant = mean(b - a for a, b in pairs).differs
    return Change(
        model=row.model,
        scaling=row.scaling,
        kv=row.kv,
        task=row.task,
        part=row.part,
        context_tokens=row.context_tokens,
        metric=name,
        cells=len(pairs),
        before=sum(a for a, _ in pairs) / len(pairs),
        after=sum(b for _, b in pairs) / len(pairs),
        lost=lost,
        gained=gained,
        significant=significant,
    )


def _apart(before: Metric | None, after: Metric | None) -> bool:
    """Whether two lone estimates differ by more than their intervals, or than noise."""
    if before is None or after is None or before.value is None or after.value is None:
        return False
    bounds = (before.low, before.high, after.low, after.high)
    if None not in bounds:
        low_before, high_before, low_after, high_after = bounds
        return high_before < low_after or high_after < low_before  # type: ignore[operator]
    return abs(after.value - before.value) > NOISE * abs(before.value)


def _differences(before: RunReport, after: RunReport) -> list[Difference]:
    old, new = _circumstances(before), _circumstances(after)
    return [
        Difference(name=name, before=old.get(name), after=new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _circumstances(report: RunReport) -> dict[str, str]:
    """What the results depend on beside the plan; several environments are told together."""
    known: dict[str, dict[str, None]] = {}
    for model in report.models:
        known.setdefault("model", {})[model.file.name] = None
        known.setdefault("header SHA-256", {})[model.file.header_sha256] = None
    for worker in report.workers:
        for name, value in worker.environment:
            known.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in known.items()}
