"""Alike requests have different replies, and one is to be copied.

The k-th, as in MRCR (Vodrahalli et al., 2024), or, which is easier, the one that begins with some
words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from ggufrope.evals.facts import ADJECTIVES, NOUNS
from ggufrope.evals.needle_kinds import ORDINALS
from ggufrope.evals.puzzles.puzzle import Group, Puzzle, unused

_VERBS = ("waits", "sleeps", "sings", "dances", "hides", "shines", "turns", "rests", "drifts")
_PLACES = ("behind", "above", "below", "beside", "near", "inside")


def ordered_copies(rng: Random) -> Iterator[Group]:
    """Yield the replies to one request at a time and questions for each, without end."""
    for topic in unused(rng, NOUNS):
        request = f"Write a line about the {topic}."
        firsts = rng.sample(ADJECTIVES, len(ORDINALS))
        replies = [_verse(rng, topic, first) for first in firsts]
        yield Group(
            pieces=tuple(f"\nRequest: {request}\nReply: {reply}\n" for reply in replies),
            puzzles=(
                *(_copy(request, replies, at, f"{ORDINALS[at]} ") for at in range(len(replies))),
                *(_copy(request, replies, at, "") for at in range(len(replies))),
            ),
        )


def _copy(request: str, replies: Sequence[str], at: int, ordinal: str) -> Puzzle:
    """Return the puzzle that asks for a reply by its number, or without one by its first words."""
    reply, others = replies[at], [other for other in replies if other != replies[at]]
    first = "" if ordinal else " ".join(reply.split()[:3])
    which = f"the {ordinal}of these replies" if ordinal else f'the one that begins with "{first}"'
    return Puzzle(
        key=f"{ordinal or first + ', '}reply to: {request}",
        question=(
            f'The request "{request}" stands above {len(replies)} times, each time with another '
            f"reply. Copy {which} word for word."
        ),
        prefix=f" Reply: {first}".rstrip(),
        answer=f" {reply.removeprefix(first).strip()}",
        wrong=tuple(f" {' '.join(other.split()[3 if first else 0 :])}" for other in others),
    )


def _verse(rng: Random, topic: str, first: str) -> str:
    second, third = rng.sample([word for word in ADJECTIVES if word != first], 2)
    near, far = rng.sample([noun for noun in NOUNS if noun != topic], 2)
    return (
        f"The {first} {topic} {rng.choice(_VERBS)} {rng.choice(_PLACES)} the {second} {near}, and "
        f"the {third} {far} {rng.choice(_VERBS)}."
    )
