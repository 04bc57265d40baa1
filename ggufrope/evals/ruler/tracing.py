"""RULER's variable tracking: a chain of assignments scattered over noise, to be followed."""

from __future__ import annotations

from random import Random
from string import ascii_uppercase

from ggufrope.evals import corpus
from ggufrope.evals.ruler.draft import Draft
from ggufrope.evals.ruler.niah import Scattered
from ggufrope.evals.ruler.wording import Wording

HOPS = 4
_NAME_LETTERS = 5
_EXAMPLE_UNITS = 5


def variable_tracking(wording: Wording, rng: Random) -> Draft:
    """One chain of `HOPS` hops; the names of all its variables are asked for. A short worked
    example, with variables of its own, goes first."""
    names = _names(rng, 2 * (HOPS + 1))
    example = _chain(wording, rng, names[: HOPS + 1])
    solved = f"{example.text(wording, _EXAMPLE_UNITS)} {', '.join(example.answers)}\n\n"
    asked = _chain(wording, rng, names[HOPS + 1 :])
    return Draft(context=asked.context, fields=asked.fields, answers=asked.answers, example=solved)


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
    """Different names of five capitals."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(ascii_uppercase) for _ in range(_NAME_LETTERS))] = None
    return list(names)
