"""Needles and pass keys: is a fact found again, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.evals.needle import NeedleResult, NeedleTask
from ggufrope.evals.needle_prompts import NeedlePlan, passkey_plan
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.evals.types import Score
    from ggufrope.runs.tasks.request import Request


def needle(request: Request) -> Iterator[CellResult]:
    """A grid of needles: recall, whether the answer beats the distractors, log-probability."""
    plan = request.plan
    file = plan.haystack.file
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
            text=None if file is None else read_text(Path(file)).content,
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


def _ask(request: Request, plan: NeedlePlan) -> Iterator[CellResult]:
    for cell, result in request.answers(NeedleTask(plan), _needle_key):
        yield _cell(cell, result)


def _needle_key(cell: Cell) -> str:
    return f"{cell.context_tokens}/{cell.depth_percent:g}/{cell.sample}"


def _cell(cell: Cell, result: NeedleResult) -> CellResult:
    return CellResult(
        cell=cell,
        status="ok" if result.exact.value is not None else "error",
        reason=result.exact.reason or None,
        metrics=(
            Metric(name="recall", value=result.exact.value),
            Metric(name="top_ranked", value=_is_first(result.rank)),
            Metric(name="log_probability", value=result.log_probability.value),
            Metric(name="rank", value=result.rank.value),
            Metric(name="measured_depth", value=result.measured_depth),
        ),
        notes=(("needle", result.needle), ("answer", result.answer)),
        prompt_tokens=result.prompt_tokens,
    )


def _is_first(rank: Score) -> float | None:
    return None if rank.value is None else float(rank.value == 1)
