"""Questions put to a context, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Tokens: TypeAlias = Sequence[int]
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of tokens just evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A question put to the trunk: a prompt, then each of the candidate answers on its own."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """One candidate answer under teacher forcing.

    `log_probabilities` is nat per token, in order. `greedy` is True where every token is the
    arg max given those before it, which is exactly when greedy decoding would produce the answer.
    """

    log_probabilities: tuple[float, ...]
    greedy: bool

    @property
    def mean_log_probability(self) -> float:
        return sum(self.log_probabilities) / len(self.log_probabilities)
