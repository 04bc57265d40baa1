"""Pictures to share, and what a notebook shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ggufrope.errors import RequestError
from ggufrope.patching.inspection import inspect
from ggufrope.patching.request import ScalingRequest
from ggufrope.report.pictures import picture, to_png, to_svg
from ggufrope.report.record import RunReport

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


def test_all_colors_of_a_setting_are_the_same_in_every_chart(make_report: Make) -> None:
    report = make_report(tasks=("perplexity", "kv-cache"), scalings=("yarn",), kv=("q8_0", "f16"))
    found = json.dumps(picture(report))
    assert found.count('"domain": ["q8_0", "f16"]') > 0


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
