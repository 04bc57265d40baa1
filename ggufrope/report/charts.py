"""Views as Vega-Lite specifications, drawn to SVG by vl-convert with no browser and no network.

Colors are CSS variables of the page: one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope._format import safe
from ggufrope.errors import MissingDependencyError
from ggufrope.report.metrics import metric_info

if TYPE_CHECKING:
    from ggufrope.report.views import Heatmap, Series, Speed, Square, Tradeoff

Spec: TypeAlias = dict[str, Any]
Order: TypeAlias = Mapping[str, Sequence[str]]
"""Every scaling ("scaling") and cache type ("kv") of a run: one has the same look in all charts."""

STEPS = (0.02, 0.1, 0.3, 0.6, 0.9)
"""Limits between the colors of a heatmap, in terms of the probability of the answer."""
WIDTH = 420
"""Of a chart without its axes, in pixels: its text is still read where a phone shrinks it."""
MARKS = "× no needle answered exactly, 50% half of them"
"""What the marks on a heatmap mean."""
HEAT = tuple(f"var(--heat-{i})" for i in range(len(STEPS) + 1))
"""Colors of a heatmap, from a low to a high probability."""
_ON_HEAT = tuple(f"var(--on-heat-{i})" for i in range(len(STEPS) + 1))
_SERIES = tuple(f"var(--series-{i})" for i in range(8))
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_TOKENS = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
"""`tokens`, in the language of the axes."""
_WIDE_SPAN = 10
"""Largest over smallest value from which a scale is logarithmic."""

_CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "mark": {"invalid": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
    },
    # Text is measured in another font than the reader may have: room for a wider one.
    "axisY": {"titlePadding": 14, "labelPadding": 8},
    "legend": {
        "orient": "bottom",
        "columns": 4,
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolSize": 80,
        "symbolStrokeWidth": 0,
        "symbolOpacity": 1,
    },
    "title": {
        "color": "var(--ink)",
        "subtitleColor": "var(--muted)",
        "anchor": "start",
        "fontSize": 13,
        "subtitleFontSize": 12,
        "offset": 8,
    },
}


def heatmap(view: Heatmap) -> Spec:
    """Draw length × depth: the color is the probability of the answer, misses are marked."""
    # Depths and contexts are names on the axes, sorted by their numbers.
    quiet = {"domain": False, "ticks": False, "labelPadding": 6}
    x = {
        "field": "context",
        "type": "ordinal",
        "sort": {"field": "length"},
        "title": "context, tokens",
        "axis": {**quiet, "labelAngle": 0},
    }
    y = {
        "field": "depth",
        "type": "ordinal",
        "sort": {"field": "order"},
        "title": "depth",
        "axis": quiet,
    }
    return {
        "data": {"values": [_square_values(square) for square in view.squares]},
        "width": {"step": 42},
        "height": {"step": 22},
        # The marks on the squares have colors of their own.
        "resolve": {"scale": {"color": "independent"}},
        "encoding": {"x": x, "y": y},
        "layer": [_squares(), _marks()],
    }


def lines(
    series: Sequence[Series],
    order: Order,
    *,
    x: str,
    y: str,
    ticks: Iterable[float] = (),
    tokens: bool = True,
) -> Spec:
    """Draw one line per setting, over a logarithmic axis where `x` counts tokens.

    `ticks` are the labels of that axis, by default the places where something was measured.
    """
    points = [(one, px, py) for one in series for px, py in one.points]
    places = sorted({px for _, px, _ in points})
    shown = [tick for tick in ticks if places[0] <= tick <= places[-1]] or places
    color, shape = _channels(series, order)
    axis: Spec = {"grid": False, "tickCount": 8, "tickMinStep": 1}
    scale: Spec = {"nice": False, "zero": False}
    if tokens:
        axis = {"grid": False, "values": shown, "labelExpr": _TOKENS, "labelOverlap": "greedy"}
        scale = {"nice": False, "type": "log", "base": 2}
    return {
        "data": {
            "values": [
                {"x": px, "y": py, "scaling": one.scaling, "kv": one.kv} for one, px, py in points
            ]
        },
        "width": WIDTH,
        "height": 260,
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": x,
                "axis": axis,
                "scale": scale,
            },
            "y": {
                "field": "y",
                "type": "quantitative",
                "title": y,
                **_height([py for _, _, py in points]),
            },
            "color": color,
        },
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"detail": [{"field": "scaling"}, {"field": "kv"}]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {"shape": shape},
            },
        ],
    }


def tradeoff(points: Sequence[Tradeoff], order: Order) -> Spec:
    """Draw quality, with its interval, against the bytes of KV cache per token."""
    values = [
        {
            "bytes": point.bytes_per_token,
            "value": point.quality.value,
            "low": point.quality.low,
            "high": point.quality.high,
            "kv": point.kv,
            "scaling": point.scaling,
        }
        for point in points
    ]
    color, shape = _channels(points, order)
    return {
        "data": {"values": values},
        "width": WIDTH,
        "height": 260,
        "encoding": {
            "x": {
                "field": "bytes",
                "type": "quantitative",
                "title": "KV cache, bytes per token",
                "axis": {"grid": False, "tickCount": 6},
                "scale": {"zero": True, "nice": True},
            },
            "color": color,
        },
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "opacity": 0.45, "strokeWidth": 1.5},
                "encoding": {
                    "y": {"field": "low", "type": "quantitative"},
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "shape": shape,
                    "y": {
                        "field": "value",
                        "type": "quantitative",
                        "title": metric_info(points[0].quality.name).title,
                        "scale": {"zero": False},
                        "axis": {"tickCount": 5, "domain": False, "ticks": False},
                    },
                },
            },
        ],
    }


def bars(speeds: Sequence[Speed], order: Order) -> Spec:
    """Draw tokens per second by cache type, grouped by scaling, at one context."""
    values = [
        {"kv": speed.kv, "scaling": speed.scaling, "speed": speed.tokens_per_second}
        for speed in speeds
    ]
    return {
        "data": {"values": values},
        "width": WIDTH - 60,
        "height": {"step": 20},
        "encoding": {
            "y": {
                "field": "kv",
                "type": "nominal",
                "title": None,
                "sort": list(order["kv"]),
                "axis": {"domain": False, "ticks": False, "labelFontSize": 12},
            },
            "yOffset": {"field": "scaling", "sort": list(order["scaling"])},
            "x": {
                "field": "speed",
                "type": "quantitative",
                "title": "tokens per second",
                "axis": {"tickCount": 4, "domain": False, "ticks": False},
            },
        },
        "layer": [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 3},
                "encoding": {"color": _named("scaling", speeds, order, _SERIES)},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "color": "var(--muted)"},
                "encoding": {"text": {"field": "speed", "format": ",.0f"}},
            },
        ],
    }


def draw(spec: Spec, label: str) -> str:
    """Return a chart as an SVG element with a name for people who do not see it.

    Raises MissingDependencyError without vl-convert.
    """
    svg = str(library().vegalite_to_svg(complete(spec)))
    name = f'<svg role="graphics-document" aria-label="{escape(safe(label))}" '
    return svg.replace("<svg ", name, 1)


def library() -> Any:
    """Return vl-convert. Raises MissingDependencyError where it is not installed."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingDependencyError(
            "charts need vl-convert-python: pip install 'ggufrope[report]'"
        ) from error
    return vl_convert


def complete(spec: Spec) -> Spec:
    """Return a whole specification, its text made safe.

    A control character in it would end the process: vl-convert does not survive one.
    """
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    whole: Spec = _safe({"$schema": schema, **spec, "config": _CONFIG})
    return whole


def heat_key() -> list[str]:
    """Return the probability that each color of a heatmap stands for."""
    ends = [f"{step:g}" for step in (0, *STEPS, 1)]
    return [f"{low} – {high}" for low, high in pairwise(ends)]


def tokens(count: int) -> str:
    """Return a context length in its short form: 8k for 8192, 1000 for 1000."""
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else str(count)


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    return [_safe(item) for item in value] if isinstance(value, (list, tuple)) else value


def _square_values(square: Square) -> Spec:
    """Return the values of one square; `words` is read to people who do not see it."""
    if square.recall is None:
        outcome = square.reason or "not measured"
    else:
        outcome = f"recall {square.recall:.0%} of {square.n}"
    return {
        "context": tokens(square.context_tokens),
        "length": square.context_tokens,
        "depth": f"{square.depth_percent:g}%",
        "order": square.depth_percent,
        "probability": square.probability,
        "mark": _mark(square.recall),
        "words": f"{square.context_tokens} tokens, depth {square.depth_percent:g} %: {outcome}",
    }


def _mark(recall: float | None) -> str:
    if recall is None:
        return "–"
    if recall == 1:
        return ""
    return "×" if recall == 0 else f"{recall:.0%}"


def _squares() -> Spec:
    return {
        "mark": {
            "type": "rect",
            "stroke": "var(--paper)",
            "strokeWidth": 2,
            "cornerRadius": 4,
        },
        "encoding": {
            "color": by_probability(HEAT),
            "description": {"field": "words"},
        },
    }


def _marks() -> Spec:
    return {
        "mark": {"type": "text", "fontSize": 11, "fontWeight": 600},
        "encoding": {
            "text": {"field": "mark"},
            "color": by_probability(_ON_HEAT, otherwise="var(--muted)"),
        },
    }


def _height(values: Sequence[float]) -> Spec:
    """Return scale and axis of the y channel: logarithmic where the values span that much."""
    axis: Spec = {"tickCount": 5, "domain": False, "ticks": False}
    low, high = min(values), max(values)
    if low <= 0 or high < _WIDE_SPAN * low:
        return {"scale": {"zero": False}, "axis": axis}
    scale = {"type": "log", "domain": [low / 1.1, high * 1.1], "nice": False}
    return {"scale": scale, "axis": {**axis, "values": _round_numbers(low, high)}}


def _round_numbers(low: float, high: float) -> list[float]:
    """Return the numbers between that are 1, 2 or 5 times a power of ten."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    numbers = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [number for number in numbers if low / 1.1 <= number <= high * 1.1]


def by_probability(colors: Sequence[str], *, otherwise: str = "var(--void)") -> Spec:
    """Return the color of a probability, and that of none."""
    return {
        "condition": {"test": "!isValid(datum.probability)", "value": otherwise},
        "field": "probability",
        "type": "quantitative",
        "scale": {"type": "threshold", "domain": list(STEPS), "range": list(colors)},
        "legend": None,
    }


def _channels(items: Sequence[Any], order: Order) -> tuple[Spec, Spec]:
    """Return color and shape of settings, by what differs between them.

    Where both scalings and cache types differ, the color is the scaling and the shape the type.
    """
    differ = [field for field in ("scaling", "kv") if len(order[field]) > 1] or ["scaling"]
    by_color, by_shape = differ[0], differ[-1]
    return (
        _named(by_color, items, order, _SERIES),
        _named(by_shape, items, order, _SHAPES),
    )


def _named(field: str, items: Sequence[Any], order: Order, looks: Sequence[str]) -> Spec:
    """Return a channel with the look of each name that the items have, and a legend if there are
    several."""
    present = {getattr(item, field) for item in items}
    named = {name: looks[i % len(looks)] for i, name in enumerate(order[field]) if name in present}
    return {
        "field": field,
        "type": "nominal",
        "title": "KV cache" if field == "kv" else field,
        "scale": {"domain": list(named), "range": list(named.values())},
        **({} if len(named) > 1 else {"legend": None}),
    }
