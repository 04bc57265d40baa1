"""Endless sentences for haystacks, the same for the same seed on every machine.

`noise` repeats a handful of plain sentences, as RULER's noise haystack does; `essay` writes
grammatical prose from a small grammar; `from_text` repeats a user's own text. The built-in ones
contain no digit and no key of `facts`, so a fact stands in the haystack exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle
from random import Random

from ggufrope.errors import RequestError

NOISE = (
    " The river runs down to the sea.",
    " Rain falls on the roof.",
    " The road goes on and on.",
    " Here we are again.",
    " Morning comes and evening goes.",
)

# Data, not prose: another spelling would be other haystacks, and words that nano never saw.
_SUBJECTS = (
    "the teacher",
    "a neighbour",
    "the council",
    "my grandmother",
    "the old doctor",
    "every traveller",
    "the eldest child",
    "a stranger",
    "our village",
    "the committee",
    "the painter",
    "a good reader",
    "the farmer",
    "the whole family",
    "the younger brother",
    "the judge",
)
_VERBS = (
    "remembers",
    "describes",
    "questions",
    "admires",
    "forgets",
    "discovers",
    "explains",
    "defends",
    "examines",
    "welcomes",
    "prefers",
    "avoids",
    "repeats",
    "imagines",
)
_OBJECTS = (
    "the long winter",
    "a simple rule",
    "the price of bread",
    "the shape of the coast",
    "an unfinished letter",
    "the sound of water",
    "a better question",
    "the history of the town",
    "the weight of habit",
    "the work of many hands",
    "a common mistake",
    "the end of the story",
    "the use of silence",
    "the light in the room",
)
_PLACES = (
    "near the station",
    "beside the lake",
    "after supper",
    "before the first snow",
    "in the empty hall",
    "under the chestnut tree",
    "at the edge of the field",
    "on the way home",
    "during the summer",
    "without any hurry",
)
_LINKS = (
    "because",
    "although",
    "while",
    "until",
    "whenever",
    "and",
)
_OPENINGS = (
    "In those days",
    "Most of the time",
    "As a rule",
    "It is said that",
    "Once more",
    "For this reason",
    "Against all advice",
    "Some years later",
)


_PIECES = re.compile(r"\S.{0,400}(?!\S)|\S.{0,400}", re.DOTALL)
"""Pieces of a sentence of at most 400 characters, to the end of a word where there is one: the
places for needles lie between them."""


def noise(rng: Random) -> Iterator[str]:
    """Yield the same few sentences in turn; `rng` chooses the first."""
    start = rng.randrange(len(NOISE))
    return cycle(NOISE[start:] + NOISE[:start])


def essay(rng: Random) -> Iterator[str]:
    """Yield sentences from a small grammar, with a new paragraph about every sixth."""

    def clause() -> str:
        parts = [rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_OBJECTS)]
        if rng.random() < 0.5:
            parts.append(rng.choice(_PLACES))
        return " ".join(parts)

    while True:
        sentence = clause()
        shape = rng.random()
        if shape < 0.35:
            sentence = f"{sentence} {rng.choice(_LINKS)} {clause()}"
        elif shape < 0.6:
            sentence = f"{rng.choice(_OPENINGS)}, {sentence}"
        yield ("\n" if rng.random() < 1 / 6 else " ") + sentence[0].upper() + sentence[1:] + "."


def from_text(text: str) -> Iterator[str]:
    """Yield the sentences of `text` from its start, again and again, those that are long in pieces.

    Raises RequestError where the text has no words.
    """
    sentences = [
        " " + piece.strip()
        for sentence in re.split(r"(?<=[.!?])\s+", text)
        for piece in _PIECES.findall(sentence.strip())
    ]
    if not sentences:
        raise RequestError("the haystack text is empty; give a file with at least one sentence")
    return cycle(sentences)
