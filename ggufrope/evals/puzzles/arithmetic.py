"""A calculation in one line, and a story that takes several steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from ggufrope.evals.puzzles.puzzle import Group, Puzzle

_NAMES = ("Alma", "Boris", "Celia", "Darius", "Edda", "Farid", "Greta", "Hugo", "Irma", "Jonas")
_ITEMS = ("apples", "stamps", "marbles", "candles", "pencils", "shells", "buttons", "coins")
_STEPS = "Work it out step by step, and end with: The answer is N."
_STORY_TOKENS = 80
_NUMBER = r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?"
_MARKUP = r"(?:[\s:=*$\u20ac({\[`]|\\boxed|N\b)*"
"""What may stand before the number of an answer."""


def arithmetic(rng: Random) -> Iterator[Group]:
    """Yield a calculation and a story at a time, without end."""
    while True:
        yield Group(puzzles=(_calculation(rng), _story(rng)))


def _calculation(rng: Random) -> Puzzle:
    a, b = rng.randrange(12, 90), rng.randrange(12, 90)
    text, value = f"{a} + {b}", a + b
    if rng.random() < 0.5:
        c = rng.randrange(10, min(value, 80))
        text, value = f"{text} - {c}", value - c
    others = [value + step for step in rng.sample((-10, -2, -1, 1, 2, 10), 3)]
    return Puzzle(
        key=text,
        question=f"What is {text}?",
        prefix=f" {text} =",
        answer=f" {value}",
        wrong=tuple(f" {other}" for other in others),
    )


def _story(rng: Random) -> Puzzle:
    name, items = rng.choice(_NAMES), rng.choice(_ITEMS)
    boxes, each, friends, share = (rng.randrange(2, 7) for _ in range(4))
    had = friends * share + rng.randrange(3, 30)
    left = (
        f"{name} has {had} {items}, buys {boxes} boxes with {each} {items} each, and gives "
        f"{share} {items} to each of {friends} friends. How many {items} are left?"
    )
    remain = (
        f"{name} puts {each} {items} into each of {boxes} bags and still has {had} {items}. "
        f"Then {name} loses {share} of all these {items}. How many {items} remain?"
    )
    together = (
        f"{name} finds {had} {items} on Monday, {each} more than that on Tuesday, and on "
        f"Wednesday {boxes} times {share}. How many {items} are that together?"
    )
    stories = (
        (left, had + boxes * each - friends * share),
        (remain, boxes * each + had - share),
        (together, had + had + each + boxes * share),
    )
    text, value = rng.choice(stories)
    return Puzzle(
        key=text,
        question=f"{text} {_STEPS}",
        prefix="",
        answer=str(value),
        grade=lambda output: {"exact": float(_final_number(output) == value)},
        output_tokens=_STORY_TOKENS,
    )


def _final_number(output: str) -> float | None:
    """Return the number that an output gives as its answer at the end, else its last one."""
    own = output.partition("\nQuestion:")[0]  # what a model that completes texts goes on to ask
    own = re.sub(r"\u2212", "-", own)  # the minus sign
    numbers = re.findall(rf"answer is{_MARKUP}({_NUMBER})", own) or re.findall(_NUMBER, own)
    digits = numbers[-1].replace(",", "") if numbers else ""
    return float(digits) if digits and len(digits) < 20 else None
