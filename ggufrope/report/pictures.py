"""A run as a picture to share, PNG or SVG, and as a notebook shows it.

The picture has the heat maps of recall, or for a run without needles its charts, below the
conclusion. It is drawn in the light colors of the page.
"""

from __future__ import annotations

import json
import re
import textwrap
from base64 import b64encode
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, Any

from ggufrope._format import html_table, html_text
from ggufrope.errors import MissingDependencyError, RequestError
from ggufrope.report import charts, views
from ggufrope.report.conclusion import title_parts
from ggufrope.report.html import style_sheet
from ggufrope.report.metrics import metric_info
from ggufrope.report.overview import overview
from ggufrope.report.tables import HEADLINES, task_title

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.report.charts import Spec
    from ggufrope.report.record import RunReport

_WIDTH = 1000
"""Pixels that the charts of a row, and a line of text, may take."""
_LETTER = 6.6
"""Pixels of a letter of the text, on average."""
_STEP = 42
"""Pixels of a context of a heat map."""
_AXIS = 75


def to_svg(picture: Spec) -> str:
    """Return a picture as SVG. Raises MissingDependencyError without the `report` extra."""
    return str(charts.library().vegalite_to_svg(picture))


def to_png(picture: Spec, *, scale: float = 2.0) -> bytes:
    """Return a picture as PNG, with `scale` pixels for each of its own. Raises as `to_svg` does."""
    return bytes(charts.library().vegalite_to_png(picture, scale=scale))


def picture(report: RunReport) -> Spec:
    """Return the picture of a run. Raises RequestError where nothing of it can be drawn."""
    view = overview(report)
    maps = sorted(
        views.heatmaps(report),
        key=lambda each: views.HEATMAP_TASKS.index(each.task.partition(" ")[0]),
    )
    drawn = [_map(each, report) for each in maps] or list(_charts(report))
    if not drawn:
        raise RequestError("nothing of this run can be drawn: it has no needles and no curves")
    contexts = len({square.context_tokens for each in maps for square in each.squares})
    return framed(
        view.title,
        view.conclusion,
        drawn,
        columns=_balanced(len(drawn), _WIDTH // (contexts * _STEP + _AXIS)) if maps else 2,
        key=[_key()] if maps else [],
        foot=" · ".join(view.facts[1:]),
    )


def _balanced(count: int, most: int) -> int:
    """Return the columns for so many charts, `most` side by side, in rows that are equally full."""
    rows = ceil(count / max(1, most))
    return ceil(count / max(1, rows))


def framed(
    title: str,
    lines: Sequence[str],
    drawn: Sequence[Spec],
    *,
    columns: int = 2,
    key: Sequence[Spec] = (),
    foot: str,
) -> Spec:
    """Return a picture of charts side by side: title and lines above, key and foot below."""
    spec: Spec = {
        "title": {
            "text": _wrapped(title, 1.4),
            "subtitle": [part for line in lines for part in _wrapped(line)],
            "fontSize": 18,
            "subtitleFontSize": 13,
            "subtitlePadding": 8,
            "offset": 18,
        },
        "padding": 20,
        "background": "var(--paper)",
        "align": "none",
        "vconcat": [
            {
                "concat": list(drawn),
                "columns": columns,
                "spacing": 24,
                "resolve": {"scale": {"color": "independent", "shape": "independent"}},
            },
            *key,
            _foot(foot),
        ],
    }
    colored: Spec = _colored(charts.complete(spec))
    return colored


def to_fragment(report: RunReport) -> str:
    """Return the overview as a piece of HTML without script, as a notebook shows it.

    It has the picture where vl-convert is installed and there is one.
    """
    view = overview(report)
    image = ""
    with suppress(MissingDependencyError, RequestError):
        data = b64encode(to_svg(picture(report)).encode()).decode()
        image = f'<img alt="{html_text(view.title)}" src="data:image/svg+xml;base64,{data}">'
    lines = "".join(f"<li>{html_text(line)}</li>" for line in view.conclusion)
    facts = "<br>".join(map(html_text, ("; ".join(view.legend), *view.facts)))
    return (
        f"<h3>{html_text(view.title)}</h3><ul>{lines}</ul>{image}"
        f"{html_table(view.heads, view.rows)}<p><small>{facts}</small></p>"
    )


def _map(view: views.Heatmap, report: RunReport) -> Spec:
    several = len(report.models) > 1
    names = [view.model] if several else []
    names += [title_parts(report, view.model, view.scaling)[0], view.kv]
    names += [view.task] if len({each.task for each in views.heatmaps(report)}) > 1 else []
    subtitle = f"{view.exact} of {view.measured} exact" if view.measured else "not measured"
    return {
        **charts.heatmap(view),
        "title": {"text": " · ".join(names), "subtitle": subtitle},
    }


def _charts(report: RunReport) -> Iterator[Spec]:
    """Yield charts of a run without needles, the most telling first, one per model."""
    order = views.order(report)
    measured = dict.fromkeys((r.task, views.divergence_base(r)) for r in report.summary)
    for name in HEADLINES:
        for task, base in measured:
            series = views.by_context(report, task, name, base=base)
            for model, lines in _of_each_model(report, series):
                if any(len(line.points) > 1 for line in lines):
                    title = metric_info(name).title
                    chart = charts.lines(lines, order, x="context, tokens", y=title)
                    yield {**chart, "title": model + task_title(report, task, name, base)}
    for name in views.SPEEDS:
        speeds = views.at_longest(s for s in views.speeds(report) if s.metric == name)
        for model, bars in _of_each_model(report, speeds):
            yield {**charts.bars(bars, order), "title": model + metric_info(name).title}


def _of_each_model(report: RunReport, items: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the items of each model that has some, after its name where a title needs that."""
    for model in dict.fromkeys(item.model for item in items):
        name = f"{model}: " if len(report.models) > 1 else ""
        yield name, [item for item in items if item.model == model]


def _key() -> Spec:
    """Draw the colors of the heat maps and what they mean."""
    values = [
        {"label": label, "probability": probability}
        for label, probability in zip(charts.heat_key(), (0, *charts.STEPS), strict=True)
    ]
    x = {"field": "label", "type": "ordinal", "axis": None, "sort": None}
    return {
        "data": {"values": values},
        "title": {
            "text": f"probability of the answer; {charts.MARKS}",
            "fontSize": 12,
            "fontWeight": "normal",
            "color": "var(--muted)",
            "offset": 4,
        },
        "width": {"step": 90},
        "height": 32,
        "layer": [
            {
                "mark": {"type": "rect", "height": 14, "y": 7},
                "encoding": {"x": x, "color": charts.by_probability(charts.HEAT)},
            },
            {
                "mark": {"type": "text", "y": 24, "color": "var(--muted)", "fontSize": 12},
                "encoding": {"x": x, "text": {"field": "label"}},
            },
        ],
    }


def _foot(text: str) -> Spec:
    lines = _wrapped(text)
    return {
        "data": {"values": [{}]},
        "width": 1,
        "height": 15 * len(lines),
        "mark": {
            "type": "text",
            "text": lines,
            "align": "left",
            "baseline": "top",
            "y": 0,
            "x": 0,
            "color": "var(--muted)",
            "fontSize": 11,
            "lineHeight": 15,
        },
    }


def _wrapped(text: str, size: float = 1.0) -> list[str]:
    """Return text as lines that fit into the picture, its letters `size` times as large."""
    return textwrap.wrap(text, int(_WIDTH / _LETTER / size)) or [""]


def _colored(value: Any) -> Any:
    """Return a specification with light colors of the style sheet in place of its variables."""
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", style_sheet()))
    text = json.dumps(value)
    return json.loads(
        re.sub(r"var\(--([\w-]+)\)", lambda found: colors.get(found[1], found[0]), text)
    )
