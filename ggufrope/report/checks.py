"""A check of model files as Markdown, for the summary of a CI job, and as JUnit XML."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ggufrope.report.exports import xml_text
from ggufrope.report.overview import bullets, code_block, markdown_table, plain

if TYPE_CHECKING:
    from ggufrope.patching.check import CheckReport, FileCheck


def to_markdown(report: CheckReport) -> str:
    """Return a table with one row per file, then every finding, and the commands that mend what
    differs from a config."""
    heads = ("file", "architecture", "context", "scaling", "worst finding")
    counts = [f"{count} {severity}" for severity, count in report.counts.items() if count]
    files = f"{len(report.files)} file{'s' * (len(report.files) != 1)}"
    commands = [file.config.command for file in report.files if file.config and file.config.command]
    parts = [
        f"## ggufrope check: {'passed' if report.passed else 'failed'}",
        markdown_table(heads, [_row(file) for file in report.files]),
        plain(f"{files}: {', '.join(counts) or 'no finding'}"),
        bullets(
            [
                f"{file.name}: {finding.severity} {finding.code}: {finding.message}"
                for file in report.files
                for finding in file.findings
            ]
        ),
        code_block(commands),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_junit(report: CheckReport) -> str:
    """Return JUnit XML with one test case per file.

    A finding of severity "error" is a failure; a file that cannot be read is an error.
    """
    suites = ElementTree.Element("testsuites", name="ggufrope check")
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        name="ggufrope check",
        tests=str(len(report.files)),
        failures=str(sum(not file.passed and file.readable for file in report.files)),
        errors=str(sum(not file.readable for file in report.files)),
    )
    for file in report.files:
        case = ElementTree.SubElement(
            suite, "testcase", classname="ggufrope check", name=xml_text(file.name)
        )
        others = []
        for finding in file.findings:
            message = xml_text(f"{finding.code}: {finding.message}")
            if finding.severity == "error":
                kind = "failure" if file.readable else "error"
                ElementTree.SubElement(case, kind, type=xml_text(finding.code), message=message)
            else:
                others.append(f"{finding.severity} {message}")
        if others:
            ElementTree.SubElement(case, "system-out").text = "\n".join(others)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _row(file: FileCheck) -> tuple[str, ...]:
    return (
        file.name,
        file.architecture or "–",
        "–" if file.context_length is None else f"{file.context_length:,}",
        file.scaling or "–",
        "ok" if file.worst is None else f"{file.worst.severity} {file.worst.code}",
    )
