"""The tasks of a plan as evaluations, and their results as cells.

One adapter a task: it builds the evaluation from the plan, names each cell as the evaluation
does, and turns a result into metrics. Nothing else in `runs` knows what a task measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import StorageError
from ..evals.needle import NeedleResult, NeedleTask
from ..evals.needle_plan import NeedlePlan, passkey_plan
from ..evals.types import Score, Task
from .cells import Cell, CellResult, Metric
from .jobs import Job
from .plan import RunPlan, TaskName

Build: TypeAlias = Callable[[RunPlan, Job], Task[Any]]
Key: TypeAlias = Callable[[Cell], str]
Measure: TypeAlias = Callable[[Cell, Any], CellResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A task name's evaluation: how to build it, its keys, and the metrics of a result."""

    build: Build
    key: Key
    measure: Measure


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot read the text: {error}") from error


def _needle(plan: RunPlan, job: Job) -> NeedleTask:
    return NeedleTask(
        plan=NeedlePlan(
            lengths=tuple(sorted(plan.contexts)),
            depths=plan.depth_percents,
            samples=plan.samples,
            seed=job.seed,
            mode=plan.mode,
            kind=plan.value,
            haystack=plan.haystack.kind,
            text=_text(plan.haystack.file),
            control=next((c.context_tokens for c in job.cells if c.control), None),
        )
    )


def _passkey(plan: RunPlan, job: Job) -> NeedleTask:
    return NeedleTask(
        plan=passkey_plan(
            lengths=tuple(sorted(plan.contexts)),
            depths=plan.depth_percents,
            samples=plan.samples,
            seed=job.seed,
        )
    )


def _needle_key(cell: Cell) -> str:
    return f"{cell.context_tokens}/{cell.depth_percent:g}/{cell.sample}"


def _measure_needle(cell: Cell, result: NeedleResult) -> CellResult:
    return CellResult(
        cell=cell,
        status="ok" if result.exact.value is not None else "error",
        reason=result.exact.reason or None,
        metrics=(
            Metric(name="recall", value=result.exact.value),
            Metric(name="log_probability", value=result.log_probability.value),
            Metric(name="beats_distractors", value=_first(result.rank)),
            Metric(name="rank", value=result.rank.value),
            Metric(name="measured_depth", value=result.measured_depth),
        ),
        notes=(("needle", result.needle), ("answer", result.answer)),
        prompt_tokens=result.prompt_tokens,
    )


def _first(rank: Score) -> float | None:
    return None if rank.value is None else float(rank.value == 1)


ADAPTERS: Mapping[TaskName, Adapter] = {
    "needle": Adapter(build=_needle, key=_needle_key, measure=_measure_needle),
    "passkey": Adapter(build=_passkey, key=_needle_key, measure=_measure_needle),
}
