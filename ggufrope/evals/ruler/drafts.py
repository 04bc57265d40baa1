"""The RULER-style tasks that need no data: needles, variable tracking, common and coded words.

Each function drafts one sample: a haystack of as many units as wanted, the question, and the right
answers. A unit is whatever the haystack consists of: a sentence, a word, a needle.
`largest_fitting` finds how many units fill a length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from math import pi
from random import Random
from string import ascii_lowercase, ascii_uppercase

from ggufrope.evals import corpus
from ggufrope.evals.facts import ADJECTIVES, KIND_NAMES, NOUNS, WORDS, facts, listing, random_value
from ggufrope.evals.ruler.specs import RulerSpec
from ggufrope.evals.ruler.wording import Wording

_DEPTHS = 40
"""Needles stand at different ones of so many evenly spaced depths."""
HOPS = 4
_NAME_LETTERS = 5
_CHAIN_EXAMPLE_UNITS = 5
COMMON = 10
_SHORT_LENGTH = 4096
"""Below this many tokens words are repeated less."""
_EXAMPLE_REPEATS = (6, 1)
_WORDS_EXAMPLE_UNITS = 20
_ZETA_2 = pi**2 / 6
_NOISE = "..."
_CODED_LETTERS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A sample before it is sized.

    `context(n)` returns the haystack of n units, from `least` to `most`; question and answers are
    the same for any n. `fields` fill the prompt and the prefix. `example`, a solved one, goes
    first.
    """

    context: Callable[[int], str]
    fields: dict[str, str]
    answers: tuple[str, ...]
    least: int = 0
    most: int | None = None
    example: str = ""

    def prompt(self, wording: Wording, units: int) -> str:
        """Return everything the model reads before the prefix of the answer."""
        return self.example + wording.prompt.format(context=self.context(units), **self.fields)

    def prefix(self, wording: Wording) -> str:
        """Return the beginning of the answer, which the model continues."""
        return wording.prefix.format(**self.fields)

    def solved(self, wording: Wording, units: int, answer: str) -> str:
        """Return the draft with its answer, as an example that goes before another."""
        return f"{self.prompt(wording, units)}{self.prefix(wording)} {answer}\n\n"


def largest_fitting(
    tokens: Callable[[int], int], budget: int, *, least: int, most: int | None = None
) -> int | None:
    """Return the most units, from `least` to `most`, whose `tokens` do not exceed `budget`.

    None where not even `least` fit. `tokens` should grow with the units; where it is nearly a
    straight line, as it is for text, a handful of evaluations are enough. The result always fits.
    """
    low, low_tokens = least, tokens(least)
    if low_tokens > budget:
        return None
    step = 1
    while True:
        high = low + step if most is None else min(low + step, most)
        if high == low:
            return low
        high_tokens = tokens(high)
        if high_tokens > budget:
            break
        per_unit = max((high_tokens - low_tokens) / (high - low), 1e-9)
        low, low_tokens = high, high_tokens
        # Where the line through the last two would exceed the budget, and a little beyond.
        step = max(1, min(8 * step, round((budget - low_tokens) / per_unit * 1.02) + 1))
    while high - low > 1:
        share = (budget - low_tokens) / (high_tokens - low_tokens)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        middle_tokens = tokens(middle)
        if middle_tokens <= budget:
            low, low_tokens = middle, middle_tokens
        else:
            high, high_tokens = middle, middle_tokens
    return low


def niah(spec: RulerSpec, wording: Wording, rng: Random) -> Draft:
    """Draft a needle task: `keys` needles with `values` values each, a question about `queries`."""
    kind = KIND_NAMES[spec.value_kind]
    pairs = _pairs(spec, rng)
    stated = [(key, (value, *_more(spec, rng))) for key, value in _take(pairs, spec.keys)]
    needles = [
        wording.needle.format(kind=kind, key=key, value=value)
        for key, values in stated
        for value in values
    ]
    rng.shuffle(needles)
    depths = sorted(depth / (_DEPTHS - 1) for depth in rng.sample(range(_DEPTHS), len(needles)))
    wanted = rng.sample(stated, spec.queries)
    filler: Iterator[str]
    if spec.haystack == "needle":
        filler = (wording.needle.format(kind=kind, key=key, value=value) for key, value in pairs)
    else:
        filler = corpus.noise(rng) if spec.haystack == "noise" else corpus.essay(rng)
    return Draft(
        context=Scattered(filler, tuple(zip(depths, needles, strict=True))),
        fields={"kind": kind, "query": listing([f"the {key}" for key, _ in wanted])},
        answers=tuple(value for _, values in wanted for value in values),
    )


class Scattered:
    """A haystack of filler sentences with others inserted at given shares of it."""

    def __init__(self, filler: Iterator[str], inserts: tuple[tuple[float, str], ...]) -> None:
        self._filler = filler
        self._made: list[str] = []
        self._inserts = inserts

    def __call__(self, units: int) -> str:
        """Return the haystack of so many filler sentences."""
        while len(self._made) < units:
            self._made.append(next(self._filler))
        parts: list[str] = []
        done = 0
        for depth, sentence in self._inserts:
            place = round(depth * units)
            parts += self._made[done:place]
            parts.append(sentence)
            done = place
        return "".join([*parts, *self._made[done:units]]).strip()


def _pairs(spec: RulerSpec, rng: Random) -> Iterator[tuple[str, str]]:
    """Yield keys and values without end."""
    for fact in facts(rng, spec.value_kind):
        yield random_value(rng, "uuid") if spec.key_kind == "uuid" else fact.key, fact.value


def _more(spec: RulerSpec, rng: Random) -> tuple[str, ...]:
    """Return the second value of a key and those after it."""
    return tuple(random_value(rng, spec.value_kind) for _ in range(spec.values - 1))


def _take(pairs: Iterator[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return [next(pairs) for _ in range(count)]


def variable_tracking(wording: Wording, rng: Random) -> Draft:
    """Draft variable tracking: a chain of `HOPS` assignments scattered over noise, and a question
    about the names of all its variables.

    A short solved example, with other variables, goes first.
    """
    names = _names(rng, 2 * (HOPS + 1))
    example = _chain(wording, rng, names[: HOPS + 1])
    solved = example.solved(wording, _CHAIN_EXAMPLE_UNITS, ", ".join(example.answers))
    wanted = _chain(wording, rng, names[HOPS + 1 :])
    return Draft(
        context=wanted.context, fields=wanted.fields, answers=wanted.answers, example=solved
    )


def _chain(wording: Wording, rng: Random, names: list[str]) -> Draft:
    value = str(rng.randrange(10_000, 100_000))
    sources = [value, *names]
    steps = [
        wording.needle.format(name=name, value=source)
        for name, source in zip(names, sources, strict=False)
    ]
    depths = sorted(rng.random() for _ in steps)
    return Draft(
        context=Scattered(corpus.noise(rng), tuple(zip(depths, steps, strict=True))),
        fields={"query": value},
        answers=tuple(names),
    )


def _names(rng: Random, count: int) -> list[str]:
    """Draw different names of five capitals."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(ascii_uppercase) for _ in range(_NAME_LETTERS))] = None
    return list(names)


def common_words(wording: Wording, rng: Random, length: int) -> Draft:
    """Draft common words: ten words 30 times each and the others 3 times each, or 6 times and once
    at lengths below 4096, numbered and shuffled. A unit is one of the others.

    A short solved example, of different words, goes first.
    """
    every = list(dict.fromkeys((*ADJECTIVES, *NOUNS, *WORDS)))
    rng.shuffle(every)
    own = _WORDS_EXAMPLE_UNITS + COMMON
    example = _listed(wording, rng, every[:COMMON], every[COMMON:own], _EXAMPLE_REPEATS)
    repeats = (30, 3) if length >= _SHORT_LENGTH else (6, 1)
    common = every[own : own + COMMON]
    wanted = _listed(wording, rng, common, every[own + COMMON :], repeats)
    solved = example.solved(wording, _WORDS_EXAMPLE_UNITS, _answer(example.answers))
    return Draft(context=wanted.context, fields={}, answers=wanted.answers, example=solved)


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
    """Yield different words without end: the given ones, then pairs of them, then numbered ones."""
    yield from words
    pairs = [f"{a}-{b}" for a in words for b in words if a != b]
    Random(len(pairs)).shuffle(pairs)
    yield from pairs
    for number in count(2):
        yield from (f"{pair}-{number}" for pair in pairs)


def coded_words(spec: RulerSpec, rng: Random, length: int) -> Draft:
    """Draft coded words by Zipf's law with exponent 2: word r comes up in proportion to 1/r².

    The commonest is noise, and the question is about those of ranks 2 to 4. A unit is a word of the
    text; the vocabulary grows with the length.
    """
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
    """Draw the noise, then different words of six letters."""
    words = {_NOISE: None}
    while len(words) <= count:
        words["".join(rng.choice(ascii_lowercase) for _ in range(_CODED_LETTERS))] = None
    return list(words)
