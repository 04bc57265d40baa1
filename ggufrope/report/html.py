"""The report as one self-contained HTML page: charts as inline SVG, no script, nothing to fetch.

`page` makes the content of the page as plain values, section by section; the template lays it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope._format import safe
from ggufrope.errors import MissingDependencyError
from ggufrope.evals.verdict import worst
from ggufrope.patching.command import command_line
from ggufrope.report import charts, views
from ggufrope.report.conclusion import conclude, title_parts
from ggufrope.report.metrics import format_value, legend, metric_info
from ggufrope.report.overview import against_lead, overview
from ggufrope.report.tables import Content, headline_metrics, ruler_details, tables
from ggufrope.runs.plan import format_plan

if TYPE_CHECKING:
    from ggufrope.evals.verdict import Check
    from ggufrope.report.comparison import Change, Comparison
    from ggufrope.report.conclusion import Conclusion, Reach
    from ggufrope.report.record import RunReport

Draw: TypeAlias = Callable[[charts.Spec, str], str]
"""A chart's specification, and its name for people who do not see it, to markup."""

_STYLES = {"pass": "pass", "fail": "fail", "undecided": "open", None: "open"}
_WORDS = {"pass": "Pass", "fail": "Fail", "undecided": "Undecided", None: "Measured"}
_MARKS = {"pass": "✓", "fail": "✗", "undecided": "?"}
_MOST_REACHES = 6
"""Settings that the first screen has room for."""
_SPEED_TITLES = {
    "prefill_tokens_per_second": "Prefill speed",
    "decode_tokens_per_second": "Decode speed",
}


def to_html(report: RunReport, *, against: Comparison | None = None) -> str:
    """Return the report as one HTML document, with its comparison to an earlier run if given.

    Raises MissingDependencyError without the `report` extra.
    """
    return render("page", lambda draw: page(report, draw=draw, against=against))


def render(template: str, content: Callable[[Draw], Content]) -> str:
    """Return the document that a template of this folder makes of its content.

    Raises MissingDependencyError without the `report` extra.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("HTML needs jinja2: pip install 'ggufrope[report]'") from error

    def printable(value: object) -> object:
        """Return text without characters that a page or a terminal would act upon."""
        return safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ggufrope", "report"),
        autoescape=True,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Only our own markup is not escaped: the style sheet, and drawings with escaped text.
    values = content(lambda spec, label: Markup(charts.draw(spec, label)))
    page_template = environment.get_template(f"{template}.html.jinja")
    return page_template.render(style=Markup(style_sheet()), **values)


def style_sheet() -> str:
    """Return the style sheet of the pages, which has the colors of the charts too."""
    return resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def page(report: RunReport, *, draw: Draw, against: Comparison | None = None) -> Content:
    """Return the variables of the template."""
    view, conclusion = overview(report), conclude(report)
    return {
        "against": None if against is None else _against(against),
        "title": view.title,
        "conclusion": view.conclusion,
        "badge": _badge(report, conclusion),
        "lead": view.facts[0],
        "verdicts": _verdicts(report),
        "matrices": [_matrix(each) for each in tables(report)],
        "legend": legend(headline_metrics(report)),
        "ruler": [_matrix(each) for each in ruler_details(report)],
        "heat_key": charts.heat_key(),
        "marks": charts.MARKS,
        "maps": _maps(report, draw),
        "sections": [s for s in _sections(report, draw) if s["charts"]],
        "problems": _problems(report),
        "commands": (
            command_line("run", "plan.toml", "--out", "RUN"),
            command_line("report", "RUN", "--html", "report.html"),
        ),
        "keep": view.commands,
        "reaches": _reaches(report, conclusion),
        "plan_text": format_plan(report.plan),
        "origins": [
            *({"title": m.file.name, "facts": _model_facts(m)} for m in report.models),
            *(
                {"title": f"Environment {number}", "facts": worker.environment}
                for number, worker in enumerate(_distinct(report.workers), 1)
            ),
        ],
        "footer": f"Report schema {report.schema}. Started {report.created:%Y-%m-%d %H:%M} UTC.",
    }


def _badge(report: RunReport, conclusion: Conclusion) -> Content:
    if not report.complete:
        return {"style": "open", "text": "Unfinished"}
    if report.gates:
        return {"style": _STYLES[report.outcome], "text": _WORDS[report.outcome]}
    reached = max((reach.holds_to or 0 for reach in conclusion.best), default=0)
    if reached:
        return {"style": "pass", "text": f"Holds to {charts.tokens(reached)}"}
    return {"style": "open", "text": "Compared"}


def _reaches(report: RunReport, conclusion: Conclusion) -> Content | None:
    """Return the table of which setting holds to which length, the best first."""
    settings = [reach for reach in conclusion.settings if reach.lengths]
    lengths = sorted({length for reach in settings for length in reach.lengths})
    if len(settings) < 2 and len(lengths) < 2:
        return None
    several = len(report.models) > 1
    heads = [*(charts.tokens(length) for length in lengths), "holds to", "needles answered"]
    return {
        "heads": ["setting", *({"text": head, "style": "number"} for head in heads)],
        "rows": [
            [
                f"{reach.model} · " * several + f"{reach.title} · {reach.kv}",
                *(_reached(reach, length) for length in lengths),
                _count("–" if reach.holds_to is None else charts.tokens(reach.holds_to)),
                _count(f"{reach.found:,} of {reach.asked:,}" if reach.asked else "–"),
            ]
            for reach in settings[:_MOST_REACHES]
        ],
        "note": f"{conclusion.judged}: ✓ passes, ✗ fails, ? undecided"
        + f"; {len(settings) - _MOST_REACHES} more settings below"
        * (len(settings) > _MOST_REACHES),
    }


def _reached(reach: Reach, length: int) -> Content:
    """Return the outcome at a length; what is undecided shows the recall measured."""
    outcome = reach.lengths.get(length)
    text = "–" if outcome is None else _MARKS[outcome]
    if outcome == "undecided" and length in reach.recalls:
        text = f"{100 * reach.recalls[length]:.0f}%{text}"
    return {"text": text, "style": f"number {_STYLES[outcome]}-text"}


def _count(text: str) -> Content:
    return {"text": text, "style": "number"}


def _verdicts(report: RunReport) -> Content:
    """Return the table of verdicts: settings down, checks across, with the contexts that fail."""
    names = dict.fromkeys(c.name for entry in report.verdicts for c in entry.verdict.checks)
    several = len(report.models) > 1
    return {
        "heads": ["setting", "verdict", *(name.replace("_", " ") for name in names)],
        "rows": [
            [
                f"{entry.model} · " * several
                + f"{title_parts(report, entry.model, entry.scaling)[0]} · {entry.kv}",
                {"text": _WORDS[entry.verdict.outcome], "badge": _STYLES[entry.verdict.outcome]},
                *(_tally([c for c in entry.verdict.checks if c.name == name]) for name in names),
            ]
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
        return {"style": "open-text", "text": "–"}
    others = [check for check in checks if check.outcome == outcome != "pass"]
    contexts = ", ".join(charts.tokens(check.context_tokens) for check in others)
    word = {"pass": "passes", "fail": "fails", "undecided": "undecided"}[outcome]
    several = f"{sum(check.outcome == 'pass' for check in checks)} of {len(checks)} pass"
    return {
        "style": f"{_STYLES[outcome]}-text",
        "text": several if len(checks) > 1 else word,
        "small": f"{word} at {contexts}" if contexts else "",
    }


def _matrix(matrix: Content) -> Content:
    """Return a table of `tables` for the template: one column for the names of a row."""
    return {
        "title": matrix["title"],
        "heads": [
            " · ".join(filter(None, matrix["heads"])),
            *(
                {"text": column["title"], "style": "number" + " control" * column["control"]}
                for column in matrix["columns"]
            ),
        ],
        "rows": [
            [" · ".join(filter(None, row["names"])), *map(_number, row["entries"])]
            for row in matrix["rows"]
        ],
    }


def _number(entry: Content) -> Content:
    shade = entry["shade"]
    return {
        "text": entry["text"],
        "small": entry["interval"],
        "style": "number" if shade is None else f"number shade shade-{shade}",
    }


def _against(comparison: Comparison) -> Content:
    significant = (*comparison.regressions, *comparison.improvements)
    numbers = ({"text": head, "style": "number"} for head in ("before", "now"))
    return {
        "lead": against_lead(comparison),
        "heads": ["where", "metric", *numbers, "needles"],
        "changes": [_change(change) for change in significant],
        "legend": legend(change.metric for change in significant),
        "differences": [
            [difference.name, difference.before or "–", difference.after or "–"]
            for difference in comparison.differences
        ],
    }


def _change(change: Change) -> list[str | Content]:
    moved = f"{change.lost} lost, {change.gained} gained" if change.lost + change.gained else ""
    task = change.part or change.task
    style = "fail-text" if change.worse else "pass-text"
    return [
        f"{change.scaling} · {change.kv} · {task} at {change.context_tokens:,} tokens",
        metric_info(change.metric).title,
        {"text": format_value(change.metric, change.before), "style": "number"},
        {"text": format_value(change.metric, change.after), "style": f"number {style}"},
        moved,
    ]


def _problems(report: RunReport) -> list[list[str | Content]]:
    """Return the table of cells without a score, and of cache types that are slow."""
    rows = [
        (problem.status, problem.where, problem.cells, problem.reason)
        for problem in views.problems(report)
    ]
    for slow in views.slow_caches(report):
        parts = [f"{_SPEED_TITLES[name].lower()} is {share:.0%}" for name, share in slow.shares]
        reason = (
            f"{' and '.join(parts)} of that with f16: this build may lack a fast kernel for this "
            "cache type"
        )
        where = f"{slow.model} · {slow.kv} · {slow.context_tokens:,} tokens"
        rows.append(("slow", where, len(slow.shares), reason))
    return [
        [status, where, {"text": f"{cells:,}", "style": "number"}, reason]
        for status, where, cells, reason in rows
    ]


def _maps(report: RunReport, draw: Draw) -> list[Content]:
    groups: dict[tuple[str, str], list[Content]] = {}
    for view in views.heatmaps(report):
        drawn = {
            "title": f"{title_parts(report, view.model, view.scaling)[0]} · {view.kv}",
            "count": f"{view.exact} of {view.measured} exact" if view.measured else "not measured",
            "svg": draw(charts.heatmap(view), _heatmap_label(view)),
        }
        groups.setdefault((view.model, view.task), []).append(drawn)
    return [{"title": f"{model}, {task}", "maps": maps} for (model, task), maps in groups.items()]


def _heatmap_label(view: views.Heatmap) -> str:
    """Return what a heat map shows, for people who do not see it."""
    return (
        f"Heat map of {view.task} recall by context and depth: {view.model} under {view.scaling} "
        f"with a cache of {view.kv}, {view.exact} of {view.measured} exact"
    )


def _sections(report: RunReport, draw: Draw) -> list[Content]:
    """Return the sections with charts; one without charts has nothing to show."""
    order = views.order(report)
    return [
        _section(
            "Perplexity by position",
            "How well the text is predicted along one context: a rising line means that quality "
            "falls with position. Each setting at its longest context.",
            views.perplexity_curves(report),
            lambda series: charts.lines(
                series, order, x="position, tokens", y="perplexity", ticks=report.plan.contexts
            ),
            draw,
        ),
        *(
            _section(
                f"Cost of the {base}",
                f"The mean Kullback-Leibler divergence {views.base_words(report, base)}: 0 is no "
                "change.",
                [
                    series
                    for series in views.by_context(
                        report, "divergence", "mean_divergence", base=base
                    )
                    if len(series.points) > 1
                ],
                lambda series: charts.lines(
                    series, order, x="context, tokens", y="divergence, nat per token"
                ),
                draw,
            )
            for base in views.BASES
        ),
        _section(
            "Quality against memory",
            "Quality and memory of each cache type, at the longest context. Lines are 95 % "
            "intervals.",
            views.tradeoffs(report),
            lambda points: charts.tradeoff(points, order),
            draw,
        ),
        *(
            _section(
                _SPEED_TITLES[name],
                "At the longest context.",
                views.at_longest(s for s in views.speeds(report) if s.metric == name),
                lambda speeds: charts.bars(speeds, order),
                draw,
            )
            for name in views.SPEEDS
        ),
    ]


def _section(
    title: str, text: str, items: Iterable[Any], chart: Callable[[list[Any]], Any], draw: Draw
) -> Content:
    """Return a section with one chart per model."""
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.model, []).append(item)
    drawn = [
        {
            "title": model if len(groups) > 1 else None,
            "svg": draw(chart(group), f"{title}: {model}, {_settings(group)}"),
        }
        for model, group in groups.items()
    ]
    return {"title": title, "text": text, "charts": drawn}


def _settings(items: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(f"{item.scaling} · {item.kv}" for item in items))


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
