"""Two runs compared: what got better, what got worse, and what else differs.

Cells at the same place ask the same question in both runs, so they are compared in pairs: a few
lost needles say more than two overlapping intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope.evals.stats import ALPHA, mean, sign_test
from ggufrope.report.metrics import METRICS, SHARES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.evals.results import Cell, CellResult, Metric
    from ggufrope.report.record import RunReport

NOISE = 0.1
"""Relative change above which a value without an interval, such as a speed, counts as changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric of one setting, task and context in both runs, over the same `cells`.

    `lost` and `gained` count the cells of a share that went from 1 to 0, and from 0 to 1.
    `significant` is at the 5 % level: an exact sign test for shares, Student's t on the paired
    differences for means, disjoint intervals for a single estimate.
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
        """Whether the metric changed in its bad direction, significant or not."""
        return METRICS[self.metric].better * (self.after - self.before) < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A circumstance that differs between the runs; None if a run does not have it."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Changes in the order of the plan, differences in models and environments, and the number of
    cells that only one of the runs has a score for."""

    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    only_before: int
    only_after: int

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The significant changes for the worse."""
        return tuple(change for change in self.changes if change.significant and change.worse)

    @property
    def improvements(self) -> tuple[Change, ...]:
        """The significant changes for the better."""
        return tuple(change for change in self.changes if change.significant and not change.worse)


def compare(before: RunReport, after: RunReport) -> Comparison:
    """Compare `after` with `before`.

    Models are matched by name. If each run has exactly one model, those two are compared whatever
    their names, so that two quantizations of a model can be compared.
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
        _change(row, name, [(old[cell], new[cell]) for cell in cells])
        for row, cells in groups.items()
        for name, info in METRICS.items()
        if info.better
    ]
    return Comparison(
        changes=tuple(change for change in changes if change is not None),
        differences=tuple(_differences(before, after)),
        only_before=len(old.keys() - new.keys()),
        only_after=len(new.keys() - old.keys()),
    )


def _scored(report: RunReport, model: str | None) -> dict[Cell, CellResult]:
    """Return the scores by place. A needle that was asked twice counts once: as it was spliced."""
    scored = {replace(r.cell, control=False): r for r in report.cells if r.status == "ok"}
    return {
        replace(cell, model=model or cell.model): result
        for cell, result in scored.items()
        if cell.method != "whole" or replace(cell, method="spliced") not in scored
    }


def _change(
    row: Cell, name: str, results: Sequence[tuple[CellResult, CellResult]]
) -> Change | None:
    metrics = [(before.metric(name), after.metric(name)) for before, after in results]
    pairs = [
        (a.value, b.value)
        for a, b in metrics
        if a is not None and b is not None and a.value is not None and b.value is not None
    ]
    if not pairs:
        return None
    lost = sum(a == 1 and b == 0 for a, b in pairs) if name in SHARES else 0
    gained = sum(a == 0 and b == 1 for a, b in pairs) if name in SHARES else 0
    if len(metrics) == 1 and not _is_one_answer(metrics[0][1]):
        significant = _apart(*metrics[0])
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


def _is_one_answer(metric: Metric | None) -> bool:
    """Whether it is one needle's 0 or 1, and not an estimate over several."""
    return metric is not None and metric.name in SHARES and metric.n is None


def _apart(before: Metric | None, after: Metric | None) -> bool:
    """Whether two single estimates differ: by their intervals, or without these by NOISE."""
    if before is None or after is None or before.value is None or after.value is None:
        return False
    if before.high is None or before.low is None or after.high is None or after.low is None:
        return abs(after.value - before.value) > NOISE * abs(before.value)
    return before.high < after.low or after.high < before.low


def _differences(before: RunReport, after: RunReport) -> list[Difference]:
    old, new = _circumstances(before), _circumstances(after)
    return [
        Difference(name=name, before=old.get(name), after=new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _circumstances(report: RunReport) -> dict[str, str]:
    """Return what results depend on besides the plan; the values of several workers are joined."""
    known: dict[str, dict[str, None]] = {}
    for model in report.models:
        known.setdefault("model", {})[model.file.name] = None
        known.setdefault("header SHA-256", {})[model.file.header_sha256] = None
    for worker in report.workers:
        for name, value in worker.environment:
            known.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in known.items()}
