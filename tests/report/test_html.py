"""The page: self-contained, complete, inert, legible, and drawn by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ggufrope.patching.request import ScalingRequest
from ggufrope.report import charts
from ggufrope.report.comparison import compare
from ggufrope.report.html import style_sheet, to_html
from ggufrope.report.record import RunReport

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")
pytest.importorskip("vl_convert", reason="charts need vl-convert-python, of the extra 'report'")

Make = Callable[..., RunReport]
HOSTILE = (
    "</style></title><script>document.title='taken'</script><img src=x onerror=alert(1)>&{{7*7}}"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = find_spec("axe_playwright_python")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not here: apt-get install chromium"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_fetches_nothing_and_runs_nothing(make_report: Make) -> None:
    html = to_html(make_report())
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    links = [v for n, v in page.attributes if n in ("src", "href", "xlink:href", "action")]
    assert [link for link in links if not link.startswith("#")] == []
    assert page.tags.count("svg") == 3 * 2 + 1, "a heatmap per setting, and the perplexity"
    names = [v for n, v in page.attributes if n == "aria-label" and v.startswith("Heat map of")]
    assert len(set(names)) == 3 * 2
    assert "Perplexity by position: invented-1B.Q4_K_M, file · f16, file · q8_0, " in html
    assert "url(" not in page.text.replace("url(#", "")


def test_the_page_holds_every_part(make_report: Make) -> None:
    html = to_html(make_report(name="a night", samples=8))
    page = Page(html)
    for words in (
        "a night",
        "Recall by length and depth",
        "Perplexity by position",
        "Findings",
        "commit 0c1e57098",
        "ab" * 32,
        "ggufrope run plan.toml",
        "best: yarn ×4, 2048 → 8192 · f16: holds to 8192 tokens",
        "patch models/invented.gguf -o models/invented-yarn-8192.gguf --scaling yarn --target",
        "needle recall at 8192 tokens: 0.0% (required: at least 90.0%)",
    ):
        assert words in page.text, words
    assert "--scaling linear" not in page.text, "it does not hold"
    assert "recall: share of needles that whole prompts answer exactly; perplexity" in page.text
    maps = re.findall(r"<figcaption>(.*?)<small>(.*?)</small>", html)
    assert ("yarn ×4 · q8_0", "160 of 160 exact") in maps
    assert ("linear ×4 · f16", "136 of 160 exact") in maps
    assert len(maps) == 6
    described = [v for n, v in page.attributes if n == "aria-label" and ", depth " in v]
    assert "8192 tokens, depth 50 %: recall 0% of 8" in described
    assert len(described) == 6 * 20


def test_unmeasured_cells_differ_from_misses(make_report: Make) -> None:
    html = to_html(make_report(kv=("iq4_nl",), scalings=("file",)))
    assert "not measured" in html
    assert "no such cache here" in Page(html).text
    assert "1024 tokens, depth 0 %: no such cache here" in html


def test_hostile_strings_are_text(make_report: Make) -> None:
    html = to_html(
        make_report(
            name=HOSTILE,
            model=HOSTILE,
            details=((HOSTILE, HOSTILE + "\udcff\u202e"),),
            scalings=(ScalingRequest(scaling="yarn", label="yarn" + HOSTILE),),
            kv=("f16",),
        )
    )
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) > 5
    assert "\\udcff\\u202e" in page.text
    assert "\u202e" not in html
    html.encode()


def test_control_characters_are_escaped_as_in_the_terminal(make_report: Make) -> None:
    """Also in the charts: vl-convert ends the process on a control character."""
    report = make_report(
        model="bell\a\x1b[2J",
        details=(("general.name", "\x1b]0;title\a"),),
        scalings=(ScalingRequest(scaling="yarn", label="la\x1bbel"), "linear"),
        kv=("f16", "q8_0"),
    )
    html = to_html(report)
    assert not {c for c in html if ord(c) < 32} - {"\n"}
    assert "\\x1b]0;title\\x07" in html
    legends = re.findall(r"<text[^>]*>la(.*?)bel</text>", html)
    assert set(legends) == {"\\x1b"}


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(make_report: Make, tmp_path: Path, scheme: str) -> None:
    """The corner is the theme's paper; a heatmap's colors are on the page; no script ran."""
    source, picture = tmp_path / "page.html", tmp_path / "page.png"
    source.write_text(to_html(make_report(name=HOSTILE)), encoding="utf-8")
    preference = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    browse(f"--screenshot={picture}", "--window-size=1200,2600", preference, source, tmp_path)
    colors = colors_of(picture)
    assert ((20, 24, 28) if scheme == "dark" else (255, 255, 255)) == colors[0]
    assert ((76, 194, 174) if scheme == "dark" else (15, 107, 96)) in colors
    assert "<title>taken" not in browse("--dump-dom", source, tmp_path)


@browser
def test_it_prints_to_pages(make_report: Make, tmp_path: Path) -> None:
    source, document = tmp_path / "page.html", tmp_path / "page.pdf"
    source.write_text(to_html(make_report()), encoding="utf-8")
    browse(f"--print-to-pdf={document}", source, tmp_path)
    assert document.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", document.read_bytes())) >= 2


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_have_the_contrasts_of_wcag_aa(theme: int) -> None:
    """4.5 for text, on each of its backgrounds; 3 for lines and points."""
    pairs = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", style_sheet())
    color = {name: both[theme] for name, *both in pairs}
    heat = range(len(charts.STEPS) + 1)
    text = [(name, back) for name in ("ink", "muted") for back in ("paper", "panel")]
    text += [(name, back) for name in ("good", "bad") for back in (f"{name}-soft", "paper")]
    text += [(f"on-heat-{i}", f"heat-{i}") for i in heat]
    text += [("muted", "void")]
    lines = [(name, "paper") for name in color if name.startswith("series-")]
    assert len(lines) == 8
    low = {
        pair: round(found, 2)
        for pairs, least in ((text, 4.5), (lines, 3.0))
        for pair in pairs
        if (found := contrast(*(color[name] for name in pair))) < least
    }
    assert low == {}


@browser
def test_conclusion_and_map_are_on_the_first_screen(make_report: Make, tmp_path: Path) -> None:
    bottom = (
        "[document.querySelector('.conclusion'), document.querySelector('.maps figure')]"
        ".map(each => each.getBoundingClientRect().bottom)"
    )
    html = to_html(make_report(scalings=("none", "linear", "ntk", "yarn"), kv=("f16",), depths=11))
    conclusion, heatmap = in_browser(html, bottom, tmp_path, width=1400)
    assert 0 < conclusion < heatmap < 900


@browser
def test_a_phone_scrolls_tables_and_nothing_else(make_report: Make, tmp_path: Path) -> None:
    """What is wider than the page lies in a box that scrolls and shows a shadow."""
    wide = """
        [document.documentElement.scrollWidth].concat(
            [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth),
            getComputedStyle(document.querySelector('tbody th')).position)
    """
    html = to_html(make_report())
    width, *scrolls, position = in_browser(html, wide, tmp_path, width=390)
    assert width == 390
    assert True in scrolls
    assert position == "sticky"
    assert html.count('<div class="scroll" tabindex="0"') == len(scrolls)


@browser
@pytest.mark.skipif(AXE is None, reason="axe-core is not here: pip install axe-playwright-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(make_report: Make, tmp_path: Path, scheme: str) -> None:
    tasks = ("needle", "perplexity", "kv-cache", "ruler")
    before = make_report(kv=("f16", "iq4_nl", "q4_0"), tasks=tasks, depths=2)
    html = to_html(before, against=compare(slowed(before), before))
    assert audit(html, tmp_path, scheme) == []


def audit(html: str, folder: Path, scheme: str) -> list[Any]:
    """What axe-core finds wrong, and the text outside of charts whose contrast it cannot tell.

    It cannot where a shadow or a line of color is behind the text: these are left out. It does not
    try with a single character such as a mark.
    """
    assert AXE is not None
    assert AXE.origin is not None
    axe = Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    plain = (
        "<style>.scroll { background: none !important } .shade::before { display: none }</style>"
    )
    tell = """;axe.run().then(found => [
        ...found.violations.map(each => [each.id, each.nodes.map(node => node.html)]),
        ...found.incomplete.flatMap(each => each.nodes)
            .filter(node => !['shortTextContent', 'nonBmp'].includes(node.any[0].data.messageKey))
            .map(node => node.html).filter(html => !html.startsWith('<text ')),
    ])"""
    html = html.replace("</head>", plain + "</head>")
    found: list[Any] = in_browser(html, axe + tell, folder, scheme=scheme)
    return found


def slowed(report: RunReport) -> RunReport:
    """The report with every decode speed doubled, so that a later run is slower."""
    cells = tuple(
        replace(
            result,
            metrics=tuple(
                replace(m, value=2 * m.value)
                if m.name == "decode_tokens_per_second" and m.value
                else m
                for m in result.metrics
            ),
        )
        for result in report.cells
    )
    return replace(report, cells=cells)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colors, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        channels = (int(color[i : i + 2], 16) / 255 for i in (0, 2, 4))
        linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return sum(c * share for c, share in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def in_browser(
    html: str, expression: str, folder: Path, *, width: int = 1400, scheme: str = "light"
) -> Any:
    """What a JavaScript expression is in the page, `width` pixels wide and allowed scripts."""
    page = re.sub("<meta http-equiv=[^>]*>", "", html)
    source = folder / "frame.html"
    code = json.dumps(expression).replace("</", "<\\/")
    source.write_text(
        f"<!doctype html><meta charset=utf-8><iframe srcdoc='{escape(page)}' "
        f"style='width:{width}px;height:900px;border:0'></iframe><script>"
        "const frame = document.querySelector('iframe'); frame.onload = async () => {"
        f"const found = await frame.contentWindow.eval({code});"
        "document.body.innerHTML = '<pre></pre>';"
        "document.querySelector('pre').textContent = JSON.stringify(found) }</script>",
        encoding="utf-8",
    )
    preference = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    shown = browse("--virtual-time-budget=60000", "--dump-dom", preference, source, folder)
    found = re.search("<pre>(.*?)</pre>", shown, re.DOTALL)
    assert found, shown[-500:]
    return json.loads(unescape(found[1]))


def browse(*arguments: object) -> str:
    """Run Chromium on a page, the last two arguments, and return what it prints."""
    *options, source, folder = arguments
    profile = f"--user-data-dir={Path(str(folder)) / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, *map(str, options), Path(str(source)).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def colors_of(picture: Path) -> list[tuple[int, ...]]:
    """The distinct colors of a picture, that of its corner first."""
    image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")
    with image.open(picture) as opened:
        pixels = opened.convert("RGB")
    return [pixels.getpixel((0, 0)), *(color for _, color in pixels.getcolors(1 << 24))]
