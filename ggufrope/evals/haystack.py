"""Haystacks in tokens: filler sentences with facts inserted at chosen places.

Each sentence and each fact is tokenized on its own and the tokens are joined. So every place is
known to the token, and the haystack before a fact does not depend on what the fact says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals import corpus
from ggufrope.lm import LanguageModel

HaystackKind: TypeAlias = Literal["noise", "essay", "text"]
_EMPTY_SENTENCES_ALLOWED = 1000


class Filler:
    """The sentences of a haystack as tokens, by number, each made when first used."""

    def __init__(self, model: LanguageModel, sentences: Iterator[str]) -> None:
        self._model = model
        self._sentences = sentences
        self._tokens: list[tuple[int, ...]] = []
        self._known: dict[str, tuple[int, ...]] = {}

    def __getitem__(self, number: int) -> tuple[int, ...]:
        while number >= len(self._tokens):
            self._tokens.append(self._next())
        return self._tokens[number]

    def _next(self) -> tuple[int, ...]:
        for _ in range(_EMPTY_SENTENCES_ALLOWED):
            sentence = next(self._sentences)
            if sentence not in self._known:
                self._known[sentence] = tuple(self._model.tokenize(sentence))
            if self._known[sentence]:
                return self._known[sentence]
        raise RequestError("this model's vocabulary has no tokens for the haystack's text")


def sentences(kind: HaystackKind, rng: Random, text: str | None) -> Iterator[str]:
    """Return the endless sentences of a kind of haystack; "text" repeats `text`.

    Raises RequestError for an unknown kind, and for "text" where it has no words.
    """
    if kind == "noise":
        return corpus.noise(rng)
    if kind == "essay":
        return corpus.essay(rng)
    if kind == "text":
        return corpus.from_text(text or "")
    raise RequestError(f"unknown haystack {kind!r}: expected noise, essay or text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Tokens to insert as late as possible without starting after `target`."""

    target: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Woven:
    """A haystack: `starts` are the offsets of the inserts, `boundaries` where a sentence ends."""

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    boundaries: tuple[int, ...]

    def cut(self, budget: int) -> int:
        """Return the length of the longest part that ends with a sentence, at most `budget`."""
        return self.boundaries[bisect_right(self.boundaries, budget) - 1]


def weave(filler: Filler, inserts: Sequence[Insert], budget: int) -> Woven:
    """Return at most `budget` tokens of filler with `inserts`, ordered by target, among them."""
    tokens: list[int] = []
    starts: list[int] = []
    boundaries = [0]
    number = 0

    def fill(end: int) -> None:
        nonlocal number
        while len(tokens) + len(filler[number]) <= end:
            tokens.extend(filler[number])
            boundaries.append(len(tokens))
            number += 1

    for insert in inserts:
        fill(insert.target)
        starts.append(len(tokens))
        tokens.extend(insert.tokens)
        boundaries.append(len(tokens))
    fill(budget)
    return Woven(tokens=tuple(tokens), starts=tuple(starts), boundaries=tuple(boundaries))
