"""Reports as JSON, CSV and JUnit XML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from ggufrope.evals.stats import proportion
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


def test_the_summary_has_a_share_with_wilsons_interval(make_report: Make) -> None:
    rows = json.loads(to_json(make_report()))["summary"]
    row = next(
        r
        for r in rows
        if (r["scaling"], r["kv"], r["task"], r["context_tokens"])
        == ("linear", "f16", "needle", 8192)
    )
    recall = row["metrics"]["recall"]
    expected = proportion(2, 5)
    assert recall == {
        "value": expected.value,
        "low": expected.low,
        "high": expected.high,
        "n": 5,
    }
    assert row["metrics"]["log_probability"]["n"] == 5
    assert row["cells"] == row["scored"] == 5


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


def test_junit_has_one_test_case_per_cell(make_report: Make) -> None:
    report = make_report(kv=("f16", "iq4_nl"), scalings=("file",))
    verdict, *suites = ElementTree.fromstring(to_junit(report))
    cases = [case for suite in suites for case in suite.findall("testcase")]
    assert len(cases) == len(report.cells)
    assert len({case.get("name") for case in cases}) == len(cases)
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert len(skipped) == 24
    assert skipped[0].find("skipped").get("message") == "no such cache here"  # type: ignore[union-attr]
    assert suites[2].get("skipped") == "20"
    failures = [case.get("name") for case in verdict if case.find("failure") is not None]
    assert verdict.get("failures") == str(len(failures))
    assert failures[:2] == ["recall at 4096 tokens", "recall at 8192 tokens"]


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
