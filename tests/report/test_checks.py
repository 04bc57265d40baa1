"""A check of files as Markdown and JUnit XML, whatever their names and strings are."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from ggufrope.patching.check import CheckReport, ConfigCheck, FileCheck
from ggufrope.report.checks import to_junit, to_markdown
from ggufrope.rope.findings import Finding, error, info, warning

HOSTILE = "a|b`<script>@team #1 \x1b[31m\x00]]>&"


def checked(*findings: Finding, name: str = "m.gguf", command: str | None = None) -> FileCheck:
    readable = all(finding.code != "unreadable" for finding in findings)
    return FileCheck(
        name=name,
        place=Path(name),
        architecture="llama" if readable else None,
        context_length=131072 if readable else None,
        scaling="none" if readable else None,
        findings=findings,
        readable=readable,
        config=None if command is None else ConfigCheck(agrees=False, command=command),
    )


REPORT = CheckReport(
    files=(
        checked(),
        checked(info("a-note", "", "harmless"), name="noted.gguf"),
        checked(
            error("config-differs", "k", "is not"),
            warning("far", "k", "is far"),
            name="bad.gguf",
            command="ggufrope patch bad.gguf -o good.gguf",
        ),
        checked(error("unreadable", "", "no such file"), name="gone.gguf"),
    )
)


def test_markdown_has_a_row_for_each_file_and_every_finding() -> None:
    text = to_markdown(REPORT)
    assert text.startswith("## ggufrope check: failed\n")
    assert "| m.gguf | llama | 131,072 | none | ok |" in text
    assert "| gone.gguf | – | – | – | error unreadable |" in text
    assert "4 files: 2 error, 1 warning, 1 info" in text
    assert "- bad.gguf: warning far: is far" in text
    assert "```sh\nggufrope patch bad.gguf -o good.gguf\n```" in text
    assert to_markdown(CheckReport(files=(checked(),))).startswith("## ggufrope check: passed\n")


def test_junit_has_a_case_for_each_file() -> None:
    suite = ElementTree.fromstring(to_junit(REPORT))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    fine, noted, bad, gone = suite
    assert list(fine) == []
    assert [child.tag for child in noted] == ["system-out"]
    assert [(child.tag, child.get("message")) for child in bad] == [
        ("failure", "config-differs: is not"),
        ("system-out", None),
    ]
    assert [child.tag for child in gone] == ["error"]


@pytest.mark.parametrize("name", [HOSTILE, "x\ny", "\ud800"])
def test_strings_of_a_file_are_no_markup(name: str) -> None:
    report = CheckReport(files=(checked(error("bad", "k", name), name=name),))
    text = to_markdown(report)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert text.count("\n| ") == 3
    suite = ElementTree.fromstring(to_junit(report))[0]
    assert suite.get("tests") == "1"
