"""Cells into rows and verdicts: one row per model, scaling, cache type, task and context.

A row combines the depths, samples and seeds of its cells. The rows of one setting (model, scaling
and cache type) are the evidence for its verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ggufrope.evals.results import CellResult, Metric, estimate
from ggufrope.evals.stats import Mean, Proportion, mean, proportion
from ggufrope.evals.verdict import Evidence, Thresholds, Verdict, judge
from ggufrope.report.metrics import SHARES


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """The combined result of the cells of one row.

    `cells` counts all cells, `scored` those with a score. `control` rows are at the native context,
    for comparison.
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
        """Return the metric of that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingVerdict:
    """The verdict on one model under one scaling with one pair of cache types."""

    model: str
    scaling: str
    kv: str
    verdict: Verdict

    @property
    def label(self) -> str:
        """The setting in words."""
        return f"{self.model} · {self.scaling} · {self.kv}"


def summarize(results: Iterable[CellResult]) -> tuple[SummaryRow, ...]:
    """Return the rows, in the order in which their first cells appear."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for result in results:
        cell = result.cell
        key = (cell.model, cell.scaling, cell.kv, cell.task, cell.part, cell.context_tokens)
        groups.setdefault(key, []).append(result)
    return tuple(_row(group) for group in groups.values())


def judge_settings(
    summary: Iterable[SummaryRow], thresholds: Thresholds
) -> tuple[SettingVerdict, ...]:
    """Return one verdict per setting, in the order in which the settings first appear.

    Control rows are not judged.
    """
    settings: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for row in summary:
        settings.setdefault((row.model, row.scaling, row.kv), []).append(row)
    return tuple(
        SettingVerdict(
            model=model, scaling=scaling, kv=kv, verdict=judge(_evidence(rows), thresholds)
        )
        for (model, scaling, kv), rows in settings.items()
    )


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
    """Combine a metric over cells: a single estimate stays as it is, others become a share or a
    mean with its interval."""
    found = [metric for result in results if (metric := result.metric(name)) is not None]
    if len(found) == 1 and (name not in SHARES or found[0].n is not None):
        return found[0]
    values = [metric.value for metric in found if metric.value is not None]
    if name in SHARES:
        share = proportion(round(sum(values)), len(values))
        return Metric(name=name, value=share.value, low=share.low, high=share.high, n=share.n)
    return estimate(name, mean(values))


def _evidence(rows: list[SummaryRow]) -> Evidence:
    judged = [row for row in rows if not row.control]
    needles = [row for row in judged if row.task in ("needle", "passkey")]
    short = next((row for row in judged if row.task == "short-context"), None)
    return Evidence(
        recall=_lowest(needles, "recall"),
        top_ranked=_lowest(needles, "top_ranked"),
        ruler=_ruler_means(judged),
        nll={row.context_tokens: _value(row, "nll") for row in judged if row.task == "perplexity"},
        divergence={
            row.context_tokens: _value(row, "mean_divergence")
            for row in judged
            if row.task == "divergence"
        },
        short_context_nll=None if short is None else _mean(short, "nll_difference"),
        short_recall=None
        if short is None or short.metric("base_recall") is None
        else (_share(short, "base_recall"), _share(short, "recall")),
    )


def _lowest(rows: list[SummaryRow], name: str) -> dict[int, Proportion]:
    """Return the share at each length of the worst task; a task without a score is the worst."""
    shares: dict[int, Proportion] = {}
    for row in rows:
        share, other = _share(row, name), shares.get(row.context_tokens)
        if other is None or _order(share) < _order(other):
            shares[row.context_tokens] = share
    return shares


def _order(share: Proportion) -> float:
    return -1.0 if share.value is None else share.value


def _ruler_means(rows: list[SummaryRow]) -> dict[int, float | None]:
    """Return the mean over the RULER tasks at each length, 0 to 1; None if one has no score."""
    scores: dict[int, list[float | None]] = {}
    for row in rows:
        if row.task == "ruler":
            scores.setdefault(row.context_tokens, []).append(_value(row, "score"))
    means: dict[int, float | None] = {}
    for length, found in scores.items():
        known = [score for score in found if score is not None]
        means[length] = sum(known) / len(known) if len(known) == len(found) else None
    return means


def _metric(row: SummaryRow, name: str) -> Metric | None:
    """Return the metric, or None if a cell of the row has no score: failures count."""
    return row.metric(name) if row.scored == row.cells else None


def _value(row: SummaryRow, name: str) -> float | None:
    metric = _metric(row, name)
    return None if metric is None else metric.value


def _mean(row: SummaryRow, name: str) -> Mean:
    metric = _metric(row, name)
    if metric is None:
        return Mean(n=0, value=None, standard_error=None)
    return Mean(n=metric.n or 0, value=metric.value, standard_error=None)


def _share(row: SummaryRow, name: str) -> Proportion:
    metric = _metric(row, name)
    if metric is None or metric.value is None:
        return Proportion(successes=0, n=row.scored, value=None, low=None, high=None)
    n = metric.n or 0
    return Proportion(
        successes=round(metric.value * n), n=n, value=metric.value, low=metric.low, high=metric.high
    )
