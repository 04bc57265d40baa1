"""Summary rows as evidence, and the verdict on each setting of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.evals.stats import Mean, Proportion
from ggufrope.evals.verdict import Evidence, Thresholds, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.evals.results import Metric
    from ggufrope.report.summary import SummaryRow


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingVerdict:
    """The verdict on one model under one scaling with one pair of cache types."""

    model: str
    scaling: str
    kv: str
    verdict: Verdict

    @property
    def label(self) -> str:
        return f"{self.model} · {self.scaling} · {self.kv}"


def judge_settings(
    summary: Iterable[SummaryRow], thresholds: Thresholds
) -> tuple[SettingVerdict, ...]:
    """One verdict a setting, in the order the settings first appear. Controls are not judged."""
    settings: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for row in summary:
        settings.setdefault((row.model, row.scaling, row.kv), []).append(row)
    return tuple(
        SettingVerdict(
            model=model, scaling=scaling, kv=kv, verdict=judge(_evidence(rows), thresholds)
        )
        for (model, scaling, kv), rows in settings.items()
    )


def _evidence(rows: list[SummaryRow]) -> Evidence:
    judged = [row for row in rows if not row.control]
    needles = [row for row in judged if row.task in ("needle", "passkey")]
    short = next((row for row in judged if row.task == "short-context"), None)
    return Evidence(
        recall=_least(needles, "recall"),
        top_ranked=_least(needles, "top_ranked"),
        ruler=_ruler(judged),
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


def _least(rows: list[SummaryRow], name: str) -> dict[int, Proportion]:
    """The share at each length, of the task that does worst: one that is not scored, if any."""
    shares: dict[int, Proportion] = {}
    for row in rows:
        share, other = _share(row, name), shares.get(row.context_tokens)
        if other is None or _rank(share) < _rank(other):
            shares[row.context_tokens] = share
    return shares


def _rank(share: Proportion) -> float:
    return -1.0 if share.value is None else share.value


def _ruler(rows: list[SummaryRow]) -> dict[int, float | None]:
    """The mean over the tasks measured at each length, 0 to 1; None where one is missing."""
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
    """The metric, or None where a cell of the row has no score: what failed is not left out."""
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
    """A share with its interval."""
    metric = _metric(row, name)
    if metric is None or metric.value is None:
        return Proportion(successes=0, n=row.scored, value=None, low=None, high=None)
    n = metric.n or 0
    return Proportion(
        successes=round(metric.value * n), n=n, value=metric.value, low=metric.low, high=metric.high
    )
