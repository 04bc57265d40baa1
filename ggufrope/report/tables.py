"""The tables of the page: settings down, contexts across, values with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope._format import byte_size
from ggufrope.evals.results import Metric
from ggufrope.evals.ruler.specs import CHAT_THRESHOLD
from ggufrope.report import charts, views
from ggufrope.report.caches import CacheAnswer, cache_answers
from ggufrope.report.conclusion import title_parts
from ggufrope.report.metrics import format_value, metric_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow

Content: TypeAlias = dict[str, Any]
"""Plain values for the template."""

HEADLINES = ("recall", "exact", "score", "perplexity", "mean_divergence", "rounding")
"""Metrics that have a table each, in this order."""


def tables(report: RunReport) -> list[Content]:
    """Return the tables that say which caches are safe, those of the headline metrics of every
    task, then those of RULER-style means."""
    caches = map(_caches, cache_answers(report))
    return [*caches, *_matrices(report), *_ruler_means(report)]


def ruler_details(report: RunReport) -> list[Content]:
    """Return one table per setting, with the RULER-style score of each task."""
    return [_ruler(scores) for scores in views.ruler_scores(report)]


def headline_metrics(report: RunReport) -> tuple[str, ...]:
    """Return the headline metrics that the report has."""
    measured = {metric.name for row in report.summary for metric in row.metrics}
    return tuple(name for name in HEADLINES if name in measured)


def _caches(answer: CacheAnswer) -> Content:
    """Return the table of one answer: pairs of cache types down, what each costs across."""
    columns = ("memory", "divergence", "same top", "answers kept", "prefill/s", "decode/s")
    rows = []
    for row in answer.rows:
        size = "–" if row.memory_bytes is None else byte_size(row.memory_bytes)
        speeds = (
            Metric(name="prefill_tokens_per_second", value=row.prefill),
            Metric(name="decode_tokens_per_second", value=row.decode),
        )
        entries = [
            {"text": size, "interval": None, "shade": None},
            *map(_entry, (row.divergence, row.same_top)),
            {"text": row.kept_words, "interval": None, "shade": None},
            *map(_entry, speeds),
        ]
        word = "base" if row.verdict is None else row.verdict.word
        rows.append({"names": (row.kv, word), "entries": entries})
    return {
        "title": f"{answer.model} · {answer.scaling}: caches at {answer.context_tokens:,} tokens",
        "heads": ("KV cache", "verdict"),
        "columns": [{"title": column, "control": False} for column in columns],
        "rows": rows,
    }


def _matrices(report: RunReport) -> list[Content]:
    """Return one table per model, task and headline metric; a divergence has one per base."""
    groups: dict[tuple[str, str, str, str | None], list[SummaryRow]] = {}
    for name in HEADLINES:
        for row in report.summary:
            if row.task != "ruler" and row.metric(name) is not None:
                key = (row.model, row.title, name, views.divergence_base(row))
                groups.setdefault(key, []).append(row)
    several = len(report.models) > 1
    return [
        _matrix(report, f"{model}: " * several + task_title(report, task, name, base), name, rows)
        for (model, task, name, base), rows in groups.items()
    ]


def task_title(report: RunReport, task: str, metric: str, base: str | None) -> str:
    """Return what a table or a chart of a metric shows, with the base of a divergence."""
    if base is not None:
        return f"cost of the {base}: divergence {views.base_words(report, base)}"
    title = metric_info(metric).title
    return task if task == title else f"{task}, {title}"


def _matrix(report: RunReport, title: str, metric: str, rows: Sequence[SummaryRow]) -> Content:
    contexts = sorted({(row.context_tokens, row.control) for row in rows})
    settings = dict.fromkeys((row.scaling, row.kv) for row in rows)
    at = {(row.scaling, row.kv, row.context_tokens): row.metric(metric) for row in rows}
    return {
        "title": title,
        "heads": ("scaling", "KV cache"),
        "columns": [
            {"title": f"{tokens:,}" + (" (control)" if control else ""), "control": control}
            for tokens, control in contexts
        ],
        "rows": [
            {
                "names": (title_parts(report, rows[0].model, scaling)[0], kv),
                "entries": [_entry(at.get((scaling, kv, tokens))) for tokens, _ in contexts],
            }
            for scaling, kv in settings
        ],
    }


def _ruler_means(report: RunReport) -> list[Content]:
    """Return one table per model, with the effective context length of each setting."""
    models: dict[str, list[views.RulerScores]] = {}
    for scores in views.ruler_scores(report):
        models.setdefault(scores.model, []).append(scores)
    return [_ruler_mean(model, settings) for model, settings in models.items()]


def _ruler_mean(model: str, settings: Sequence[views.RulerScores]) -> Content:
    contexts = sorted({context for scores in settings for context, _ in scores.means})
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
            for scores in settings
        ],
    }


def _ruler(scores: views.RulerScores) -> Content:
    """Return the table of one setting: RULER-style tasks down, contexts across."""
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
        low, high = format_value(metric.name, metric.low), format_value(metric.name, metric.high)
        interval = f"{low} – {high}"
    shade = sum(metric.value >= step for step in charts.STEPS)
    return {
        "text": format_value(metric.name, metric.value),
        "interval": interval,
        "shade": shade if metric_info(metric.name).format.endswith("%") else None,
    }
