"""Views as Vega-Lite specifications, drawn to SVG by vl-convert with no browser and no network.

Colors are CSS variables of the page: one drawing serves light, dark and print.
"""

from __future__ import annotations

from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope.errors import MissingDependencyError
from ggufrope.report.metrics import metric_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.report.views import Heatmap, Series, Speed, Square, Tradeoff

Spec: TypeAlias = dict[str, Any]

STEPS = (0.02, 0.1, 0.3, 0.6, 0.9)
"""Limits between the colors of a heatmap, in terms of the probability of the answer."""
_HEAT = tuple(f"var(--heat-{i})" for i in range(len(STEPS) + 1))
_ON_HEAT = tuple(f"var(--on-heat-{i})" for i in range(len(STEPS) + 1))
_SERIES = tuple(f"var(--series-{i})" for i in range(8))
_DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3], [1, 3], [6, 2, 1, 2, 1, 2])

_CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "mark": {"invalid": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "symbolStrokeWidth": 2,
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


def lines(series: Sequence[Series], *, x: str, y: str, logarithmic: bool = False) -> Spec:
    """Draw one line per setting: the color is the scaling, the dash the cache type."""
    points = [
        {"x": px, "y": py, "scaling": one.scaling, "kv": one.kv}
        for one in series
        for px, py in one.points
    ]
    kvs = list(dict.fromkeys(one.kv for one in series))
    encoding: Spec = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "axis": {"grid": False, "format": "~s", "tickCount": 6},
            "scale": {"nice": False},
        },
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": y,
            **_height([point["y"] for point in points], logarithmic=logarithmic),
        },
        "color": _color("scaling", [one.scaling for one in series]),
    }
    if len(kvs) > 1:
        encoding["strokeDash"] = _dash("kv", kvs)
    return {
        "data": {"values": points},
        "width": 640,
        "height": 260,
        "mark": {"type": "line", "strokeWidth": 2, "interpolate": "monotone"},
        "encoding": encoding,
    }


def tradeoff(points: Sequence[Tradeoff]) -> Spec:
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
    x = {
        "field": "bytes",
        "type": "quantitative",
        "title": "KV cache, bytes per token",
        "axis": {"grid": False, "tickCount": 6},
        "scale": {"zero": True, "nice": True},
    }
    return {
        "data": {"values": values},
        "width": 560,
        "height": 260,
        "encoding": {"x": x, "color": _color("scaling", [point.scaling for point in points])},
        "layer": [_intervals(), _points(metric_info(points[0].quality.name).title), _labels()],
    }


def bars(speeds: Sequence[Speed]) -> Spec:
    """Draw tokens per second by cache type, grouped by scaling, at one context."""
    values = [
        {
            "kv": speed.kv,
            "scaling": speed.scaling,
            "speed": speed.tokens_per_second,
        }
        for speed in speeds
    ]
    scalings = list(dict.fromkeys(speed.scaling for speed in speeds))
    kvs = list(dict.fromkeys(speed.kv for speed in speeds))
    return {
        "data": {"values": values},
        "width": 440,
        "height": {"step": 14},
        "mark": {"type": "bar", "cornerRadiusEnd": 3},
        "encoding": {
            "y": {"field": "kv", "type": "nominal", "title": None, "sort": kvs,
                  "axis": {"domain": False, "ticks": False}},
            "yOffset": {"field": "scaling", "sort": scalings},
            "x": {"field": "speed", "type": "quantitative", "title": "tokens per second",
                  "axis": {"tickCount": 5, "domain": False, "ticks": False}},
            "color": _color("scaling", scalings),
        },
    }  # fmt: skip


def draw(spec: Spec) -> str:
    """Return a chart as an SVG element. Raises MissingDependencyError without vl-convert."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingDependencyError(
            "charts need vl-convert-python: pip install 'ggufrope[report]'"
        ) from error
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    return str(vl_convert.vegalite_to_svg({"$schema": schema, **spec, "config": _CONFIG}))


def tokens(count: int) -> str:
    """Return a context length in its short form: 8k for 8192, 1000 for 1000."""
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else str(count)


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
            "color": _by_probability(_HEAT, otherwise="var(--void)"),
            "description": {"field": "words"},
        },
    }


def _marks() -> Spec:
    return {
        "mark": {"type": "text", "fontSize": 11, "fontWeight": 600},
        "encoding": {
            "text": {"field": "mark"},
            "color": _by_probability(_ON_HEAT, otherwise="var(--muted)"),
        },
    }


def _height(values: Sequence[Any], *, logarithmic: bool) -> Spec:
    """Return scale and axis of the y channel, for these values."""
    axis: Spec = {"tickCount": 5, "domain": False, "ticks": False}
    if not logarithmic:
        return {"scale": {"zero": False}, "axis": axis}
    low, high = min(values), max(values)
    scale = {"type": "log", "domain": [low / 1.1, high * 1.1], "nice": False}
    return {"scale": scale, "axis": {**axis, "values": _round_numbers(low, high)}}


def _round_numbers(low: float, high: float) -> list[float]:
    """Return the numbers between that are 1, 2 or 5 times a power of ten."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    numbers = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [number for number in numbers if low / 1.1 <= number <= high * 1.1]


def _intervals() -> Spec:
    return {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "opacity": 0.45, "strokeWidth": 1.5},
        "encoding": {
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
        },
    }


def _points(title: str) -> Spec:
    return {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
        "encoding": {
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": title,
                "scale": {"zero": False},
                "axis": {"tickCount": 5, "domain": False, "ticks": False},
            }
        },
    }


def _labels() -> Spec:
    return {
        "mark": {"type": "text", "dx": 8, "dy": -7, "align": "left", "fontSize": 11},
        "encoding": {
            "y": {"field": "value", "type": "quantitative"},
            "text": {"field": "kv"},
            "color": {"value": "var(--muted)"},
        },
    }


def _by_probability(colors: Sequence[str], *, otherwise: str) -> Spec:
    return {
        "condition": {"test": "!isValid(datum.probability)", "value": otherwise},
        "field": "probability",
        "type": "quantitative",
        "scale": {"type": "threshold", "domain": list(STEPS), "range": list(colors)},
        "legend": None,
    }


def _color(field: str, names: Sequence[str]) -> Spec:
    domain = list(dict.fromkeys(names))
    legend = {"symbolType": "circle", "symbolSize": 80, "symbolOpacity": 1}
    return {
        "field": field,
        "type": "nominal",
        "title": field,
        "scale": {"domain": domain, "range": _cycle(_SERIES, len(domain))},
        "legend": legend if len(domain) > 1 else None,
    }


def _dash(field: str, domain: Sequence[str]) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "title": "KV cache",
        "scale": {"domain": list(domain), "range": _cycle(_DASHES, len(domain))},
        "legend": {
            "symbolType": "stroke",
            "symbolStrokeColor": "var(--ink)",
            "symbolSize": 400,
        },
    }


def _cycle(items: Sequence[Any], count: int) -> list[Any]:
    return [items[i % len(items)] for i in range(count)]
