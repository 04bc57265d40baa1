"""Which cache is safe: the answer of a run, and how it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ggufrope_cli.output import console
from ggufrope_cli.showing import View, show

from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.results import NOT_FINITE, CellResult
from ggufrope.report.caches import CacheAnswer, cache_answers
from ggufrope.report.conclusion import conclude
from ggufrope.report.exports import to_json
from ggufrope.report.html import to_html
from ggufrope.report.overview import to_markdown
from ggufrope.report.record import RunReport
from ggufrope.report.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.report.conftest import Make


Q8_0 = "--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on"


def kv_report(make_report: Make, **settings: Any) -> RunReport:
    defaults: dict[str, Any] = {
        "tasks": ("kv",),
        "kv": ("q8_0", "q4_0"),
        "scalings": ("file",),
        "contexts": (2048,),
        "samples": None,
    }
    return make_report(**{**defaults, **settings})


def changed(report: RunReport, change: Callable[[CellResult], CellResult]) -> RunReport:
    cells = tuple(map(change, report.cells))
    return replace(report, cells=cells, summary=summarize(cells))


def only(report: RunReport) -> CacheAnswer:
    (answer,) = cache_answers(report)
    return answer


def test_the_smallest_safe_cache_with_what_it_costs(make_report: Make) -> None:
    answer = only(kv_report(make_report))
    assert [(row.kv, row.verdict and row.verdict.word) for row in answer.rows] == [
        ("f16", None),
        ("q8_0", "safe"),
        ("q4_0", "unsafe"),
    ]
    f16, q8_0, q4_0 = answer.rows
    assert f16.divergence is f16.same_top is None
    assert (q8_0.kept, q8_0.answered, q8_0.gained) == (100, 100, 0)
    assert (q4_0.kept, q4_0.answered) == (60, 100)
    assert q8_0.memory_bytes == 36 * 272 * 2048
    assert (q8_0.prefill, q8_0.decode) == (2600, 52)
    assert q4_0.exact == {"needle": (20, 20), **dict.fromkeys(DAMAGE_TASKS, (8, 16))}
    assert answer.best == "q8_0"
    assert answer.sentence == (
        "the smallest safe cache at 2048 tokens: q8_0, 19.1 MiB, 53% of f16's"
    )
    assert answer.commands == (f"llama-server -m models/invented.gguf -c 2048 {Q8_0}",)


def test_a_scaling_is_written_before_it_is_served(make_report: Make) -> None:
    answer = only(kv_report(make_report, scalings=("yarn",), contexts=(4096,)))
    patch, serve = answer.commands
    assert patch == (
        "ggufrope patch models/invented.gguf -o models/invented-yarn-4096.gguf --scaling yarn "
        "--target-ctx 4096"
    )
    assert serve == f"llama-server -m models/invented-yarn-4096.gguf -c 4096 {Q8_0}"
    assert answer.base == ("an f16 cache of invented-1B.Q4_K_M under the same scaling (yarn)")


def test_each_scaling_and_length_has_an_answer_of_its_own(make_report: Make) -> None:
    report = kv_report(make_report, scalings=("file", "yarn"), contexts=(1024, 2048))
    answers = cache_answers(report)
    assert {(each.scaling, each.context_tokens) for each in answers} == {
        (scaling, tokens) for scaling in ("file", "yarn") for tokens in (1024, 2048)
    }
    assert conclude(report).headline.count("the smallest safe cache") == 4


def test_logits_that_are_not_finite_make_one_row_unsafe_and_no_other(make_report: Make) -> None:
    def broken(result: CellResult) -> CellResult:
        if (result.cell.kv, result.cell.task) != ("q8_0", "divergence"):
            return result
        return CellResult(cell=result.cell, status="error", reason=NOT_FINITE)

    answer = only(changed(kv_report(make_report, kv=("q8_0", "q4_0")), broken))
    words = {row.kv: row.verdict for row in answer.rows if row.verdict}
    assert (words["q8_0"].word, words["q8_0"].reason) == ("unsafe", NOT_FINITE)
    assert words["q4_0"].word == "unsafe"
    assert "nat from f16" in words["q4_0"].reason
    assert answer.best is None
    assert answer.commands == ("llama-server -m models/invented.gguf -c 2048",)
    assert answer.sentence == "no cache smaller than f16 is shown to be safe at 2048 tokens"


def test_a_model_whose_logits_are_not_finite_is_no_fault_of_a_cache(make_report: Make) -> None:
    def broken(result: CellResult) -> CellResult:
        if result.cell.task not in ("divergence", "needle"):
            return result
        return CellResult(cell=result.cell, status="error", reason=NOT_FINITE)

    row = only(changed(kv_report(make_report), broken)).rows[1]
    assert row.verdict is not None
    assert (row.verdict.word, row.verdict.reason) == ("undecided", f"with f16 too, {NOT_FINITE}")


def test_a_pair_that_does_not_run_is_unsupported_with_the_rule(make_report: Make) -> None:
    report = kv_report(make_report, kv=("q8_0", "iq4_nl"))
    row = only(report).rows[-1]
    assert row.verdict is not None
    assert (row.verdict.word, row.verdict.reason) == ("unsupported", "no such cache here")
    assert report.passed


def test_what_cannot_be_told_says_what_would_tell_it(make_report: Make) -> None:
    def forgetful(result: CellResult) -> CellResult:
        if result.cell.task not in (*DAMAGE_TASKS, "needle"):
            return result
        metrics = tuple(replace(metric, value=0.0) for metric in result.metrics)
        return replace(result, metrics=metrics)

    report = changed(kv_report(make_report, kv=("q8_0",)), forgetful)
    answer = only(report)
    assert answer.rows[1].verdict is not None
    assert answer.rows[1].verdict.word == "undecided"
    (decide,) = conclude(report).decide
    assert decide.startswith("q8_0 at 2048 tokens: a model that answers them")
    assert "undecided: q8_0" in answer.sentence


def test_no_default_threshold_fails_a_run_that_asks_which_cache_is_safe(make_report: Make) -> None:
    report = kv_report(make_report, contexts=(65536,))
    assert any(r.value("recall") == 0 for r in report.cells)
    assert (report.outcome, report.passed) == (None, True)
    assert [check for entry in report.verdicts for check in entry.verdict.checks] == []


def test_the_answer_is_in_json_and_markdown_and_on_the_page(make_report: Make) -> None:
    report = kv_report(make_report)
    told = json.loads(to_json(report))["conclusion"]["caches"]
    assert [row["kv"] for row in told[0]["rows"]] == ["f16", "q8_0", "q4_0"]
    assert told[0]["rows"][2]["verdict"]["word"] == "unsafe"
    assert told[0]["best"] == "q8_0"
    for text in (to_markdown(report), to_html(report)):
        assert "the smallest safe cache at 2048 tokens: q8" in text
        assert "--cache-type-k q8" in text
    page = to_html(report)
    assert "caches at 2,048 tokens" in page
    for word in ("safe", "unsafe", "19.1 MiB"):
        assert word in page


def test_in_80_columns_no_value_is_broken_in_two(
    make_report: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.cache_clear()
    pairs = ("q8_0", "q8_0/q4_0", "q4_0/f16", "iq4_nl")
    report = kv_report(make_report, kv=pairs, contexts=(2048, 65536))
    show(report, View(json=False))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("to serve it"))
    firsts = [words[0] for line in lines if (words := line.split())]
    for answer in cache_answers(report):
        for row in answer.rows:
            assert row.kv in firsts
    assert not {"B", "iB", "s", "0"} & set(firsts)


def test_other_runs_have_no_answer_about_caches(make_report: Make) -> None:
    assert cache_answers(make_report(tasks=("divergence",), kv=("q8_0",))) == ()


@pytest.mark.parametrize("kv", [("f16",), ("f16/f16",)])
def test_without_cache_types_all_pairs_are_asked_about(kv: tuple[str, ...]) -> None:
    from ggufrope.runs.plan import KV_TYPES, RunPlan

    plan = RunPlan(models=("m.gguf",), contexts=(2048,), tasks=("kv",), kv=kv)
    assert len(set(plan.kv_types)) == len(KV_TYPES) ** 2
    assert str(plan.kv_types[0]) == "f16"
