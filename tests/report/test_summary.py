"""Rows of a report: intervals by n, methods combined, and no measurement left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ggufrope.evals.recall import RecallCell
from ggufrope.evals.results import Cell, CellResult, Method, Metric, Status
from ggufrope.evals.ruler.specs import RULER_TASKS
from ggufrope.evals.task import TaskName
from ggufrope.report.record import RunReport
from ggufrope.report.summary import recall_cells, summarize
from ggufrope.report.views import problems, ruler_scores

Make = Callable[..., RunReport]


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


@pytest.mark.parametrize(
    ("task", "part", "title"),
    [
        ("needle", None, "needle"),
        ("needle", "latent", "needle (latent)"),
        ("ruler", "vt", "ruler"),
    ],
)
def test_a_row_names_the_kind_of_its_needles(task: TaskName, part: str | None, title: str) -> None:
    cell = Cell(
        model="m", scaling="file", kv="f16", task=task, part=part, context_tokens=4096, seed=0
    )
    (row,) = summarize([CellResult(cell=cell, status="ok")])
    assert row.title == title


def test_one_cell_has_no_interval() -> None:
    metric = combined("log_probability", -1.0)
    assert (metric.value, metric.low, metric.high) == (-1.0, None, None)


def needle(
    recall: float, method: Method | None, *, sample: int = 0, status: Status = "ok"
) -> CellResult:
    cell = Cell(
        model="m",
        scaling="file",
        kv="f16",
        task="needle",
        context_tokens=4096,
        seed=0,
        depth_percent=50.0,
        sample=sample,
        method=method,
    )
    metrics = (Metric(name="recall", value=recall), Metric(name="log_probability", value=-recall))
    return CellResult(cell=cell, status=status, metrics=metrics if status == "ok" else ())


def test_a_row_combines_spliced_needles_and_whole_prompts() -> None:
    results = [needle(1.0, "spliced", sample=n) for n in range(44)]
    results += [needle(float(n > 0), "whole", sample=n) for n in range(20)]
    results += [needle(0.0, "whole", sample=n, status="skipped") for n in range(20, 44)]
    (row,) = summarize(results)
    assert (row.cells, row.scored, row.skipped) == (88, 64, 24)
    found = {metric.name: (metric.value, metric.n) for metric in row.metrics}
    assert found == {
        "recall": (pytest.approx(0.95), 20),
        "spliced_recall": (1.0, 44),
        "whole_recall": (0.95, 20),
        "agreement": (0.95, 20),
        "log_probability": (-1.0, 44),
    }
    assert recall_cells(results)[0] == RecallCell(spliced=True, whole=False)
    assert recall_cells(results)[43] == RecallCell(spliced=True, whole=None)


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
    assert dict(found.means) == {4096: pytest.approx(8 / 13)}
