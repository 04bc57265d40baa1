"""The public fake runtime, with a record of what was opened and evaluated."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ggufrope.errors import InsufficientMemoryError
from ggufrope.evals.divergence import (
    DivergencePlan,
    DivergenceScore,
    compare_contexts,
    comparing_tokens,
)
from ggufrope.evals.needle import NeedleScore, ask, asking_tokens
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import ChunkScore, PerplexityPlan, read_chunks, reading_tokens
from ggufrope.evals.results import Cell, CellResult, Method
from ggufrope.evals.task import Base, Lengths, Task, TaskRequest, TaskSettings
from ggufrope.lm import OpenContext
from ggufrope.runtime.fake import FakeContext, FakeModel


def cells_of(
    task: Task, settings: TaskSettings, contexts: tuple[int, ...], native: int | None = None
) -> tuple[Cell, ...]:
    """The cells that a task fills for one model and setting."""
    return tuple(
        Cell(
            model="fake",
            scaling="file",
            kv="f16",
            task=task.name,
            seed=0,
            context_tokens=place.context_tokens,
            depth_percent=place.depth_percent,
            sample=place.sample,
            part=place.part,
            method=place.method,
        )
        for place in task.places(settings, Lengths(contexts=contexts, native=native))
    )


class Bench:
    """Measures a fake model, and checks that progress comes to what was planned."""

    def __init__(
        self,
        *,
        horizon: int | None = None,
        failing_calls: Iterable[int] = (),
        n_batch: int = 512,
        append_only: str | None = None,
    ) -> None:
        self.model = FakeModel(horizon=horizon)
        self.contexts: list[FakeContext] = []
        self.tokens = 0
        self.planned = 0
        self._failing_calls = tuple(failing_calls)
        self._n_batch = n_batch
        self._append_only = append_only

    def open(self, n_ctx: int) -> FakeContext:
        context = FakeContext(
            self.model,
            n_ctx=n_ctx,
            n_batch=self._n_batch,
            failing_calls=self._failing_calls,
            append_only=self._append_only,
        )
        self.contexts.append(context)
        return context

    def run(
        self,
        task: Task,
        *,
        contexts: tuple[int, ...],
        native: int | None = None,
        done: Collection[CellResult] = (),
        recall_minimum: float | None = None,
        open_base: OpenContext | None = None,
        open_context: OpenContext | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> list[CellResult]:
        """The results of a task's cells, except those that have the results `done`."""
        chosen = TaskSettings(**settings)
        cells = cells_of(task, chosen, contexts, native)
        request = TaskRequest(
            settings=chosen,
            model=self.model,
            open_context=open_context or self.open,
            cells=cells,
            done=tuple(done),
            recall_minimum=recall_minimum,
            seed=seed,
            base=None
            if open_base is None
            else Base(name="the base", cost_of="cache", open_context=open_base),
            planned=self._plan,
            progress=self._count,
        )
        self.tokens = self.planned = 0
        results = list(task.run(request))
        self._check()
        assert {result.cell for result in results} == set(request.todo)
        assert self.planned <= task.tokens(chosen, cells)
        return results

    def ask(self, plan: NeedlePlan, *, method: Method = "spliced") -> list[NeedleScore]:
        """The scores of a needle plan."""
        self.tokens, self.planned = 0, asking_tokens(plan, self.model, method=method)
        scores = list(ask(plan, self.model, self.open, method=method, progress=self._count))
        self._check()
        return scores

    def read(self, plan: PerplexityPlan) -> list[ChunkScore]:
        """The chunks of a perplexity plan."""
        self.tokens, self.planned = 0, reading_tokens(plan, self.model)
        chunks = list(read_chunks(plan, self.model, self.open, progress=self._count))
        self._check()
        return chunks

    def compare(self, plan: DivergencePlan, open_base: OpenContext) -> DivergenceScore:
        """The divergence of this model from a base."""
        self.tokens, self.planned = 0, comparing_tokens(plan, self.model)
        score = compare_contexts(plan, self.model, open_base, self.open, progress=self._count)
        self._check()
        return score

    def _plan(self, tokens: int) -> None:
        self.planned += tokens

    def _count(self, tokens: int) -> None:
        self.tokens += tokens

    def _check(self) -> None:
        """Progress must come to what was planned unless something failed."""
        assert self.tokens == self.planned or self._failing_calls
        assert all(context.closed for context in self.contexts)


def opener(model: FakeModel, n_batch: int = 512) -> OpenContext:
    """Opens contexts of a fake model."""
    return lambda n_ctx: FakeContext(model, n_ctx=n_ctx, n_batch=n_batch)


def refusing(message: str) -> OpenContext:
    """Opens nothing."""

    def refuse(n_ctx: int) -> FakeContext:
        raise InsufficientMemoryError(message)

    return refuse
