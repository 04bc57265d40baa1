"""A context that moves from prompt to prompt and evaluates only the tokens that differ.

Prompts share the beginning that they have in common with the one before, so a task that orders its
prompts well evaluates each haystack once. Where a model evaluates several contexts side by side, as
a server with several slots, prompts take turns on them: prompt i is in lane i modulo their number,
so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from threading import Thread
from typing import TypeVar

from ggufrope.lm import AnswerScore, Branch, LanguageContext, OpenContext, Progress

T = TypeVar("T")
R = TypeVar("R")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    shortest = min(len(a), len(b))
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)


class Trunk:
    """A context and the tokens in it.

    It is opened when first needed, and opened anew after a failure.
    """

    def __init__(
        self, open_context: OpenContext, n_ctx: int, *, progress: Progress | None = None
    ) -> None:
        self._open_context = open_context
        self._n_ctx = n_ctx
        self._progress = progress
        self._context: LanguageContext | None = None
        self._tokens: Sequence[int] = ()

    def __enter__(self) -> Trunk:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens that the context holds."""
        return self._tokens

    @property
    def append_only(self) -> str | None:
        """Why the context cannot be rewound to any position; None where it can. May raise
        BackendError as opening the context does."""
        return self._open().append_only

    @property
    def whole_only(self) -> str | None:
        """Why nothing can be spliced into the context; None where it can. May raise BackendError
        as opening the context does."""
        return self._open().whole_only

    def move_to(self, tokens: Sequence[int]) -> LanguageContext:
        """Return the context with exactly `tokens` evaluated."""
        context = self._open()
        shared = common_prefix(self._tokens, tokens)
        if shared < context.position:
            shared = 0 if context.append_only else shared
            context.rewind(shared)
        if shared < len(tokens):
            context.extend(tokens[shared:], progress=self._progress)
        self._tokens = tokens
        return context

    def score(
        self, tokens: Sequence[int], branches: Sequence[Branch]
    ) -> list[tuple[AnswerScore, ...]]:
        """Score `branches` after `tokens`, and report them as progress."""
        scores = self.move_to(tokens).score(branches)
        if self._progress is not None:
            self._progress(branch_tokens(branches))
        return scores

    def _open(self) -> LanguageContext:
        if self._context is None:
            self._context = self._open_context(self._n_ctx)
        return self._context

    def discard(self) -> None:
        """Close the context; the next prompt gets a new one."""
        context, self._context, self._tokens = self._context, None, ()
        if context is not None:
            context.close()


class Lanes:
    """As many trunks as a model evaluates side by side; `trunks[0]` is there in any case."""

    def __init__(
        self,
        open_context: OpenContext,
        n_ctx: int,
        *,
        lanes: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.trunks = tuple(Trunk(open_context, n_ctx, progress=progress) for _ in range(lanes))

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for trunk in self.trunks:
            trunk.discard()

    def map(self, ask: Callable[[Trunk, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield what `ask` returns for each item, in order; as many are asked at once as there are
        lanes."""
        if len(self.trunks) == 1:
            yield from (ask(self.trunks[0], item) for item in items)
            return
        left = iter(items)
        while batch := list(islice(left, len(self.trunks))):
            yield from _at_once(
                [partial(ask, trunk, item) for trunk, item in zip(self.trunks, batch, strict=False)]
            )


def _at_once(calls: Sequence[Callable[[], R]]) -> Iterator[R]:
    """Yield the results of calls that run at the same time, in order."""
    results: list[Future[R]] = [Future() for _ in calls]
    for call, result in zip(calls, results, strict=True):
        # Daemons: an interrupted command must not wait for the end of a long prompt.
        Thread(target=_settle, args=(call, result), daemon=True).start()
    yield from (result.result() for result in results)


def _settle(call: Callable[[], R], result: Future[R]) -> None:
    try:
        result.set_result(call())
    except BaseException as error:
        result.set_exception(error)


def branch_tokens(branches: Sequence[Branch]) -> int:
    """Return how many tokens `branches` take: splices and prompt once, each answer once."""
    return sum(
        sum(len(splice.tokens) for splice in branch.splices)
        + len(branch.prompt)
        + sum(map(len, branch.answers))
        for branch in branches
    )
