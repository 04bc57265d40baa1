"""Reports as JSON, CSV and JUnit XML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ggufrope.evals.stats import proportion
from ggufrope.evals.thresholds import Thresholds
from ggufrope.report.exports import to_csv, to_json, to_junit
from ggufrope.report.record import RunReport

Make = Callable[..., RunReport]
HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>\x1b[31m\x00]]>&"


def test_json_holds_the_whole_run(make_report: Make) -> None:
    report = make_report()
    found = json.loads(to_json(report))
    assert found["schema"] == 1
    assert found["complete"] is True
    assert found["plan"]["contexts"] == [1024, 2048, 4096, 8192]
    assert found["models"][0]["header_sha256"] == "ab" * 32
    assert found["workers"][0]["environment"]["llama.cpp"] == "commit 0c1e57098"
    assert len(found["cells"]) == len(report.cells) == 3 * 2 * (4 * 5 + 4)
    cell = found["cells"][0]
    assert cell["cell"]["context_tokens"] == 1024
    assert cell["metrics"]["recall"] == {"value": 1.0, "low": None, "high": None, "n": None}
    assert cell["prompt_tokens"] == 1015


def test_the_summary_has_the_recall_with_an_exact_interval(make_report: Make) -> None:
    rows = json.loads(to_json(make_report()))["summary"]
    row = next(
        r
        for r in rows
        if (r["scaling"], r["kv"], r["task"], r["context_tokens"])
        == ("linear", "f16", "needle", 8192)
    )
    recall = row["metrics"]["recall"]
    assert (recall["value"], recall["n"]) == (0.4, 5)
    known = proportion(2, 5)
    assert recall["low"] < known.low
    assert recall["high"] > known.high
    assert row["metrics"]["whole_recall"]["low"] == known.low
    assert row["metrics"]["log_probability"]["n"] == 5
    assert row["cells"] == row["scored"] == 5


def test_json_has_the_conclusion_and_the_outcome_of_each_check(make_report: Make) -> None:
    found = json.loads(to_json(make_report(samples=8)))
    assert found["conclusion"]["headline"].startswith("best: yarn ×4, 2048 → 8192 · f16: holds to")
    best = found["conclusion"]["settings"][0]
    assert (best["best"], best["holds_to"], best["outcome"]) == (True, 8192, "pass")
    assert best["lengths"] == dict.fromkeys(("1024", "2048", "4096", "8192"), "pass")
    verdict = found["verdict"]
    assert (verdict["passed"], verdict["outcome"]) == (False, "fail")
    assert {check["outcome"] for check in verdict["checks"]} == {"pass", "fail"}
    assert all(check["passed"] == (check["outcome"] == "pass") for check in verdict["checks"])


def test_a_lone_estimate_keeps_its_own_interval(make_report: Make) -> None:
    rows = make_report().summary
    perplexity = next(r for r in rows if r.task == "perplexity").metric("perplexity")
    assert perplexity is not None
    assert (perplexity.low, perplexity.high) == pytest.approx((11.6, 12.4))


def test_csv_has_one_row_per_cell(make_report: Make) -> None:
    report = make_report()
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(rows) == len(report.cells)
    assert rows[0]["recall"] == "1.0"
    assert rows[0]["perplexity"] == ""
    assert rows[20]["perplexity_low"] == "11.6"
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["verdict"] for row in rows[:20]} == {"undecided", "fail"}
    assert {row["verdict"] for row in rows if row["task"] == "perplexity"} == {"", "pass", "fail"}


def test_junit_has_one_test_case_per_cell(make_report: Make) -> None:
    report = make_report(kv=("f16", "iq4_nl"), scalings=("file",), samples=8)
    verdict, *suites = ElementTree.fromstring(to_junit(report))
    cases = [case for suite in suites for case in suite.findall("testcase")]
    assert len(cases) == len(report.cells)
    assert len({case.get("name") for case in cases}) == len(cases)
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert len(skipped) == 164
    assert skipped[0].find("skipped").get("message") == "no such cache here"  # type: ignore[union-attr]
    assert suites[2].get("skipped") == "160"
    failures = [case.get("name") for case in verdict if case.find("failure") is not None]
    assert verdict.get("failures") == str(len(failures))
    assert failures[:2] == ["needle recall at 4096 tokens", "needle recall at 8192 tokens"]


def test_an_undecided_check_is_a_failure_of_its_own_kind(make_report: Make) -> None:
    report = make_report(kv=("f16",), scalings=("file",), tasks=("needle",), contexts=(1024,))
    (case,) = ElementTree.fromstring(to_junit(report))[0]
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("type") == "undecided"
    assert str(failure.get("message")).startswith("undecided: needle recall at 1024 tokens: 100.0%")
    assert "35 of 35 whole prompts would show 90%: `samples` 7" in str(failure.get("message"))
    assert report.passed is False
    allowed = replace(
        report, plan=replace(report.plan, thresholds=Thresholds(allow_undecided=True))
    )
    (case,) = ElementTree.fromstring(to_junit(allowed))[0]
    assert case.find("failure") is None
    assert case.find("skipped") is not None
    assert allowed.passed is True


def test_hostile_strings_are_inert(make_report: Make) -> None:
    report = make_report(
        model=HOSTILE,
        details=(("general.name", HOSTILE + "\udcff"),),
        scalings=("file",),
        kv=("f16",),
    )
    assert json.loads(to_json(report))["models"][0]["name"] == HOSTILE
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert rows[0]["model"].startswith("'=cmd")
    cases = list(ElementTree.fromstring(to_junit(report)).iter("testcase"))
    assert len(cases) > len(report.cells) > 0
    for case in cases:
        assert "<script>" in str(case.get("classname"))
