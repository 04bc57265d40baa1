"""What stands on the page, section by section, as plain values for the template."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope._format import duration
from ggufrope.report import charts, views
from ggufrope.report.tables import Content, ruler_details, shown, tables
from ggufrope.runs.plan import format_plan

if TYPE_CHECKING:
    from ggufrope.evals.verdict import Check
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport

Draw: TypeAlias = Callable[[charts.Spec], str]
"""A chart's specification to markup."""

_PASS = {"style": "pass", "text": "Pass"}
_FAIL = {"style": "fail", "text": "Fail"}
_OPTIONS = {"target_context": "target-ctx", "original_context": "orig-ctx"}


def page(report: RunReport, *, draw: Draw, against: Comparison | None = None) -> Content:
    """The template's variables."""
    return {
        "against": None if against is None else _against(against),
        "plan": report.plan,
        "badge": _badge(report),
        "lead": _lead(report),
        "verdicts": _verdicts(report),
        "matrices": tables(report),
        "ruler": ruler_details(report),
        "heat_key": _heat_key(),
        "maps": _maps(report, draw),
        "sections": [s for s in _sections(report, draw) if s["charts"]],
        "troubles": [*views.troubles(report), *map(_slow, views.slow_caches(report))],
        "commands": ("ggufrope run plan.toml --out RUN", "ggufrope report RUN --html report.html"),
        "patches": [
            patch_command(trial, model.file.path, max(report.plan.contexts))
            for model in report.models
            for trial in report.plan.requests
            if trial.scaling not in ("file", "none")
        ],
        "plan_text": format_plan(report.plan),
        "models": [{"name": m.file.name, "facts": _model_facts(m)} for m in report.models],
        "workers": [
            {"title": f"Environment {number}", "facts": worker.environment}
            for number, worker in enumerate(_distinct(w for w in report.workers), 1)
        ],
        "footer": f"Report schema {report.schema}. Begun {report.created:%Y-%m-%d %H:%M} UTC.",
    }


def patch_command(trial: ScalingRequest, path: str, largest: int) -> str:
    """The command that writes what a trial tried, in a run up to `largest` tokens."""
    if trial.factor is None and trial.target_context is None:
        trial = replace(trial, target_context=largest)
    name = re.sub(r"[^\w.-]+", "-", trial.name)
    out = Path(path).with_suffix(f".{name}.gguf")
    words = ["ggufrope", "patch", path, "-o", str(out), "--scaling", trial.scaling]
    for field in fields(trial):
        value = getattr(trial, field.name)
        if field.name in ("scaling", "label") or value in (None, False):
            continue
        words.append("--" + _OPTIONS.get(field.name, field.name).replace("_", "-"))
        if value is not True:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    return shlex.join(words)


def _badge(report: RunReport) -> Content:
    if not report.complete:
        return {"style": "open", "text": "Unfinished"}
    return _PASS if report.passed else _FAIL


def _verdicts(report: RunReport) -> Content:
    """Settings down, checks across: how many of a check's contexts pass, and which do not."""
    names = dict.fromkeys(c.name for entry in report.verdicts for c in entry.verdict.checks)
    several = len(report.models) > 1
    return {
        "heads": [name.replace("-", " ") for name in names],
        "rows": [
            {
                "setting": entry.label if several else f"{entry.scaling} · {entry.kv}",
                "badge": _PASS if entry.verdict.passed else _FAIL,
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
    failed = [check for check in checks if not check.passed]
    at = ", ".join(charts.tokens(c.context_tokens) for c in failed if c.context_tokens)
    if not checks:
        return {"style": "open", "text": "–", "where": ""}
    text = f"{len(checks) - len(failed)} of {len(checks)}" if len(checks) > 1 else ""
    word = "fails" if failed else "passes"
    return {
        "style": "fail" if failed else "pass",
        "text": f"{text} pass" if text else word,
        "where": f"not at {at}" if at else "",
    }


def _against(found: Comparison) -> Content:
    return {
        "lead": f"{len(found.regressions)} of {len(found.changes)} figures are worse and "
        f"{len(found.improvements)} better by more than noise.",
        "changes": [
            {
                "place": f"{change.scaling} · {change.kv} · {change.part or change.task} at "
                f"{change.context_tokens:,} tokens",
                "metric": charts.words(change.metric),
                "before": shown(change.metric, change.before),
                "after": shown(change.metric, change.after),
                "cells": f"{change.lost} lost, {change.gained} gained"
                if change.lost + change.gained
                else "",
                "style": "fail-text" if change.worse else "pass-text",
            }
            for change in (*found.regressions, *found.improvements)
        ],
        "differences": found.differences,
    }


def _lead(report: RunReport) -> str:
    seconds = sum(result.elapsed_seconds or 0.0 for result in report.cells)
    scored = sum(result.status == "ok" for result in report.cells)
    planned = sum(len(entry.job.cells) for entry in report.jobs)
    names = ", ".join(model.file.name for model in report.models)
    return (
        f"{names}. {scored} of {planned} cells measured in {duration(seconds)}, "
        f"up to {max(report.plan.contexts):,} tokens."
    )


def _slow(found: views.Slow) -> views.Trouble:
    speed = charts.words(found.metric).replace(" tokens per second", "")
    return views.Trouble(
        status="slow",
        where=f"{found.model} · {found.scaling} · {found.kv} · {found.context_tokens} tokens",
        cells=1,
        reason=f"{speed} runs at {found.share:.0%} of f16's speed: this build may have no fast "
        "way with this cache",
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
            "count": f"{view.found} of {view.asked} found" if view.asked else "not measured",
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
    return [
        {
            "title": "Perplexity by position",
            "text": "How well the text is predicted, along one context: a line that rises has "
            "lost its place. Each setting at its longest context; the scale is logarithmic.",
            "charts": _per_model(
                views.perplexity_curves(report),
                lambda series: draw(
                    charts.lines(series, x="position, tokens", y="perplexity", logarithmic=True)
                ),
            ),
        },
        {
            "title": "Divergence by context",
            "text": "Mean Kullback-Leibler divergence from the unchanged model, in nat a token.",
            "charts": _per_model(
                views.by_context(report, "divergence", "mean_divergence"),
                lambda series: draw(
                    charts.lines(series, x="context, tokens", y="mean divergence, nat")
                ),
            ),
        },
        {
            "title": "Quality against memory",
            "text": "What each cache type costs and what it is worth, at the longest context.",
            "charts": _per_model(
                views.tradeoffs(report), lambda points: draw(charts.tradeoff(points))
            ),
        },
        *(
            {
                "title": charts.words(name).replace(" tokens per second", " speed").capitalize(),
                "text": "At the longest context.",
                "charts": _per_model(
                    views.at_longest(s for s in views.speeds(report) if s.metric == name),
                    lambda found: draw(charts.bars(found)),
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
        {"title": model if len(groups) > 1 else None, "svg": chart(found)}
        for model, found in groups.items()
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
    """One worker of each environment."""
    return list({worker.environment: worker for worker in workers}.values())
