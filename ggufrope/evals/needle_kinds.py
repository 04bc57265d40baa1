"""Kinds of needles: what is inserted into a haystack, and what is then asked.

`standard` states one fact. The harder kinds state four sentences that are alike, so that finding
them is not enough:

- `confusable`: the keys are all pairs of two adjectives and two nouns, so no single word of the
  question tells the facts apart.
- `values`: one key has several values, and the question wants all, in the order of the text, as in
  RULER's multivalue needles (Hsieh et al., 2024), where the order is free.
- `latent`: question and fact share no content word, so a fact is known only by what it implies, as
  in NoLiMa (Modarressi et al., 2025).
- `ordered`: the sentences differ in their values alone, and the question is about the k-th, as in
  MRCR (Vodrahalli et al., 2024).

Answers are short and scored exactly. All wording and all latent facts are our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import islice, permutations
from random import Random
from typing import Literal, TypeAlias, TypeVar

from ggufrope.evals.facts import (
    ADJECTIVES,
    KIND_NAMES,
    NOUNS,
    WORDS,
    Fact,
    NeedleKind,
    ValueKind,
    facts,
    pass_keys,
    random_value,
)

PlanNeedle: TypeAlias = NeedleKind | Literal["passkey"]
"""What a grid of needles asks for: the task `passkey` has a needle of its own."""
_T = TypeVar("_T")

STATED = 4
"""Sentences that a needle of a harder kind consists of."""
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """What one cell states and asks, as text.

    `statements` are in the order of the text, each beginning with the space that separates it; the
    one of index `at` stands at the cell's depth. `question` is followed by `prefix`, the beginning
    of the answer, and that by `answer`. `wrong` has answers of the same form: first those that
    other statements suggest. `key` names the fact in question.
    """

    key: str
    statements: tuple[str, ...]
    at: int = 0
    question: str
    prefix: str
    answer: str
    wrong: tuple[str, ...] = ()

    def depths(self, depth: float) -> tuple[float, ...]:
        """Return where the statements go, in percent and ascending, for a cell at `depth`.

        Those before the one at `depth` are spread evenly over the text before it, those after it
        over the text after it. At depth 0 or 100 some have the same place: they follow each other.
        """
        before, after = self.at, len(self.statements) - self.at - 1
        return (
            *(depth * (i + 0.5) / before for i in range(before)),
            depth,
            *(depth + (100 - depth) * (i + 0.5) / after for i in range(after)),
        )


def needles(
    kind: PlanNeedle, rng: Random, value_kind: ValueKind = "number", *, distractors: int = 0
) -> Iterator[Needle]:
    """Yield needles of a kind without end; no key repeats until all have been used.

    Wrong answers are those that the other statements suggest, and random ones where these are
    fewer than `distractors`, up to as many as there are. They do not change which needles are
    drawn. The answers of latent needles are names and those of pass keys have five digits, whatever
    the `value_kind`.
    """
    if kind == "latent":
        yield from _latent(rng, distractors)
    elif kind == "passkey":
        for key in pass_keys(rng):
            others = islice(pass_keys(Random(f"beside {key.value}")), distractors + 1)
            wrong = [other.value for other in others if other != key][:distractors]
            yield _asking_for(key, [key], [key.value, *wrong])
    else:
        for fact in facts(rng, value_kind):
            yield _BUILDERS[kind](fact, Random(f"{kind}/{fact.key}/{fact.value}"), distractors)


def _standard(fact: Fact, rng: Random, distractors: int) -> Needle:
    return _asking_for(fact, [fact], _values(fact, 1 + distractors))


def _confusable(fact: Fact, rng: Random, distractors: int) -> Needle:
    adjective, noun, *counter = fact.key.split()
    adjectives = (adjective, rng.choice([word for word in ADJECTIVES if word != adjective]))
    nouns = (noun, rng.choice([word for word in NOUNS if word != noun]))
    keys = [" ".join([a, n, *counter]) for a in adjectives for n in nouns]
    values = _values(fact, max(STATED, 1 + distractors))
    stated = [
        Fact(key=key, value=value, kind=fact.kind) for key, value in zip(keys, values, strict=False)
    ]
    rng.shuffle(stated)
    return _asking_for(fact, stated, values)


def _asking_for(fact: Fact, stated: Sequence[Fact], values: Sequence[str]) -> Needle:
    """Return the needle that asks for one of the stated facts; its value is the first."""
    right, *wrong = map(_answer, values)
    return Needle(
        key=fact.key,
        statements=tuple(each.statement for each in stated),
        at=stated.index(fact),
        question=fact.question,
        prefix=fact.prefix,
        answer=right,
        wrong=tuple(wrong),
    )


def _several_values(fact: Fact, rng: Random, distractors: int) -> Needle:
    name = KIND_NAMES[fact.kind]
    values = _values(fact, STATED)
    rng.shuffle(values)
    right, *wrong = (_answer(", ".join(order)) for order in permutations(values))
    rng.shuffle(wrong)
    return Needle(
        key=fact.key,
        statements=tuple(f" One secret {name} of the {fact.key} is {value}." for value in values),
        at=rng.randrange(STATED),
        question=(
            f"What are the secret {name}s of the {fact.key}? List them in the order in which they "
            "are stated, separated by commas."
        ),
        prefix=f" The secret {name}s of the {fact.key} are",
        answer=right,
        wrong=tuple(wrong[: max(STATED - 1, distractors)]),
    )


def _ordered(fact: Fact, rng: Random, distractors: int) -> Needle:
    name = KIND_NAMES[fact.kind]
    right, *wrong = _values(fact, max(STATED, 1 + distractors))
    stated = wrong[: STATED - 1]
    at = rng.randrange(STATED)
    stated.insert(at, right)
    note = f"{ORDINALS[at]} note about the {fact.key}"
    return Needle(
        key=note,
        statements=tuple(f" A note about the {fact.key} gives the {name} {v}." for v in stated),
        at=at,
        question=f"Which {name} does the {note} give?",
        prefix=f" The {note} gives the {name}",
        answer=_answer(right),
        wrong=tuple(map(_answer, wrong)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentGroup:
    """Facts about one theme, each with its clue: what is true of nobody else in the group.

    A statement has places for a `{name}` and a `{fact}`, a question, which completes "the person
    who ...", one for a `{clue}`. A link is a fact and its clue.
    """

    theme: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTable:
    """`latent_facts.json`: the themes, and the first names that are the answers."""

    names: tuple[str, ...]
    groups: tuple[LatentGroup, ...]


@cache
def latent_table() -> LatentTable:
    """Return the table of latent facts."""
    text = resources.files(__package__).joinpath("latent_facts.json").read_text("utf-8")
    table = json.loads(text)
    return LatentTable(
        names=tuple(table["names"]),
        groups=tuple(
            LatentGroup(
                theme=group["theme"],
                statements=tuple(group["statements"]),
                questions=tuple(group["questions"]),
                links=tuple((fact, clue) for fact, clue in group["links"]),
            )
            for group in table["groups"]
        ),
    )


def _latent(rng: Random, distractors: int) -> Iterator[Needle]:
    table = latent_table()
    asked = _shuffled(rng, [(group, link) for group in table.groups for link in group.links])
    for (group, (fact, clue)), name in zip(asked, _shuffled(rng, table.names), strict=False):
        own = Random(f"latent/{fact}/{name}")
        others = own.sample([other for other, _ in group.links if other != fact], STATED - 1)
        names = own.sample([other for other in table.names if other != name], len(table.names) - 1)
        statement = f" {own.choice(group.statements)}"
        stated = [statement.format(name=n, fact=f) for n, f in zip(names, others, strict=False)]
        at = own.randrange(STATED)
        stated.insert(at, statement.format(name=name, fact=fact))
        question = own.choice(group.questions).format(clue=clue)
        yield Needle(
            key=question,
            statements=tuple(stated),
            at=at,
            question=f"What is the first name of the person who {question}?",
            prefix=f" The first name of the person who {question} is",
            answer=_answer(name),
            wrong=tuple(map(_answer, names[: max(STATED - 1, distractors)])),
        )


def _shuffled(rng: Random, values: Sequence[_T]) -> Iterator[_T]:
    """Yield the values without end, each of them once before any is repeated."""
    while True:
        yield from rng.sample(values, len(values))


_BUILDERS: dict[PlanNeedle, Callable[[Fact, Random, int], Needle]] = {
    "standard": _standard,
    "confusable": _confusable,
    "values": _several_values,
    "ordered": _ordered,
}


def _answer(value: str) -> str:
    return f" {value}"


def _values(fact: Fact, count: int) -> list[str]:
    """Return the value of a fact and others of its kind, all different, `count` together."""
    rng = Random(f"values beside {fact.key} {fact.value}")
    values = [fact.value]
    while len(values) < min(count, len(WORDS) if fact.kind == "word" else count):
        value = random_value(rng, fact.kind)
        if value not in values:
            values.append(value)
    return values
