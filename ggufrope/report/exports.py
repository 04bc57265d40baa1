"""A report as JSON, JSON lines, CSV and JUnit XML, for scripts, spreadsheets and CI systems."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ggufrope._format import safe
from ggufrope._plain import Plain, decodable, encode
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.verdict import worst
from ggufrope.report.conclusion import conclude

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.evals.recall import Outcome
    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow

_AXES = tuple(Cell.__dataclass_fields__)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_plain(report: RunReport, *, against: Comparison | None = None) -> dict[str, Plain]:
    """Return the report as plain data for JSON: absent values are null, metrics keyed by name."""
    return {
        "schema": report.schema,
        "name": report.plan.name,
        "created": report.created.isoformat(timespec="seconds"),
        "complete": report.complete,
        "plan": encode(report.plan),
        "models": [
            {**_plain(model.file), "details": dict(model.file.details), "sha256": model.sha256}
            for model in report.models
        ],
        "workers": [
            {"id": worker.id, "started": worker.started, "environment": dict(worker.environment)}
            for worker in report.workers
        ],
        "jobs": [
            {
                "id": job.job.id,
                "label": job.job.label,
                "state": job.state,
                "reason": job.reason,
                "worker": job.worker,
                "started": job.started,
                "ended": job.ended,
            }
            for job in report.jobs
        ],
        "summary": [_row_plain(row) for row in report.summary],
        "verdict": {
            "passed": report.passed,
            "outcome": report.outcome,
            "checks": [
                {
                    "model": entry.model,
                    "scaling": entry.scaling,
                    "kv": entry.kv,
                    "passed": check.outcome == "pass",
                    **_plain(check),
                }
                for entry in report.verdicts
                for check in entry.verdict.checks
            ],
        },
        "conclusion": _plain(conclude(report)),
        "cells": [_cell_plain(result) for result in report.cells],
        "against": None if against is None else _comparison_plain(against),
    }


def to_json(report: RunReport, *, against: Comparison | None = None) -> str:
    """Return the report as one JSON object, whose version is its "schema"."""
    return (
        json.dumps(decodable(to_plain(report, against=against)), indent=2, allow_nan=False) + "\n"
    )


def to_jsonl(report: RunReport) -> str:
    """Return one JSON object per line and cell, each as in the `cells` of `to_json`."""
    cells = (decodable(_cell_plain(result)) for result in report.cells)
    return "".join(json.dumps(cell, allow_nan=False) + "\n" for cell in cells)


def to_csv(report: RunReport) -> str:
    """Return one row per cell: its place, status and every metric of the run, empty if absent.

    `verdict` is the outcome of the checks of the task at that length. Text that a spreadsheet would
    read as a formula gets an apostrophe in front.
    """
    names = tuple(dict.fromkeys(m.name for result in report.cells for m in result.metrics))
    bounded = {m.name for r in report.cells for m in r.metrics if m.low is not None}
    columns = [
        column
        for name in names
        for column in (name, *((f"{name}_low", f"{name}_high") if name in bounded else ()))
    ]
    outcomes = _outcomes(report)
    out = io.StringIO()
    writer = csv.DictWriter(
        out,
        [*_AXES, "status", "verdict", "reason", "prompt_tokens", "elapsed_seconds", *columns],
        lineterminator="\n",
    )
    writer.writeheader()
    for result in report.cells:
        row = _plain(result.cell) | {
            "status": result.status,
            "verdict": None if result.cell.control else outcomes.get(_outcome_key(result.cell)),
            "reason": result.reason,
            "prompt_tokens": result.prompt_tokens,
            "elapsed_seconds": result.elapsed_seconds,
        }
        for metric in result.metrics:
            row[metric.name] = metric.value
            if metric.name in bounded:
                row |= {f"{metric.name}_low": metric.low, f"{metric.name}_high": metric.high}
        writer.writerow({name: _inert(value) for name, value in row.items()})
    return out.getvalue()


def _outcomes(report: RunReport) -> dict[tuple[str, ...], Outcome | None]:
    """Return the worst outcome of the checks of each setting, task and length."""
    found: dict[tuple[str, ...], list[Outcome]] = {}
    for entry in report.verdicts:
        for check in entry.verdict.checks:
            key = (entry.model, entry.scaling, entry.kv, check.task, str(check.context_tokens))
            found.setdefault(key, []).append(check.outcome)
    return {key: worst(outcomes) for key, outcomes in found.items()}


def _outcome_key(cell: Cell) -> tuple[str, ...]:
    return (cell.model, cell.scaling, cell.kv, cell.task, str(cell.context_tokens))


def to_junit(report: RunReport) -> str:
    """Return JUnit XML: one test case per check of the verdict, and one per cell.

    A check that fails is a failure of type "fail". One that is undecided is a failure of type
    "undecided", or skipped where the plan allows it. A cell that could not be measured is an error,
    and one that this build cannot run is skipped. A measured cell passes whatever its score: the
    checks of the verdict judge the scores.
    """
    suites = ElementTree.Element("testsuites", name=xml_text(report.plan.name))
    groups: dict[tuple[str, str, str, str], list[CellResult]] = {}
    for result in report.cells:
        cell = result.cell
        groups.setdefault((cell.model, cell.scaling, cell.kv, cell.task), []).append(result)
    suites.append(_verdict_suite(report))
    for axes, results in groups.items():
        suites.append(_suite(" · ".join(axes), results))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _plain(value: object) -> Plain:
    return encode(value, nulls=True)


def _comparison_plain(comparison: Comparison) -> dict[str, Plain]:
    return {
        "changes": [_plain(change) | {"worse": change.worse} for change in comparison.changes],
        "differences": _plain(comparison.differences),
        "only_before": comparison.only_before,
        "only_after": comparison.only_after,
        "regressions": len(comparison.regressions),
    }


def _row_plain(row: SummaryRow) -> dict[str, Plain]:
    return {**_plain(row), "metrics": _metrics_plain(row.metrics)}


def _cell_plain(result: CellResult) -> dict[str, Plain]:
    return {
        **_plain(result),
        "metrics": _metrics_plain(result.metrics),
        "curves": {curve.name: [list(point) for point in curve.points] for curve in result.curves},
        "notes": dict(result.notes),
    }


def _metrics_plain(metrics: Iterable[Metric]) -> dict[str, Plain]:
    return {
        metric.name: {k: v for k, v in _plain(metric).items() if k != "name"} for metric in metrics
    }


def _verdict_suite(report: RunReport) -> ElementTree.Element:
    checks = [(entry.label, check) for entry in report.verdicts for check in entry.verdict.checks]
    allowed = report.plan.thresholds.allow_undecided
    open_ = sum(check.outcome == "undecided" for _, check in checks)
    failures = sum(check.outcome == "fail" for _, check in checks) + open_ * (not allowed)
    suite = ElementTree.Element(
        "testsuite",
        name="verdict",
        tests=str(len(checks)),
        failures=str(failures),
        errors="0",
        skipped=str(open_ * allowed),
        time=_seconds(0.0),
    )
    for label, check in checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=xml_text(f"verdict · {label}"),
            name=f"{check.task} {check.name} at {check.context_tokens} tokens",
            time=_seconds(0.0),
        )
        if check.outcome == "fail":
            ElementTree.SubElement(case, "failure", type="fail", message=xml_text(check.reason))
        elif check.outcome == "undecided":
            reasons = "; ".join(filter(None, (check.reason, check.decide)))
            message = xml_text(f"undecided: {reasons}")
            if allowed:
                ElementTree.SubElement(case, "skipped", message=message)
            else:
                ElementTree.SubElement(case, "failure", type="undecided", message=message)
    return suite


def _suite(name: str, results: list[CellResult]) -> ElementTree.Element:
    suite = ElementTree.Element(
        "testsuite",
        name=xml_text(name),
        tests=str(len(results)),
        failures="0",
        errors=str(sum(result.status == "error" for result in results)),
        skipped=str(sum(result.status in ("unsupported", "skipped") for result in results)),
        time=_seconds(sum(result.elapsed_seconds or 0.0 for result in results)),
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=xml_text(name),
            name=xml_text(result.cell.label),
            time=_seconds(result.elapsed_seconds or 0.0),
        )
        if result.status != "ok":
            kind = "error" if result.status == "error" else "skipped"
            reason = result.reason or result.status
            ElementTree.SubElement(case, kind, message=xml_text(reason))
        elif result.metrics:
            output = ElementTree.SubElement(case, "system-out")
            output.text = xml_text("\n".join(f"{m.name} {m.value}" for m in result.metrics))
    return suite


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def xml_text(text: str) -> str:
    """Return text with the characters that XML 1.0 cannot represent replaced."""
    return _NOT_XML.sub("\ufffd", text)


def _inert(value: object) -> object:
    """Return a value that a spreadsheet or a terminal shows as it is, never as a formula."""
    if not isinstance(value, str):
        return value
    text = safe(value)
    return "'" + text if text.startswith(_FORMULA_STARTS) else text
