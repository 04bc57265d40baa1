"""A task's sample before it is sized: text of as many units as wished, and the right answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ggufrope.evals.ruler.wording import Wording

Build: TypeAlias = Callable[[int], str]
"""The context made of so many units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """`context(n)` is the haystack of n units, from `least` to `most`; whatever n, what is asked
    and the answers are the same. `fields` fill the prompt and the prefix; `example` goes first."""

    context: Build
    fields: dict[str, str]
    answers: tuple[str, ...]
    least: int = 0
    most: int | None = None
    example: str = ""

    def text(self, wording: Wording, units: int) -> str:
        """Everything the model is given to read, up to where the answer begins."""
        prompt = wording.prompt.format(context=self.context(units), **self.fields)
        return self.example + prompt + wording.prefix.format(**self.fields)
