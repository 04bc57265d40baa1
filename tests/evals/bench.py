"""The public fake runtime, with a record of what was opened and evaluated."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ggufrope.errors import InsufficientMemoryError
from ggufrope.evals.types import Task
from ggufrope.lm import OpenContext
from ggufrope.runtime.fake import FakeContext, FakeModel


class Bench:
    """Runs tasks on a fake model."""

    def __init__(
        self, *, horizon: int | None = None, failing_calls: Iterable[int] = (), n_batch: int = 512
    ) -> None:
        self.model = FakeModel(horizon=horizon)
        self.contexts: list[FakeContext] = []
        self.tokens = 0
        self._failing_calls = tuple(failing_calls)
        self._n_batch = n_batch

    def open(self, n_ctx: int) -> FakeContext:
        context = FakeContext(
            self.model, n_ctx=n_ctx, n_batch=self._n_batch, failing_calls=self._failing_calls
        )
        self.contexts.append(context)
        return context

    def run(self, task: Task[Any], *, done: Collection[str] = ()) -> list[Any]:
        """All results; progress must come to what was planned unless something failed."""
        planned = task.planned_tokens(self.model, done=done)
        self.tokens = 0
        results = list(task.run(self.model, self.open, done=done, progress=self._count))
        assert self.tokens == planned or self._failing_calls
        assert all(context.closed for context in self.contexts)
        return results

    def _count(self, tokens: int) -> None:
        self.tokens += tokens


def refusing(message: str) -> OpenContext:
    """Opens nothing."""

    def refuse(n_ctx: int) -> FakeContext:
        raise InsufficientMemoryError(message)

    return refuse
