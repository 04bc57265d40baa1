"""RULER-style tasks: one cell a sample of a task at a length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.ruler.qa import read_hotpotqa, read_squad
from ggufrope.evals.ruler.scoring import RulerResult
from ggufrope.evals.ruler.task import RulerPlan, RulerTask
from ggufrope.evals.ruler.wording import read_templates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.runs.tasks.request import Request


def ruler(request: Request) -> Iterator[CellResult]:
    """The share of the right answers in what the model generates."""
    settings = request.plan.ruler
    task = RulerTask(
        RulerPlan(
            lengths=request.contexts,
            tasks=settings.parts,
            samples=request.plan.samples,
            seed=request.job.seed,
            squad=None if settings.squad is None else read_squad(Path(settings.squad)),
            hotpotqa=None if settings.hotpotqa is None else read_hotpotqa(Path(settings.hotpotqa)),
            templates={}
            if settings.templates is None
            else read_templates(Path(settings.templates)),
        )
    )
    for cell, result in request.answers(task, _key):
        yield _cell(cell, result)


def _key(cell: Cell) -> str:
    return f"{cell.part}/{cell.context_tokens}/{cell.sample}"


def _cell(cell: Cell, result: RulerResult) -> CellResult:
    return CellResult(
        cell=cell,
        status="ok" if result.score.value is not None else "error",
        reason=result.score.reason or None,
        metrics=(Metric(name="score", value=result.score.value),),
        notes=(("output", result.output), ("answers", ", ".join(result.answers))),
        prompt_tokens=result.prompt_tokens,
    )
