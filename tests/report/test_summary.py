"""Rows of a report and verdicts on them: intervals by n, and no measurement left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.ruler.specs import RULER_TASKS
from ggufrope.evals.verdict import Thresholds
from ggufrope.report.record import RunReport
from ggufrope.report.summary import SummaryRow, judge_settings, summarize
from ggufrope.report.views import problems, ruler_scores

Make = Callable[..., RunReport]


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


def combined(name: str, *values: float) -> Metric:
    """The metric of one summary row over cells with these values."""
    cells = [
        Cell(
            model="m",
            scaling="file",
            kv="f16",
            task="needle",
            context_tokens=4096,
            seed=seed,
            depth_percent=50.0,
        )
        for seed in range(len(values))
    ]
    (found,) = summarize(
        CellResult(cell=cell, status="ok", metrics=(Metric(name=name, value=value),))
        for cell, value in zip(cells, values, strict=True)
    )
    metric = found.metric(name)
    assert metric is not None
    return metric


def test_the_mean_of_two_cells_has_the_interval_of_students_t() -> None:
    metric = combined("log_probability", -1.0, -0.5)
    assert metric.value == pytest.approx(-0.75)
    assert metric.n == 2
    # 12.7062 is the 97.5th percentile of t with one degree of freedom; 0.25 the standard error.
    assert (metric.low, metric.high) == pytest.approx((-0.75 - 3.17655, -0.75 + 3.17655), abs=1e-4)


def test_one_cell_has_no_interval() -> None:
    metric = combined("log_probability", -1.0)
    assert (metric.value, metric.low, metric.high) == (-1.0, None, None)


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


def ruler_report(
    report: RunReport, *scores: tuple[str, int, float | None], context: int = 4096
) -> RunReport:
    """A report with these RULER samples, (task, sample, score), and nothing else."""
    results = [
        CellResult(
            cell=Cell(
                model="m",
                scaling="file",
                kv="f16",
                task="ruler",
                part=part,
                context_tokens=context,
                seed=0,
                sample=sample,
            ),
            status="error" if score is None else "ok",
            reason="failed" if score is None else None,
            metrics=(Metric(name="score", value=score),),
        )
        for part, sample, score in scores
    ]
    return replace(report, cells=tuple(results), summary=summarize(results))


def test_the_ruler_mean_is_of_tasks_not_of_samples(make_report: Make) -> None:
    report = ruler_report(make_report(), ("vt", 0, 1.0), ("vt", 1, 0.0), ("cwe", 0, 1.0))
    (found,) = ruler_scores(report)
    assert found.tasks == (("vt", 4096, 0.5), ("cwe", 4096, 1.0))
    assert found.means == ((4096, 0.75),)
    assert (found.effective, found.published) == (4096, None)


def test_ruler_samples_without_a_score_are_no_zeros(make_report: Make) -> None:
    report = ruler_report(make_report(), ("vt", 0, 1.0), ("vt", 1, None), ("cwe", 0, None))
    (found,) = ruler_scores(report)
    assert found.means == ((4096, 1.0),)
    assert [(problem.status, problem.cells) for problem in problems(report)] == [("error", 2)]
    assert ruler_scores(ruler_report(make_report(), ("vt", 0, None))) == ()


def test_all_thirteen_ruler_tasks_count_alike(make_report: Make) -> None:
    scores = [(spec.name, 0, float(spec.family == "niah")) for spec in RULER_TASKS]
    (found,) = ruler_scores(ruler_report(make_report(), *scores))
    assert len(found.tasks) == 13
    assert found.means == ((4096, pytest.approx(8 / 13)),)
