"""Two runs compared: regressions are found, and chance is not called one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ggufrope.evals.results import CellResult, Metric
from ggufrope.report.comparison import compare
from ggufrope.report.exports import to_plain
from ggufrope.report.html import to_html
from ggufrope.report.record import RunReport

Make = Callable[..., RunReport]


def changed(report: RunReport, change: Callable[[CellResult], CellResult]) -> RunReport:
    return replace(report, cells=tuple(change(result) for result in report.cells))


def with_value(result: CellResult, name: str, value: float) -> CellResult:
    metrics = tuple(replace(m, value=value) if m.name == name else m for m in result.metrics)
    return replace(result, metrics=metrics)


def test_a_run_against_itself_has_no_change_that_counts(make_report: Make) -> None:
    report = make_report()
    found = compare(report, report)
    assert found.changes
    assert found.regressions == found.improvements == ()
    assert found.differences == ()
    assert (found.only_before, found.only_after) == (0, 0)


def test_needles_lost_are_a_regression_when_there_are_enough(make_report: Make) -> None:
    before = make_report(depths=11, scalings=("yarn",), kv=("f16",), tasks=("needle",))

    def lose(depths: set[float]) -> RunReport:
        return changed(
            before,
            lambda r: (
                with_value(r, "recall", 0.0)
                if r.cell.context_tokens == 8192 and r.cell.depth_percent in depths
                else r
            ),
        )

    noise = compare(before, lose({10.0, 20.0}))
    assert noise.regressions == ()
    found = compare(before, lose({0.0, 10.0, 20.0, 30.0, 40.0, 50.0}))
    (regression,) = found.regressions
    assert (regression.metric, regression.context_tokens) == ("recall", 8192)
    assert (regression.lost, regression.gained, regression.cells) == (6, 0, 11)
    assert regression.after == pytest.approx(5 / 11)
    (improvement,) = compare(lose({0.0, 10.0, 20.0, 30.0, 40.0, 50.0}), before).improvements
    assert improvement.gained == 6


def test_one_lost_needle_is_not_significant(make_report: Make) -> None:
    before = make_report(depths=1, scalings=("yarn",), kv=("f16",), tasks=("needle",))
    after = changed(before, lambda r: with_value(r, "recall", 0.0))
    lost = [c for c in compare(before, after).changes if c.metric == "recall"]
    assert [(c.cells, c.lost, c.significant) for c in lost] == [(1, 1, False)] * 4


def test_a_mean_is_compared_cell_by_cell(make_report: Make) -> None:
    before = make_report(scalings=("linear",), kv=("f16",), tasks=("needle",))
    after = changed(
        before,
        lambda r: with_value(
            r,
            "log_probability",
            (r.value("log_probability") or 0) - 0.1 - (r.cell.depth_percent or 0) / 1e4,
        ),
    )
    found = {c.context_tokens for c in compare(before, after).regressions}
    assert found == {1024, 2048, 4096, 8192}


@pytest.mark.parametrize(
    ("losses", "significant"),
    [
        # Two cells with the same loss: no variance, so t is without bound.
        ((0.5, 0.5), True),
        # Mean 0.75, standard error 0.25: z would be 3.0, above 1.96; t needs 12.7.
        ((1.0, 0.5), False),
        # Mean 0.525, standard error 0.025: t is 21.
        ((0.55, 0.5), True),
    ],
)
def test_the_mean_difference_of_two_cells_is_judged_by_students_t(
    make_report: Make, losses: tuple[float, float], significant: bool
) -> None:
    before = make_report(
        contexts=(4096,),
        depths=2,
        scalings=("yarn",),
        kv=("f16",),
        tasks=("needle",),
        control=False,
    )
    loss_at = dict(zip((0.0, 100.0), losses, strict=True))

    def lose(result: CellResult) -> CellResult:
        value = result.value("log_probability")
        assert value is not None
        assert result.cell.depth_percent is not None
        # 1/8 and 1/2 are exact in binary, so that equal losses stay equal.
        return with_value(result, "log_probability", -0.125 - loss_at[result.cell.depth_percent])

    before = changed(before, lambda r: with_value(r, "log_probability", -0.125))
    (change,) = [
        c for c in compare(before, changed(before, lose)).changes if c.metric == "log_probability"
    ]
    assert change.cells == 2
    assert change.worse
    assert change.significant is significant


def test_single_estimates_are_compared_by_their_intervals(make_report: Make) -> None:
    before = make_report(scalings=("yarn",), kv=("f16", "q4_0"), tasks=("perplexity",))
    other = make_report(scalings=("yarn",), kv=("f16", "q4_0"), tasks=("perplexity",))
    assert compare(before, other).regressions == ()

    def shift(result: CellResult) -> CellResult:
        metrics = (Metric(name="perplexity", value=13.0, low=12.9, high=13.1),)
        return replace(result, metrics=metrics)

    found = compare(before, changed(before, shift))
    assert {(c.kv, c.metric) for c in found.regressions} == {("f16", "perplexity")}


def test_two_quantizations_are_compared_and_their_differences_listed(make_report: Make) -> None:
    settings = {"scalings": ("yarn",), "kv": ("f16",), "tasks": ("kv-cache",)}
    before = make_report(model="m.Q8_0", **settings)
    after = changed(
        make_report(model="m.Q4_0", **settings),
        lambda r: with_value(r, "decode_tokens_per_second", 40.0),
    )
    found = compare(before, after)
    assert {c.metric for c in found.regressions} == {"decode_tokens_per_second"}
    assert [(d.name, d.before, d.after) for d in found.differences] == [
        ("model", "m.Q8_0", "m.Q4_0")
    ]


def test_cells_of_one_run_only_are_counted(make_report: Make) -> None:
    whole = make_report(scalings=("yarn",), kv=("f16", "q8_0"), tasks=("needle",))
    part = replace(whole, cells=whole.cells[:20])
    found = compare(whole, part)
    assert (found.only_before, found.only_after) == (20, 0)


def test_the_page_and_the_json_show_a_comparison(make_report: Make) -> None:
    before = make_report(scalings=("yarn",), kv=("f16",), tasks=("kv-cache",))
    after = changed(before, lambda r: with_value(r, "decode_tokens_per_second", 40.0))
    found = compare(before, after)
    plain = to_plain(after, against=found)["against"]
    assert plain["regressions"] == 4
    assert plain["changes"][1]["worse"] is True
    html = to_html(after, against=found)
    assert "Of 12 values, 4 are significantly worse and 0 significantly better." in html
    assert "yarn · f16 · kv-cache at 8,192 tokens" in html


def test_a_needle_asked_spliced_and_whole_counts_once(make_report: Make) -> None:
    report = make_report(mode="spliced", scalings=("yarn",), kv=("f16",), tasks=("needle",))
    assert {result.cell.method for result in report.cells} == {"spliced", "whole"}
    recalls = [c for c in compare(report, report).changes if c.metric == "recall"]
    assert [(change.context_tokens, change.cells) for change in recalls] == [
        (context, 5) for context in (1024, 2048, 4096, 8192)
    ]
