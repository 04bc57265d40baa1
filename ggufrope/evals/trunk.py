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

    def move_to(self, tokens: Sequence[int]) -> LanguageContext:
        """Return the context with exactly `tokens` evaluated."""
        if self._context is None:
            self._context = self._open_context(self._n_ctx)
        shared = common_prefix(self._tokens, tokens)
        if shared < self._context.position:
            self._context.rewind(shared)
        if shared < len(tokens):
            self._context.extend(tokens[shared:], progress=self._progress)
        self._tokens = tokens
        return self._context

    def score(
        self, tokens: Sequence[int], branches: Sequence[Branch]
    ) -> list[tuple[AnswerScore, ...]]:
        """Score `branches` after `tokens`, and report them as progress."""
        scores = self.move_to(tokens).score(branches)
        if self._progress is not None:
            self._progress(branch_tokens(branches))
        return scores

    def discard(self) -> None:
        """Close the context; the next prompt gets a new one."""
        context, self._context, self._tokens = self._context, None, ()
        if context is not None:
            context.close()


def branch_tokens(branches: Sequence[Branch]) -> int:
    """Return how many tokens `branches` take: each prompt once, each answer once."""
    return sum(len(branch.prompt) + sum(map(len, branch.answers)) for branch in branches)
