"""Cells into rows: one a model, scaling, cache type, task and context, over depths and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.evals.results import CellResult, Metric, estimate
from ggufrope.evals.stats import mean, proportion

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARES = frozenset({"recall", "top_ranked"})
"""Metrics that are 0 or 1 in a cell, and so a share, with Wilson's interval, over cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """What the cells of one setting come to.

    `cells` were planned and reached, `scored` of them measured. `control` rows are at the native
    context, for comparison.
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
    metrics: tuple[Metric, ...]
    elapsed_seconds: float

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def summarize(results: Iterable[CellResult]) -> tuple[SummaryRow, ...]:
    """One row a setting, in the order the settings first appear."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for result in results:
        cell = result.cell
        key = (cell.model, cell.scaling, cell.kv, cell.task, cell.part, cell.context_tokens)
        groups.setdefault(key, []).append(result)
    return tuple(_row(group) for group in groups.values())


def _row(group: list[CellResult]) -> SummaryRow:
    cell = group[0].cell
    scored = [result for result in group if result.status == "ok"]
    names = dict.fromkeys(metric.name for result in scored for metric in result.metrics)
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
        metrics=tuple(_combine(name, scored) for name in names),
        elapsed_seconds=sum(result.elapsed_seconds or 0.0 for result in group),
    )


def _combine(name: str, results: list[CellResult]) -> Metric:
    """The metric over cells: a lone estimate as it is, else a share or a mean with its interval."""
    found = [metric for result in results if (metric := result.metric(name)) is not None]
    if len(found) == 1 and (name not in SHARES or found[0].n is not None):
        return found[0]
    values = [metric.value for metric in found if metric.value is not None]
    if name in SHARES:
        share = proportion(round(sum(values)), len(values))
        return Metric(name=name, value=share.value, low=share.low, high=share.high, n=share.n)
    average = mean(values)
    return estimate(name, average)
