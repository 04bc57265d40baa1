"""RULER's eight needle tasks: facts among noise, prose, or nothing but other facts."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ggufrope.evals import corpus
from ggufrope.evals.facts import KIND_NAMES, facts, listing, random_value
from ggufrope.evals.ruler.draft import Draft
from ggufrope.evals.ruler.specs import RulerSpec
from ggufrope.evals.ruler.wording import Wording

_DEPTHS = 40
"""Needles stand at different ones of so many evenly spaced depths."""


def niah(spec: RulerSpec, wording: Wording, rng: Random) -> Draft:
    """`keys` needles, `values` to each, of which `queries` keys are asked for."""
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
    asked = rng.sample(stated, spec.queries)
    filler: Iterator[str]
    if spec.haystack == "needle":
        filler = (wording.needle.format(kind=kind, key=key, value=value) for key, value in pairs)
    else:
        filler = corpus.noise(rng) if spec.haystack == "noise" else corpus.essay(rng)
    return Draft(
        context=Scattered(filler, tuple(zip(depths, needles, strict=True))),
        fields={"kind": kind, "query": listing([f"the {key}" for key, _ in asked])},
        answers=tuple(value for _, values in asked for value in values),
    )


class Scattered:
    """Filler with sentences put in at given shares of it; called with the number of fillers."""

    def __init__(self, filler: Iterator[str], inserts: tuple[tuple[float, str], ...]) -> None:
        self._filler = filler
        self._made: list[str] = []
        self._inserts = inserts

    def __call__(self, units: int) -> str:
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
    """Keys and values without end."""
    for fact in facts(rng, spec.value_kind):
        yield random_value(rng, "uuid") if spec.key_kind == "uuid" else fact.key, fact.value


def _more(spec: RulerSpec, rng: Random) -> tuple[str, ...]:
    """The second value of a key and those after it."""
    return tuple(random_value(rng, spec.value_kind) for _ in range(spec.values - 1))


def _take(pairs: Iterator[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return [next(pairs) for _ in range(count)]
