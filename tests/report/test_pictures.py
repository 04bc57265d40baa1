"""Pictures to share, and what a notebook shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ggufrope.errors import RequestError
from ggufrope.patching.inspection import inspect
from ggufrope.patching.request import ScalingRequest
from ggufrope.report import charts
from ggufrope.report.pictures import picture, to_png, to_svg
from ggufrope.report.record import RunReport
from ggufrope.report.views import Series

pytest.importorskip("vl_convert", reason="charts need vl-convert-python, of the extra 'report'")

Make = Callable[..., RunReport]
HOSTILE = "</svg><script>alert(1)</script>\x1b\x07 var(--nothing)"
SVG = "{http://www.w3.org/2000/svg}"


def text_of(svg: str) -> str:
    return " ".join(
        "".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")
    )


def test_the_picture_has_title_conclusion_maps_and_origin(make_report: Make) -> None:
    svg = to_svg(picture(make_report(kv=("f16",), samples=8)))
    text = text_of(svg)
    for words in ("under file, linear and yarn", "160 of 160 exact", "holds to 8192"):
        assert words in text, words
    assert "0.9 – 1" in text
    assert "ab" * 32 in text
    assert "var(" not in svg, "outside of the page a variable has no color"


def test_a_png_has_the_colors_of_the_page(make_report: Make) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")
    data = to_png(picture(make_report(kv=("f16",))), scale=1)
    with image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        pixels = opened.convert("RGB")
    colors = {color for _, color in pixels.getcolors(1 << 24)}
    assert pixels.getpixel((0, 0)) == (255, 255, 255)
    assert (15, 107, 96) in colors
    assert 500 < pixels.width < 1400


def test_a_run_without_needles_is_drawn_as_its_charts(make_report: Make) -> None:
    text = text_of(to_svg(picture(make_report(tasks=("perplexity", "kv-cache")))))
    assert "perplexity" in text
    assert "prefill/s" in text
    assert "probability of the answer" not in text


def test_a_run_of_nothing_has_no_picture(make_report: Make) -> None:
    report = make_report(tasks=("perplexity",), contexts=(1024,))
    with pytest.raises(RequestError, match="nothing of this run can be drawn"):
        picture(report)


def test_hostile_text_is_text_in_a_picture(make_report: Make) -> None:
    label = ScalingRequest(scaling="yarn", label=HOSTILE)
    svg = to_svg(picture(make_report(model=HOSTILE, scalings=(label, "file"), kv=("f16",))))
    tags = {each.tag.removeprefix(SVG) for each in ElementTree.fromstring(svg).iter()}
    assert not tags & {"script", "a", "image", "foreignObject"}
    assert "\\x1b\\x07 var(--nothing)" in text_of(svg)


def series(kv: str, *values: float) -> Series:
    points = tuple(zip((1024.0, 2048.0, 6144.0), values, strict=True))
    return Series(model="m", scaling="yarn", kv=kv, points=points)


def looks(spec: charts.Spec, channel: str) -> dict[str, str]:
    """The look of each name in a channel of a chart."""
    layers = [spec, *spec["layer"]]
    (found,) = [e[channel] for each in layers if channel in (e := each["encoding"])]
    return dict(zip(found["scale"]["domain"], found["scale"]["range"], strict=True))


def test_a_cache_looks_the_same_in_every_chart() -> None:
    """One scaling: color and shape are the cache type, also where another one is missing."""
    order = {"scaling": ["yarn"], "kv": ["f16", "q8_0", "q4_0"]}
    three = [series(kv, 1, 2, 3) for kv in order["kv"]]
    for channel in ("color", "shape"):
        all_ = looks(charts.lines(three, order, x="x", y="y"), channel)
        some = looks(charts.lines(three[1:], order, x="x", y="y"), channel)
        assert len(set(all_.values())) == 3
        assert some == {kv: all_[kv] for kv in ("q8_0", "q4_0")}


def test_lines_are_straight_with_ticks_at_the_measured_lengths() -> None:
    order = {"scaling": ["none", "yarn"], "kv": ["f16"]}
    spec = charts.lines([series("f16", 0.001, 0.1, 3.0)], order, x="x", y="y")
    line, point = (layer["mark"] for layer in spec["layer"])
    assert (line["type"], point["type"]) == ("line", "point")
    assert "interpolate" not in line
    x, y = spec["encoding"]["x"], spec["encoding"]["y"]
    assert x["axis"]["values"] == [1024, 2048, 6144]
    assert (x["scale"]["type"], x["scale"]["base"]) == ("log", 2)
    assert y["scale"]["type"] == "log"
    narrow = charts.lines([series("f16", 5.2, 6.0, 9.0)], order, x="x", y="y")
    assert "type" not in narrow["encoding"]["y"]["scale"], "a narrow span has no round numbers"
    assert set(looks(spec, "color")) == {"yarn"}


def test_a_notebook_shows_a_report_and_a_rotation(make_report: Make, nano: Path) -> None:
    report = make_report(model=HOSTILE, kv=("f16",))
    html = report._repr_html_()
    effective = inspect(nano).effective
    assert effective is not None
    for shown in (html, effective._repr_html_()):
        assert "<script" not in shown
        assert '<th scope="row">' in shown
    assert "&lt;script&gt;alert(1)" in html
    assert "\x1b" not in html
    assert 'src="data:image/svg+xml;base64,' in html
    assert '<th scope="row">freq_base</th><td>10000.0</td>' in effective._repr_html_()
