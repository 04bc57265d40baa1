"""Facts to hide in a haystack: a key, a value of some kind, and the words around them.

The structure is that of RULER's "special magic number" needles (Hsieh et al., 2024): one sentence
states the fact, the question names the key, and an answer prefix restates the sentence up to the
value, so that the value is the very next thing to say. The wording is our own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

NeedleKind: TypeAlias = Literal["standard", "confusable", "values", "latent", "ordered"]
ValueKind: TypeAlias = Literal["number", "word", "uuid"]

ADJECTIVES = tuple(
    """amber ancient brave bright broken calm careful clever cold copper crooked curious dark
    distant dusty eager early faded fearless fierce gentle giant golden green hidden hollow
    honest humble hungry iron jolly late lazy little lonely loud lucky marble merry mighty misty
    narrow noble orange patient plain polite proud purple quick quiet rapid rusty serious shiny
    silent silver sleepy slow solemn spotted stormy stubborn sturdy swift tall tame tiny velvet
    violet wandering wild wise wooden yellow young""".split()
)
NOUNS = tuple(
    """anchor badger bakery barrel beacon beetle bridge bucket camel candle canyon castle cellar
    compass cottage cousin cricket dragon eagle engine falcon ferry fiddle fox garden glacier
    goblet guitar hammer harbor hawk hermit island jacket kettle kitten ladder lantern library
    lizard magnet market meadow mirror monkey museum orchard otter oyster panther parrot pencil
    pigeon pilot pirate planet pocket puppet rabbit raven rocket sailor saddle scholar shepherd
    sparrow spider statue tailor teapot temple thimble tiger tower trumpet tunnel turtle valley
    violin wagon walrus weaver whistle window wizard""".split()
)
WORDS = tuple(
    """acorn almond apricot arrow autumn bamboo basil blossom boulder butter cactus cedar cherry
    cinnamon clover cobalt coral cotton crystal daisy diamond ember feather fern flint ginger
    granite hazel honey indigo ivory jasmine juniper lavender lemon lilac linen lotus maple
    melon mint moss nectar nutmeg oak olive onyx opal orchid paper pearl pebble pepper pine plum
    poppy quartz reed ribbon rose ruby saffron sage salt sand sapphire satin silk slate spruce
    sugar tansy thistle thyme topaz tulip vanilla velour walnut wheat willow wool zinc""".split()
)
KIND_NAMES: dict[ValueKind, str] = {"number": "number", "word": "word", "uuid": "code"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One key and its value. Texts start with the space that separates them from what precedes."""

    key: str
    value: str
    kind: ValueKind = "number"

    @property
    def statement(self) -> str:
        """The sentence that states the fact."""
        return f" The secret {KIND_NAMES[self.kind]} of the {self.key} is {self.value}."

    @property
    def question(self) -> str:
        """What is asked."""
        return f"What is the secret {KIND_NAMES[self.kind]} of the {self.key}?"

    @property
    def prefix(self) -> str:
        """The beginning of the answer, which restates the statement up to the value."""
        return f" The secret {KIND_NAMES[self.kind]} of the {self.key} is"

    @property
    def answer(self) -> str:
        """What should follow the prefix."""
        return f" {self.value}"


def listing(words: Sequence[str]) -> str:
    """Join words: `a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def random_value(rng: Random, kind: ValueKind) -> str:
    """Draw a 7-digit number, a word, or a version-4 UUID, from `rng` alone."""
    if kind == "number":
        return str(rng.randrange(1_000_000, 10_000_000))
    if kind == "word":
        return rng.choice(WORDS)
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def facts(rng: Random, kind: ValueKind = "number") -> Iterator[Fact]:
    """Yield facts without end: keys never repeat, values only where their kind has run out.

    Every noun is used once before any is used again, so the facts of a small haystack differ in
    both words of their keys. Once every adjective-noun pair is used, keys carry a counter.
    """
    used_keys: set[str] = set()
    used_values: set[str] = set()
    while True:
        counter = len(used_keys) // (len(ADJECTIVES) * len(NOUNS))
        for noun in rng.sample(NOUNS, len(NOUNS)):
            free = [a for a in ADJECTIVES if _key(a, noun, counter) not in used_keys]
            key = _key(rng.choice(free), noun, counter)
            value = random_value(rng, kind)
            while value in used_values and (kind != "word" or len(used_values) < len(WORDS)):
                value = random_value(rng, kind)
            used_keys.add(key)
            used_values.add(value)
            yield Fact(key=key, value=value, kind=kind)


def _key(adjective: str, noun: str, counter: int) -> str:
    return f"{adjective} {noun}" if counter == 0 else f"{adjective} {noun} {counter + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassKey(Fact):
    """The classic passkey (Mohtashami and Jaggi, 2023): one in a haystack, stated twice."""

    @property
    def statement(self) -> str:
        """The sentences that state the key."""
        return f" The pass key is {self.value}. Keep it in mind: {self.value} is the pass key."

    @property
    def question(self) -> str:
        """What is asked."""
        return "What is the pass key?"

    @property
    def prefix(self) -> str:
        """The beginning of the answer."""
        return " The pass key is"


def pass_keys(rng: Random) -> Iterator[PassKey]:
    """Yield pass keys of five digits without end, none repeated until all have been used."""
    while True:
        used: set[int] = set()
        while len(used) < 90_000:
            number = rng.randrange(10_000, 100_000)
            if number not in used:
                used.add(number)
                yield PassKey(key="pass key", value=str(number))
