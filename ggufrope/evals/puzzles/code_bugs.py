"""Each of several functions has one wrong line, and the question wants its number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from ggufrope.evals.facts import NOUNS
from ggufrope.evals.puzzles.puzzle import Group, Puzzle, unused


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """A correct function of one list, what it returns, and lines that are wrong in the place of
    the right ones."""

    verb: str
    meaning: str
    lines: tuple[str, ...]
    bugs: tuple[tuple[int, str], ...]


FUNCTIONS = (
    _Function(
        verb="add",
        meaning="the sum of all values",
        lines=("total = 0", "for value in values:", "    total += value", "return total"),
        bugs=((0, "total = 1"), (2, "    total -= value"), (3, "return value")),
    ),
    _Function(
        verb="largest",
        meaning="the largest value",
        lines=(
            "best = values[0]",
            "for value in values:",
            "    if value > best:",
            "        best = value",
            "return best",
        ),
        bugs=((2, "    if value < best:"), (3, "        best = values[0]"), (4, "return value")),
    ),
    _Function(
        verb="evens",
        meaning="the number of even values",
        lines=(
            "found = 0",
            "for value in values:",
            "    if value % 2 == 0:",
            "        found += 1",
            "return found",
        ),
        bugs=((0, "found = 2"), (2, "    if value % 2 == 1:"), (3, "        found += value")),
    ),
    _Function(
        verb="average",
        meaning="the mean of all values",
        lines=(
            "total = 0",
            "for value in values:",
            "    total += value",
            "return total / len(values)",
        ),
        bugs=(
            (0, "total = values[0]"),
            (2, "    total = value"),
            (3, "return total * len(values)"),
        ),
    ),
    _Function(
        verb="reverse",
        meaning="the values in reverse order",
        lines=(
            "result = []",
            "for value in values:",
            "    result.insert(0, value)",
            "return result",
        ),
        bugs=((0, "result = [0]"), (2, "    result.append(value)"), (3, "return values")),
    ),
    _Function(
        verb="product",
        meaning="the product of all values",
        lines=("result = 1", "for value in values:", "    result *= value", "return result"),
        bugs=((0, "result = 0"), (2, "    result += value"), (3, "return value")),
    ),
    _Function(
        verb="positive",
        meaning="the list of the positive values",
        lines=(
            "kept = []",
            "for value in values:",
            "    if value > 0:",
            "        kept.append(value)",
            "return kept",
        ),
        bugs=((2, "    if value < 0:"), (3, "        kept.append(0)"), (4, "return values")),
    ),
)


def code_bugs(rng: Random) -> Iterator[Group]:
    """Yield a function with one wrong line at a time, and its question, without end."""
    for noun in unused(rng, NOUNS):
        function = rng.choice(FUNCTIONS)
        at, wrong = rng.choice(function.bugs)
        name = f"{function.verb}_{noun.replace(' ', '_')}"
        body = [wrong if number == at else line for number, line in enumerate(function.lines)]
        lines = [f"def {name}(values):", *(f"    {line}" for line in body)]
        numbers = range(2, len(lines) + 1)
        listing = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
        yield Group(
            pieces=(f"\n{listing}\n",),
            puzzles=(
                Puzzle(
                    key=name,
                    question=(
                        f"The function {name} should return {function.meaning}, but one of its "
                        "lines is wrong. What is the number of that line?"
                    ),
                    prefix=" The wrong line has the number",
                    answer=f" {at + 2}",
                    wrong=tuple(f" {number}" for number in numbers if number != at + 2),
                ),
            ),
        )
