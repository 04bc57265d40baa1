"""What a puzzle is: a question about the texts in a haystack, and how its answer is scored.

A puzzle with one right text is scored under teacher forcing. Where several texts are right (a set
in any order, steps in one's own words, JSON with any spacing), the answer is generated and graded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TypeAlias

Grade: TypeAlias = Callable[[str], Mapping[str, float]]
"""Grades an output, its prefix included: metrics by name, each from 0 to 1, `exact` among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """One question, as text. `prefix` is the beginning of the answer, `key` names the question.

    Without a `grade`, `answer` is what has to follow the prefix, and `wrong` has answers of the
    same form. With one, at most `output_tokens` are generated, and `answer` is for the record.
    """

    key: str
    question: str
    prefix: str
    answer: str
    wrong: tuple[str, ...] = ()
    grade: Grade | None = None
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Texts that stand in a haystack together, in this order, and the puzzles about them."""

    pieces: tuple[str, ...] = ()
    puzzles: tuple[Puzzle, ...]


def unused(rng: Random, words: Sequence[str]) -> Iterator[str]:
    """Yield words without end, in an order that is drawn; a word that comes again has a counter."""
    for round_ in count(1):
        for word in rng.sample(words, len(words)):
            yield word if round_ == 1 else f"{word} {round_}"
