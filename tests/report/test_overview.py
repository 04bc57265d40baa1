"""A run in a few lines: the table, the Markdown that nothing in a file can turn into markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from ggufrope.evals.results import NOT_NEEDED, Cell, CellResult, Metric
from ggufrope.patching.request import ScalingRequest
from ggufrope.report import views
from ggufrope.report.comparison import compare
from ggufrope.report.overview import code_block, lead, overview, plain, title_of, to_markdown
from ggufrope.report.record import RunReport
from ggufrope.report.summary import summarize

pytest.importorskip("scipy", reason="intervals need scipy, of the extra 'report'")

Make = Callable[..., RunReport]


@pytest.mark.parametrize(
    ("plan", "title"),
    [
        ({"name": "a night"}, "a night"),
        ({"scalings": ("file",), "kv": ("f16",)}, "invented-1B.Q4_K_M up to 8,192 tokens"),
        (
            {"scalings": ("none", "linear", "yarn"), "kv": ("f16",)},
            "invented-1B.Q4_K_M under none, linear and yarn up to 8,192 tokens",
        ),
        (
            {"scalings": ("file",), "kv": ("f16", "q8_0")},
            "invented-1B.Q4_K_M with f16 and q8_0 caches up to 8,192 tokens",
        ),
    ],
)
def test_the_title_says_what_was_run(
    make_report: Make, plan: dict[str, object], title: str
) -> None:
    assert title_of(make_report(**plan)) == title


def test_the_first_metric_is_shown_at_every_context_and_others_at_the_longest(
    make_report: Make,
) -> None:
    view = overview(make_report(kv=("f16",), samples=8))
    assert view.heads == (
        *("scaling", "KV cache", "needle, recall at 1,024", "2,048", "4,096", "8,192"),
        *("perplexity at 8,192", "holds to", "verdict"),
    )
    rows = {row[0]: row for row in view.rows}
    yarn, linear = rows["yarn ×4, 2048 → 8192"], rows["linear ×4, 2048 → 8192"]
    assert yarn[2].startswith("100% (")
    assert linear[5].startswith("40% (")
    assert yarn[6:] == ("12 (11.6 – 12.4)", "8,192", "pass")
    assert view.conclusion == ("best: yarn ×4, 2048 → 8192: holds to 8192 tokens",)
    (command,) = view.commands
    assert "--scaling yarn" in command, "what failed is not offered to keep"


def test_markdown_is_a_dozen_lines(make_report: Make) -> None:
    text = to_markdown(make_report(kv=("f16",), samples=8))
    lines = [line for line in text.splitlines() if line]
    assert len(lines) <= 20
    assert lines[0].startswith("## invented-1B.Q4\\_K\\_M under file, linear and yarn")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count(" | ") for line in table} == {8}
    assert table[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"


def test_markdown_tells_what_changed(make_report: Make) -> None:
    before = make_report(scalings=("yarn",), kv=("f16",), tasks=("kv-cache",))
    slower = tuple(
        replace(
            result,
            metrics=tuple(
                replace(m, value=40.0) if m.name == "decode_tokens_per_second" else m
                for m in result.metrics
            ),
        )
        for result in before.cells
    )
    after = replace(before, cells=slower)
    text = to_markdown(after, against=compare(before, after))
    assert "Of 12 values, 4 are significantly worse" in text
    assert "- yarn · f16 · kv-cache at 1,024 tokens, decode/s: 60 → 40" in text


HOSTILE = "a|b `x` <img src=x> [l](http://e.example) *s* @me #1 www.e.example\x1b\n# h\n| c |"


def test_hostile_text_is_no_markup_in_markdown(make_report: Make) -> None:
    shown = plain(HOSTILE)
    assert "\n" not in shown
    assert "\x1b" not in shown
    # Markup that Markdown or GitHub would act on is escaped or broken by a comment.
    assert not re.search(r"(?<!\\)[|`<\[*](?!!-- -->)", shown)
    assert not re.search(r"@\w|#\d|://\w|www\.\w", shown)
    label = ScalingRequest(scaling="yarn", label=HOSTILE)
    text = to_markdown(make_report(model=HOSTILE, scalings=(label,), kv=("f16",)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert not re.search(r"^(# h|\| c \|)", text, re.MULTILINE)


def test_a_block_of_code_cannot_be_left() -> None:
    block = code_block(("ggufrope patch '```\n````'",)).splitlines()
    assert block[0] == "`````sh"
    assert block[-1] == "`````"
    assert block.count("`````") == 1


def divergences(report: RunReport) -> RunReport:
    """The report with a divergence of each setting, and nothing else."""
    results = [
        CellResult(
            cell=Cell(
                model="invented-1B.Q4_K_M",
                scaling="yarn",
                kv=kv,
                task="divergence",
                context_tokens=context,
                seed=0,
            ),
            status="ok",
            metrics=(
                Metric(name="mean_divergence", value=value),
                Metric(name="cache_bytes_per_token", value=100.0),
            ),
        )
        for kv, value in (("f16", 3.0), ("q8_0", 0.001), ("q4_0", 0.2))
        for context in (1024, 2048)
    ]
    return replace(report, cells=tuple(results), summary=summarize(results))


def test_divergences_from_two_bases_never_share_a_column_or_a_line(make_report: Make) -> None:
    report = divergences(make_report())
    heads = [head for head in overview(report).heads if head.startswith("cost")]
    assert heads == ["cost of the scaling at 1,024", "cost of the cache at 2,048"]
    legend = " ".join(overview(report).legend)
    for base in ("cache", "scaling"):
        assert views.BASES[base] in legend
    lines = {
        base: {s.kv for s in views.by_context(report, "divergence", "mean_divergence", base=base)}
        for base in views.BASES
    }
    assert lines == {"scaling": {"f16"}, "cache": {"q8_0", "q4_0"}, "file": set()}
    assert {point.kv for point in views.tradeoffs(report)} == {"q8_0", "q4_0"}


def test_whole_prompts_that_were_not_needed_are_no_problem(make_report: Make) -> None:
    report = make_report()
    (first, *others) = report.cells
    skipped = replace(first, status="skipped", reason=NOT_NEEDED, metrics=())
    report = replace(report, cells=(skipped, *others))
    assert views.problems(report) == ()
    scored = len(report.cells) - 1
    assert f"{scored} of {scored} cells measured" in lead(report)


def test_a_needle_asked_twice_is_one_square(make_report: Make) -> None:
    settings = {"scalings": ("yarn",), "kv": ("f16",), "tasks": ("needle",)}
    report = make_report(mode="spliced", samples=4, **settings)
    lost = (Metric(name="recall", value=0.0),)
    cells = [r if r.cell.method == "spliced" else replace(r, metrics=lost) for r in report.cells]
    (both,) = views.heatmaps(replace(report, cells=tuple(cells)))
    assert len(cells) > 80
    assert (both.exact, both.measured) == (80, 80)
    whole = tuple(result for result in cells if result.cell.method == "whole")
    (alone,) = views.heatmaps(replace(report, cells=whole))
    assert (alone.exact, alone.measured) == (0, len(whole))


def test_a_slow_cache_is_found_once_whatever_the_scalings(make_report: Make) -> None:
    report = make_report(scalings=("yarn", "linear"), kv=("f16", "q4_0"), tasks=("kv-cache",))
    (found,) = views.slow_caches(report)
    assert (found.kv, found.context_tokens) == ("q4_0", 8192)
    assert dict(found.shares) == {
        "prefill_tokens_per_second": pytest.approx(0.3),
        "decode_tokens_per_second": pytest.approx(0.3),
    }
