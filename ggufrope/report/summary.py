"""Cells into rows: one row per model, scaling, cache type, task and context.

A row combines the depths, samples, seeds and methods of its cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from ggufrope.evals import recall
from ggufrope.evals.recall import RecallCell, RecallEstimate
from ggufrope.evals.results import CellResult, Metric, estimate
from ggufrope.evals.stats import Proportion, mean, proportion
from ggufrope.evals.task import Cost
from ggufrope.evals.thresholds import LIMITS
from ggufrope.report.metrics import SHARES


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """The combined result of the cells of one row.

    `cells` counts all cells, `scored` those with a score, `skipped` those that were not needed.
    `control` rows are of the unscaled model within its native context, for comparison. `base` is
    what the cells are compared with, `cost_of` what that comparison is the cost of.
    """

    model: str
    scaling: str
    kv: str
    task: str
    part: str | None
    context_tokens: int
    control: bool
    cells: int
    scored: int
    skipped: int
    metrics: tuple[Metric, ...]
    elapsed_seconds: float
    base: str | None = None
    cost_of: Cost | None = None

    @property
    def title(self) -> str:
        """The task, and for needles of a harder kind which."""
        return f"{self.task} ({self.part})" if self.part and self.task == "needle" else self.task

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def summarize(results: Iterable[CellResult]) -> tuple[SummaryRow, ...]:
    """Return the rows, in the order in which their first cells appear."""
    return tuple(map(_row, by_row(results)))


def by_row(results: Iterable[CellResult]) -> Iterable[list[CellResult]]:
    """Return the results of each row."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for result in results:
        cell = result.cell
        key = (cell.model, cell.scaling, cell.kv, cell.task, cell.part, cell.context_tokens)
        groups.setdefault(key, []).append(result)
    return groups.values()


def recall_cells(results: Iterable[CellResult]) -> tuple[RecallCell, ...]:
    """Return the needles of one row, each with what became of it spliced and in a whole prompt."""
    needles: dict[tuple[object, ...], dict[str, bool]] = {}
    for result in results:
        cell, value = result.cell, result.value("recall")
        if result.status == "ok" and value is not None:
            key = (cell.depth_percent, cell.sample, cell.seed)
            needles.setdefault(key, {})[cell.method or "whole"] = value == 1
    return tuple(
        RecallCell(spliced=found.get("spliced"), whole=found.get("whole"))
        for found in needles.values()
    )


def _row(group: list[CellResult]) -> SummaryRow:
    cell = group[0].cell
    scored = [result for result in group if result.status == "ok"]
    names = dict.fromkeys(metric.name for result in scored for metric in result.metrics)
    metrics = [combine(name, scored) for name in names]
    if cell.task in LIMITS["recall"] and scored:
        found = recall.estimate(recall_cells(scored))
        metrics = [*_recall_metrics(found), *(m for m in metrics if m.name != "recall")]
    notes = next((dict(result.notes) for result in group if result.notes), {})
    return SummaryRow(
        model=cell.model,
        scaling=cell.scaling,
        kv=cell.kv,
        task=cell.task,
        part=cell.part,
        context_tokens=cell.context_tokens,
        control=cell.control,
        cells=len(group),
        scored=len(scored),
        skipped=sum(result.status == "skipped" for result in group),
        metrics=tuple(metrics),
        elapsed_seconds=sum(result.elapsed_seconds or 0.0 for result in group),
        base=notes.get("base"),
        cost_of=cast("Cost | None", notes.get("cost of")),
    )


def _recall_metrics(found: RecallEstimate) -> list[Metric]:
    """Return the recall of whole prompts, and what that estimate stands on."""
    n = found.whole.n or found.spliced.n
    agreement = proportion(found.agree, found.pairs)
    parts = {"spliced_recall": found.spliced, "whole_recall": found.whole, "agreement": agreement}
    return [
        Metric(name="recall", value=found.value, low=found.low, high=found.high, n=n),
        *(share_metric(name, share) for name, share in parts.items() if share.n),
    ]


def share_metric(name: str, share: Proportion) -> Metric:
    """Return a share as a metric, with its interval."""
    return Metric(name=name, value=share.value, low=share.low, high=share.high, n=share.n)


def combine(name: str, results: Sequence[CellResult]) -> Metric:
    """Combine a metric over the scored cells of a row: a single estimate stays as it is, others
    become a share or a mean with its interval. A needle that was asked twice counts as spliced."""
    once = [result for result in results if result.cell.method != "whole"] or results
    found = [metric for result in once if (metric := result.metric(name)) is not None]
    if len(found) == 1 and (name not in SHARES or found[0].n is not None):
        return found[0]
    values = [metric.value for metric in found if metric.value is not None]
    if name in SHARES:
        return share_metric(name, proportion(round(sum(values)), len(values)))
    return estimate(name, mean(values))
