"""RULER's two counting tasks: the most common words of a list, and of a coded text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from math import pi
from random import Random
from string import ascii_lowercase

from ggufrope.evals.facts import ADJECTIVES, NOUNS, WORDS
from ggufrope.evals.ruler.draft import Draft
from ggufrope.evals.ruler.specs import RulerSpec
from ggufrope.evals.ruler.wording import Wording

COMMON = 10
_SHORT_LENGTH = 4096
"""Below this many tokens words are repeated less."""
_EXAMPLE_REPEATS = (6, 1)
_EXAMPLE_UNITS = 20
_ZETA_2 = pi**2 / 6
_NOISE = "..."
_CODED_LETTERS = 6


def common_words(wording: Wording, rng: Random, length: int) -> Draft:
    """Ten words 30 times and the rest 3 times, or 6 and once at lengths below 4096, numbered and
    shuffled; a unit is one of the rest. A short worked example, of other words, goes first."""
    every = list(dict.fromkeys((*ADJECTIVES, *NOUNS, *WORDS)))
    rng.shuffle(every)
    own = _EXAMPLE_UNITS + COMMON
    example = _listed(wording, rng, every[:COMMON], every[COMMON:own], _EXAMPLE_REPEATS)
    repeats = (30, 3) if length >= _SHORT_LENGTH else (6, 1)
    common = every[own : own + COMMON]
    asked = _listed(wording, rng, common, every[own + COMMON :], repeats)
    solved = f"{example.text(wording, _EXAMPLE_UNITS)} {_answer(example.answers)}\n\n"
    return Draft(context=asked.context, fields={}, answers=asked.answers, example=solved)


def _listed(
    wording: Wording, rng: Random, common: list[str], rest: list[str], repeats: tuple[int, int]
) -> Draft:
    seed = rng.getrandbits(64)
    fillers = _uncommon(rest)
    made: list[str] = []

    def context(units: int) -> str:
        made.extend(islice(fillers, max(0, units - len(made))))
        words = common * repeats[0] + made[:units] * repeats[1]
        Random(f"{seed}/{units}").shuffle(words)
        return " ".join(
            wording.needle.format(number=number, word=word) for number, word in enumerate(words, 1)
        )

    return Draft(context=context, fields={}, answers=tuple(common))


def _answer(words: tuple[str, ...]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _uncommon(words: list[str]) -> Iterator[str]:
    """Different words without end: the given ones, then two of them in one, then numbered."""
    yield from words
    pairs = [f"{a}-{b}" for a in words for b in words if a != b]
    Random(len(pairs)).shuffle(pairs)
    yield from pairs
    for number in count(2):
        yield from (f"{pair}-{number}" for pair in pairs)


def coded_words(spec: RulerSpec, rng: Random, length: int) -> Draft:
    """Coded words by Zipf's law with exponent 2: word r comes up in proportion to 1/r². The
    commonest is noise, and those of ranks 2 to 4 are asked for. A unit is a word of the text;
    the vocabulary grows with the length."""
    words = _coded(rng, max((length - spec.output_tokens) // 50, 5))
    seed = rng.getrandbits(64)

    def context(units: int) -> str:
        text = [
            word
            for rank, word in enumerate(words, 1)
            for _ in range(int(units / (rank**2 * _ZETA_2)))
        ]
        Random(f"{seed}/{units}").shuffle(text)
        return " ".join(text)

    # With 60 words the four commonest come up 36, 9, 4 and 2 times.
    return Draft(context=context, fields={}, answers=tuple(words[1:4]), least=60)


def _coded(rng: Random, count: int) -> list[str]:
    """The noise, then different words of six letters."""
    words = {_NOISE: None}
    while len(words) <= count:
        words["".join(rng.choice(ascii_lowercase) for _ in range(_CODED_LETTERS))] = None
    return list(words)
