"""Verdicts on the rows of a report: nothing measured may be left out of them."""

from __future__ import annotations

import pytest

from ggufrope.evals.results import Metric
from ggufrope.evals.verdict import Thresholds
from ggufrope.report.judging import judge_settings
from ggufrope.report.summary import SummaryRow


def row(
    task: str, metric: str, value: float, *, context: int = 4096, scored: int = 5
) -> SummaryRow:
    return SummaryRow(
        model="m",
        scaling="file",
        kv="f16",
        task=task,
        part=None,
        context_tokens=context,
        control=False,
        cells=5,
        scored=scored,
        metrics=(Metric(name=metric, value=value, n=scored),),
        elapsed_seconds=1.0,
    )


def passes(*rows: SummaryRow) -> bool:
    (found,) = judge_settings(rows, Thresholds())
    return found.verdict.passed


@pytest.mark.parametrize("tasks", [("needle", "passkey"), ("passkey", "needle")])
def test_one_task_does_not_hide_another(tasks: tuple[str, str]) -> None:
    lost, found = (row(task, "recall", value) for task, value in zip(tasks, (0, 1), strict=True))
    assert passes(found)
    assert not passes(lost, found)
    assert not passes(found, lost)


@pytest.mark.parametrize(
    ("task", "metric"),
    [("needle", "recall"), ("ruler", "score"), ("perplexity", "nll")],
)
def test_cells_without_a_score_fail(task: str, metric: str) -> None:
    short = row(task, metric, 1.0)
    assert passes(short, row(task, metric, 1.0, context=8192))
    assert not passes(short, row(task, metric, 1.0, context=8192, scored=4))
