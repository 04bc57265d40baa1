"""What a task is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from ggufrope.evals.results import Cell, CellResult
from ggufrope.evals.texts import Text, read_text
from ggufrope.evals.types import Result, Task
from ggufrope.lm import LanguageModel, OpenContext, Progress
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.jobs import Job
from ggufrope.runs.plan import KvTypes, RunPlan

ResultT = TypeVar("ResultT", bound=Result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a task is to measure: `cells` are those of the job that have no result yet.

    `open_context` opens contexts as the job says, `contexts_of` as any scaling and cache types
    say. `planned` is called with the tokens that `progress` will add up to, once they are known.
    """

    plan: RunPlan
    job: Job
    cells: tuple[Cell, ...]
    model: LanguageModel
    open_context: OpenContext
    contexts_of: Callable[[ScalingRequest, KvTypes], OpenContext]
    planned: Progress | None = None
    progress: Progress | None = None

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths of the whole job, ascending."""
        return tuple(sorted({cell.context_tokens for cell in self.job.cells}))

    @property
    def text(self) -> Text | None:
        """The user's text for perplexity and divergence. Raises StorageError, RequestError."""
        return None if self.plan.text is None else read_text(Path(self.plan.text))

    def answers(
        self, task: Task[ResultT], key: Callable[[Cell], str]
    ) -> Iterator[tuple[Cell, ResultT]]:
        """Carry out `task` for the cells still to do, each with its result; `key` is how the task
        calls a cell."""
        todo = {key(cell): cell for cell in self.cells}
        done = {key(cell) for cell in self.job.cells} - set(todo)
        self.plan_tokens(task.planned_tokens(self.model, done=done))
        for result in task.run(self.model, self.open_context, done=done, progress=self.progress):
            yield todo[result.key], result

    def plan_tokens(self, count: int) -> None:
        """Tell whoever watches how many tokens will be evaluated."""
        if self.planned is not None:
            self.planned(count)


Measure: TypeAlias = Callable[[Request], Iterator[CellResult]]
"""Yields each cell's result as it is known. RequestError where the job cannot be carried out."""
