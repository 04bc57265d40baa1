"""The order of evaluation: what can be shared is evaluated once.

Cells of a length × depth grid share facts that would stand in the same place, and prompts share
the prefix that they have in common with the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from ggufrope.lm import AnswerScore, Branch, LanguageContext, OpenContext, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a fact goes: `target` tokens into the haystack, never later.

    `closes` is the length (its index) whose haystack ends with this fact, or None.
    """

    target: int
    closes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Places in ascending order; `of[length][depth]` is the index of the place a cell asks for."""

    places: tuple[Place, ...]
    of: tuple[tuple[int, ...], ...]


def lay_out(
    rooms: Sequence[int], depths: Sequence[float], *, fact_tokens: int, spacing: int
) -> Layout:
    """Places for a grid, as few as serve every cell to within `spacing` tokens.

    `rooms` are the haystack tokens of each length, ascending; `depths` are percent. Lengths are
    taken in order, so that a place already there lies inside every length that may share it, and
    the ends of a length before its middle, so that they are exact.
    """
    spacing = max(spacing, fact_tokens)
    found: list[Place] = []
    chosen: dict[tuple[int, int], Place] = {}
    for length, room in enumerate(rooms):
        for depth in sorted(range(len(depths)), key=lambda d: (0 < depths[d] < 100, depths[d])):
            target = round((room - fact_tokens) * depths[depth] / 100)
            nearest = min(found, key=lambda place: abs(place.target - target), default=None)
            if nearest is None or abs(nearest.target - target) >= spacing:
                nearest = Place(target=target, closes=length if depths[depth] == 100 else None)
                found.append(nearest)
            chosen[length, depth] = nearest
    places = tuple(sorted(found, key=lambda place: place.target))
    index = {place: i for i, place in enumerate(places)}
    return Layout(
        places=places,
        of=tuple(
            tuple(index[chosen[length, depth]] for depth in range(len(depths)))
            for length in range(len(rooms))
        ),
    )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    shortest = min(len(a), len(b))
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)


class Trunk:
    """A context that is moved from prompt to prompt, evaluating only what differs.

    Opened when first needed, and opened anew after a failure.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def move_to(self, tokens: Sequence[int]) -> LanguageContext:
        """The context with exactly `tokens` evaluated."""
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
        """Put questions to `tokens`, and report them as progress."""
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
    """Tokens evaluated for `branches`: each prompt once, each answer once."""
    return sum(len(branch.prompt) + sum(map(len, branch.answers)) for branch in branches)
