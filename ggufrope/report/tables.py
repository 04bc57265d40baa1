"""The tables of the page: settings down, contexts across, figures with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope.evals.results import Metric
from ggufrope.evals.ruler.scoring import CHAT_THRESHOLD
from ggufrope.report import charts, views
from ggufrope.report.summary import SHARES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow

Content: TypeAlias = dict[str, Any]
"""Plain values for the template."""

HEADLINES = ("recall", "score", "perplexity", "mean_divergence")
"""Metrics with a table of their own, in this order."""
_PERCENT = (*SHARES, "score")


def tables(report: RunReport) -> list[Content]:
    """The headline metrics of every task, then RULER-style means."""
    return [*_matrices(report), *_ruler_means(report)]


def ruler_details(report: RunReport) -> list[Content]:
    """RULER-style scores task by task, a table a setting."""
    return [_ruler(scores) for scores in views.ruler_scores(report)]


def shown(metric: str, value: float) -> str:
    """A metric's value as people read it."""
    return f"{value:.0%}" if metric in _PERCENT else f"{value:.4g}"


def _matrices(report: RunReport) -> list[Content]:
    """One table a model, task and headline metric: settings down, contexts across."""
    groups: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for name in HEADLINES:
        for row in report.summary:
            if row.part is None and row.metric(name) is not None:
                groups.setdefault((row.model, row.task, name), []).append(row)
    several = len(report.models) > 1
    return [
        _matrix(f"{model}: {task}" if several else task, name, rows)
        for (model, task, name), rows in groups.items()
    ]


def _matrix(task: str, metric: str, rows: Sequence[SummaryRow]) -> Content:
    contexts = sorted({(row.context_tokens, row.control) for row in rows})
    settings = dict.fromkeys((row.scaling, row.kv) for row in rows)
    at = {(row.scaling, row.kv, row.context_tokens): row.metric(metric) for row in rows}
    return {
        "title": task if task == metric else f"{task}, {charts.words(metric)}",
        "heads": ("scaling", "KV cache"),
        "columns": [
            {"title": f"{tokens:,}" + (" (control)" if control else ""), "control": control}
            for tokens, control in contexts
        ],
        "rows": [
            {
                "names": (scaling, kv),
                "entries": [_entry(at.get((scaling, kv, tokens))) for tokens, _ in contexts],
            }
            for scaling, kv in settings
        ],
    }


def _ruler_means(report: RunReport) -> list[Content]:
    """One table a model: settings down, contexts across, and how far each effectively reaches."""
    models: dict[str, list[views.RulerScores]] = {}
    for scores in views.ruler_scores(report):
        models.setdefault(scores.model, []).append(scores)
    return [_ruler_mean(model, found) for model, found in models.items()]


def _ruler_mean(model: str, found: Sequence[views.RulerScores]) -> Content:
    contexts = sorted({context for scores in found for context, _ in scores.means})
    heads = [f"{context:,}" for context in contexts]
    heads += ["keeps 85% up to", f"above {CHAT_THRESHOLD:g}% up to"]
    return {
        "title": f"RULER-style mean, {model}",
        "heads": ("scaling", "KV cache"),
        "columns": [{"title": head, "control": False} for head in heads],
        "rows": [
            {
                "names": (scores.scaling, scores.kv),
                "entries": [
                    *(
                        _entry(Metric(name="score", value=dict(scores.means).get(context)))
                        for context in contexts
                    ),
                    *(
                        {"text": "none" if n is None else f"{n:,}", "interval": None, "shade": None}
                        for n in (scores.effective, scores.published)
                    ),
                ],
            }
            for scores in found
        ],
    }


def _ruler(scores: views.RulerScores) -> Content:
    """RULER-style tasks down, contexts across."""
    contexts = [context for context, _ in scores.means]
    at = {(task, context): score for task, context, score in scores.tasks}
    return {
        "title": f"{scores.scaling} · {scores.kv}",
        "heads": ("task", ""),
        "columns": [{"title": f"{context:,}", "control": False} for context in contexts],
        "rows": [
            {
                "names": (task, ""),
                "entries": [
                    _entry(Metric(name="score", value=at.get((task, context))))
                    for context in contexts
                ],
            }
            for task in dict.fromkeys(task for task, _ in at)
        ],
    }


def _entry(metric: Metric | None) -> Content:
    if metric is None or metric.value is None:
        return {"text": "–", "interval": None, "shade": None}
    interval = None
    if metric.low is not None and metric.high is not None:
        interval = f"{shown(metric.name, metric.low)} – {shown(metric.name, metric.high)}"
    shade = sum(metric.value >= step for step in charts.STEPS)
    return {
        "text": shown(metric.name, metric.value),
        "interval": interval,
        "shade": shade if metric.name in _PERCENT else None,
    }
