"""The tasks of a plan as evaluations, and their results as cells.

One function a task: it builds the evaluation from the plan, runs it for the cells still to do, and
turns what it yields into metrics. Nothing else in `runs` knows what a task measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..errors import StorageError
from ..evals.needle import NeedleResult, NeedleTask
from ..evals.needle_plan import NeedlePlan, passkey_plan
from ..evals.protocol import LanguageModel, Progress
from ..evals.types import OpenContext, Score
from .cells import Cell, CellResult, Metric
from .jobs import Job
from .plan import RunPlan, TaskName


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a task is to measure: `cells` are those of the job that have no result yet.

    `planned` is called with the tokens that `progress` will add up to, as soon as they are known.
    """

    plan: RunPlan
    job: Job
    cells: tuple[Cell, ...]
    model: LanguageModel
    open_context: OpenContext
    planned: Progress | None = None
    progress: Progress | None = None

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths of the whole job, ascending."""
        return tuple(sorted({cell.context_tokens for cell in self.job.cells}))


Measure: TypeAlias = Callable[[Request], Iterator[CellResult]]
"""Yields each cell's result as it is known. WishError where the job cannot be carried out."""


def needle(request: Request) -> Iterator[CellResult]:
    """A grid of needles: recall, whether the answer beats the distractors, log-probability."""
    plan = request.plan
    control = {cell.context_tokens for cell in request.job.cells if cell.control}
    yield from _ask(
        request,
        NeedlePlan(
            lengths=tuple(c for c in request.contexts if c not in control),
            depths=plan.depth_percents,
            samples=plan.samples,
            seed=request.job.seed,
            mode=plan.mode,
            kind=plan.value,
            haystack=plan.haystack.kind,
            text=_text(plan.haystack.file),
            control=min(control, default=None),
        ),
    )


def passkey(request: Request) -> Iterator[CellResult]:
    """Five digits in a noise haystack, one prompt a cell."""
    plan = request.plan
    yield from _ask(
        request,
        passkey_plan(
            lengths=request.contexts,
            depths=plan.depth_percents,
            samples=plan.samples,
            seed=request.job.seed,
        ),
    )


MEASURES: Mapping[TaskName, Measure] = {"needle": needle, "passkey": passkey}


def _ask(request: Request, plan: NeedlePlan) -> Iterator[CellResult]:
    todo = {_needle_key(cell): cell for cell in request.cells}
    done = {_needle_key(cell) for cell in request.job.cells} - set(todo)
    task = NeedleTask(plan)
    if request.planned is not None:
        request.planned(task.planned_tokens(request.model, done=done))
    for result in task.run(
        request.model, request.open_context, done=done, progress=request.progress
    ):
        yield _needle_cell(todo[result.key], result)


def _needle_key(cell: Cell) -> str:
    return f"{cell.context_tokens}/{cell.depth_percent:g}/{cell.sample}"


def _needle_cell(cell: Cell, result: NeedleResult) -> CellResult:
    return CellResult(
        cell=cell,
        status="ok" if result.exact.value is not None else "error",
        reason=result.exact.reason or None,
        metrics=(
            Metric(name="recall", value=result.exact.value),
            Metric(name="beats_distractors", value=_is_first(result.rank)),
            Metric(name="log_probability", value=result.log_probability.value),
            Metric(name="rank", value=result.rank.value),
            Metric(name="measured_depth", value=result.measured_depth),
        ),
        notes=(("needle", result.needle), ("answer", result.answer)),
        prompt_tokens=result.prompt_tokens,
    )


def _is_first(rank: Score) -> float | None:
    return None if rank.value is None else float(rank.value == 1)


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot read the text: {error}") from error
