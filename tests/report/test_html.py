"""The page: self-contained, complete, inert, and drawn by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ggufrope.patching.request import ScalingRequest
from ggufrope.report.html import to_html
from ggufrope.report.record import RunReport

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")
pytest.importorskip("vl_convert", reason="charts need vl-convert-python, of the extra 'report'")

Make = Callable[..., RunReport]
HOSTILE = (
    "</style></title><script>document.title='taken'</script><img src=x onerror=alert(1)>&{{7*7}}"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
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
    page = Page(to_html(make_report()))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    links = [v for n, v in page.attributes if n in ("src", "href", "xlink:href", "action")]
    assert [link for link in links if not link.startswith("#")] == []
    assert page.tags.count("svg") == 3 * 2 + 1, "a heatmap per setting, and the perplexity"
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
    assert ("yarn · q8_0", "160 of 160 exact") in maps
    assert ("linear · f16", "136 of 160 exact") in maps
    assert len(maps) == 6
    described = [v for n, v in page.attributes if n == "aria-label" and "recall" in v]
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


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not here: apt-get install chromium")
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


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not here: apt-get install chromium")
def test_it_prints_to_pages(make_report: Make, tmp_path: Path) -> None:
    source, document = tmp_path / "page.html", tmp_path / "page.pdf"
    source.write_text(to_html(make_report()), encoding="utf-8")
    browse(f"--print-to-pdf={document}", source, tmp_path)
    assert document.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", document.read_bytes())) >= 2


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
