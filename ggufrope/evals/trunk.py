"""A context that moves from prompt to prompt and evaluates only the tokens that differ.

Prompts share the beginning that they have in common with the one before, so a task that orders its
prompts well evaluates each haystack once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufrope.lm import AnswerScore, Branch, LanguageContext, OpenContext, Progress


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
        """Why nothing can be spliced into the context; None where it can. May raise BackendError
        as opening the context does."""
        return self._open().append_only

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


def branch_tokens(branches: Sequence[Branch]) -> int:
    """Return how many tokens `branches` take: splices and prompt once, each answer once."""
    return sum(
        sum(len(splice.tokens) for splice in branch.splices)
        + len(branch.prompt)
        + sum(map(len, branch.answers))
        for branch in branches
    )
