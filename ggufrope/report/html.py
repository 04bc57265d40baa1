"""The report as one self-contained HTML page: charts as inline SVG, no script, nothing to fetch.

`page` makes the content of the page as plain values, section by section; the template lays it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope._format import duration
from ggufrope.errors import MissingDependencyError
from ggufrope.evals.verdict import worst
from ggufrope.patching.command import command_line
from ggufrope.report import charts, views
from ggufrope.report.conclusion import conclude
from ggufrope.report.metrics import format_value, legend, metric_info
from ggufrope.report.tables import Content, headline_metrics, ruler_details, tables
from ggufrope.runs.plan import format_plan

if TYPE_CHECKING:
    from ggufrope.evals.verdict import Check
    from ggufrope.report.comparison import Change, Comparison
    from ggufrope.report.record import RunReport

Draw: TypeAlias = Callable[[charts.Spec], str]
"""A chart's specification to markup."""

_PASS = {"style": "pass", "text": "Pass"}
_FAIL = {"style": "fail", "text": "Fail"}
_UNFINISHED = {"style": "open", "text": "Unfinished"}
_BADGES = {
    "pass": _PASS,
    "fail": _FAIL,
    "undecided": {"style": "open", "text": "Undecided"},
    None: {"style": "open", "text": "Measured"},
}
_SPEED_TITLES = {
    "prefill_tokens_per_second": "Prefill speed",
    "decode_tokens_per_second": "Decode speed",
}
_BIDI = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def to_html(report: RunReport, *, against: Comparison | None = None) -> str:
    """Return the report as one HTML document, with its comparison to an earlier run if given.

    Raises MissingDependencyError without the `report` extra.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("HTML needs jinja2: pip install 'ggufrope[report]'") from error

    def printable(value: object) -> object:
        """Escape undecodable bytes, and characters that reorder the text around them."""
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return value.encode("utf-8", "backslashreplace").decode().translate(_BIDI)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ggufrope", "report"),
        autoescape=True,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Only our own markup is not escaped: the style sheet, and drawings with escaped text.
    style = Markup(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
    content = page(report, draw=lambda spec: Markup(charts.draw(spec)), against=against)
    return environment.get_template("page.html.jinja").render(style=style, **content)


def page(report: RunReport, *, draw: Draw, against: Comparison | None = None) -> Content:
    """Return the variables of the template."""
    conclusion = conclude(report)
    return {
        "against": None if against is None else _against(against),
        "plan": report.plan,
        "badge": _badge(report),
        "lead": _lead(report),
        "verdicts": _verdicts(report),
        "matrices": tables(report),
        "legend": legend(headline_metrics(report)),
        "ruler": ruler_details(report),
        "heat_key": _heat_key(),
        "maps": _maps(report, draw),
        "sections": [s for s in _sections(report, draw) if s["charts"]],
        "problems": [*views.problems(report), *map(_slow, views.slow_caches(report))],
        "commands": (
            command_line("run", "plan.toml", "--out", "RUN"),
            command_line("report", "RUN", "--html", "report.html"),
        ),
        "conclusion": conclusion,
        "patches": [reach.keep for reach in conclusion.settings if reach.keep],
        "plan_text": format_plan(report.plan),
        "models": [{"name": m.file.name, "facts": _model_facts(m)} for m in report.models],
        "workers": [
            {"title": f"Environment {number}", "facts": worker.environment}
            for number, worker in enumerate(_distinct(report.workers), 1)
        ],
        "footer": f"Report schema {report.schema}. Started {report.created:%Y-%m-%d %H:%M} UTC.",
    }


def _badge(report: RunReport) -> Content:
    if not report.complete:
        return _UNFINISHED
    return _BADGES[report.outcome]


def _lead(report: RunReport) -> str:
    seconds = sum(result.elapsed_seconds or 0.0 for result in report.cells)
    scored = sum(result.status == "ok" for result in report.cells)
    planned = sum(len(entry.job.cells) for entry in report.jobs)
    names = ", ".join(model.file.name for model in report.models)
    return (
        f"{names}. {scored} of {planned} cells measured in {duration(seconds)}, "
        f"up to {max(report.plan.contexts):,} tokens."
    )


def _verdicts(report: RunReport) -> Content:
    """Return the table of verdicts: settings down, checks across, with the contexts that fail."""
    names = dict.fromkeys(c.name for entry in report.verdicts for c in entry.verdict.checks)
    several = len(report.models) > 1
    return {
        "heads": [name.replace("_", " ") for name in names],
        "rows": [
            {
                "setting": entry.label if several else f"{entry.scaling} · {entry.kv}",
                "badge": _BADGES[entry.verdict.outcome],
                "entries": [
                    _tally([c for c in entry.verdict.checks if c.name == name]) for name in names
                ],
            }
            for entry in report.verdicts
        ],
        "reasons": [
            f"{entry.label}: {reason}"
            for entry in report.verdicts
            for reason in entry.verdict.reasons
        ],
    }


def _tally(checks: Sequence[Check]) -> Content:
    outcome = worst(check.outcome for check in checks)
    if outcome is None:
        return {"style": "open", "text": "–", "where": ""}
    others = [check for check in checks if check.outcome == outcome != "pass"]
    contexts = ", ".join(charts.tokens(check.context_tokens) for check in others)
    word = {"pass": "passes", "fail": "fails", "undecided": "undecided"}[outcome]
    several = f"{sum(check.outcome == 'pass' for check in checks)} of {len(checks)} pass"
    return {
        "style": "open" if outcome == "undecided" else outcome,
        "text": several if len(checks) > 1 else word,
        "where": f"{word} at {contexts}" if contexts else "",
    }


def _against(comparison: Comparison) -> Content:
    significant = (*comparison.regressions, *comparison.improvements)
    return {
        "lead": f"Of {len(comparison.changes)} values, {len(comparison.regressions)} are "
        f"significantly worse and {len(comparison.improvements)} significantly better.",
        "changes": [_change(change) for change in significant],
        "legend": legend(change.metric for change in significant),
        "differences": comparison.differences,
    }


def _change(change: Change) -> Content:
    moved = f"{change.lost} lost, {change.gained} gained" if change.lost + change.gained else ""
    task = change.part or change.task
    return {
        "place": f"{change.scaling} · {change.kv} · {task} at {change.context_tokens:,} tokens",
        "metric": metric_info(change.metric).title,
        "before": format_value(change.metric, change.before),
        "after": format_value(change.metric, change.after),
        "cells": moved,
        "style": "fail-text" if change.worse else "pass-text",
    }


def _slow(slow: views.Slow) -> views.Problem:
    speed = _SPEED_TITLES[slow.metric].lower()
    return views.Problem(
        status="slow",
        where=f"{slow.model} · {slow.scaling} · {slow.kv} · {slow.context_tokens} tokens",
        cells=1,
        reason=f"{speed} is {slow.share:.0%} of that with f16: this build may lack a fast kernel "
        "for this cache type",
    )


def _heat_key() -> list[str]:
    low = ("0", *(f"{step:g}" for step in charts.STEPS))
    high = (*(f"{step:g}" for step in charts.STEPS), "1")
    return [f"{a} – {b}" for a, b in zip(low, high, strict=True)]


def _maps(report: RunReport, draw: Draw) -> list[Content]:
    groups: dict[tuple[str, str], list[Content]] = {}
    for view in views.heatmaps(report):
        drawn = {
            "title": f"{view.scaling} · {view.kv}",
            "count": f"{view.exact} of {view.measured} exact" if view.measured else "not measured",
            "svg": draw(charts.heatmap(view)),
        }
        groups.setdefault((view.model, view.task), []).append(drawn)
    native = {m.file.name: m.file.native_context for m in report.models}
    return [
        {
            "title": f"{model}, {task}"
            + (f" (native context {native[model]:,} tokens)" if native.get(model) else ""),
            "maps": maps,
        }
        for (model, task), maps in groups.items()
    ]


def _sections(report: RunReport, draw: Draw) -> list[Content]:
    """Return the sections with charts; one without charts has nothing to show."""
    return [
        {
            "title": "Perplexity by position",
            "text": "How well the text is predicted along one context: a rising line means quality "
            "falls with position. Each setting at its longest context, on a logarithmic scale.",
            "charts": _per_model(
                views.perplexity_curves(report),
                lambda series: draw(
                    charts.lines(series, x="position, tokens", y="perplexity", logarithmic=True)
                ),
            ),
        },
        {
            "title": "Divergence by context",
            "text": f"The divergence is the {metric_info('mean_divergence').meaning}.",
            "charts": _per_model(
                views.by_context(report, "divergence", "mean_divergence"),
                lambda series: draw(
                    charts.lines(series, x="context, tokens", y="divergence, nat per token")
                ),
            ),
        },
        {
            "title": "Quality against memory",
            "text": "Quality and memory of each cache type, at the longest context.",
            "charts": _per_model(
                views.tradeoffs(report), lambda points: draw(charts.tradeoff(points))
            ),
        },
        *(
            {
                "title": _SPEED_TITLES[name],
                "text": "At the longest context.",
                "charts": _per_model(
                    views.at_longest(s for s in views.speeds(report) if s.metric == name),
                    lambda speeds: draw(charts.bars(speeds)),
                ),
            }
            for name in views.SPEEDS
        ),
    ]


def _per_model(items: Iterable[Any], chart: Callable[[list[Any]], str]) -> list[Content]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.model, []).append(item)
    return [
        {"title": model if len(groups) > 1 else None, "svg": chart(group)}
        for model, group in groups.items()
    ]


def _model_facts(model: Any) -> list[tuple[str, str]]:
    return [
        ("file", model.file.path),
        ("size", f"{model.file.file_size:,} bytes"),
        ("SHA-256 of the file", model.sha256 or "not computed"),
        ("SHA-256 of the header", model.file.header_sha256),
        *model.file.details,
    ]


def _distinct(workers: Iterable[Any]) -> list[Any]:
    """Return one worker of each environment."""
    return list({worker.environment: worker for worker in workers}.values())
