"""Puzzles whose answers suffer where a cache is damaged, and the texts that they are about.

- `arithmetic`: a calculation in one line, and a story that takes several steps.
- `tool-call`: tools are defined by JSON Schemas, a request has to become the one right call.
- `ordered-copies`: alike requests have different replies, and the k-th is to be copied, as in MRCR
  (Vodrahalli et al., 2024); or, which is easier, the one that begins with some words.
- `graph-walk`: a list of edges, questions for the parents of a node and for the nodes at a distance
  of two steps, as in GraphWalks (OpenAI, 2025).
- `code-bug`: each of several functions has one wrong line, and the question wants its number.

A puzzle with one right text is scored under teacher forcing. Where several texts are right (a set
in any order, steps in one's own words, JSON with any spacing), the answer is generated and graded.
All wording is our own, and everything is drawn from the generator that is passed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope.errors import MissingDependencyError
from ggufrope.evals.facts import ADJECTIVES, NOUNS
from ggufrope.evals.needle_kinds import ORDINALS

if TYPE_CHECKING:
    from ggufrope.evals.task import TaskName

Grade: TypeAlias = Callable[[str], Mapping[str, float]]
"""Grades an output, its prefix included: metrics by name, each from 0 to 1, `exact` among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """One question, as text. `prefix` is the beginning of the answer, `key` names the question.

    Without a `grade`, `answer` is what has to follow the prefix, and `wrong` has answers of the
    same form. With one, at most `output_tokens` are generated, and `answer` is for the record.
    """

    key: str
    question: str
    prefix: str
    answer: str
    wrong: tuple[str, ...] = ()
    grade: Grade | None = None
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Texts that stand in a haystack together, in this order, and the puzzles about them."""

    pieces: tuple[str, ...] = ()
    puzzles: tuple[Puzzle, ...]


def groups(task: TaskName, rng: Random) -> Iterator[Group]:
    """Yield the groups of a task without end. Raises KeyError for a task without puzzles."""
    return _GROUPS[task](rng)


# Arithmetic -------------------------------------------------------------------------------------

_NAMES = ("Alma", "Boris", "Celia", "Darius", "Edda", "Farid", "Greta", "Hugo", "Irma", "Jonas")
_ITEMS = ("apples", "stamps", "marbles", "candles", "pencils", "shells", "buttons", "coins")
_STEPS = "Work it out step by step, and end with: The answer is N."
_STORY_TOKENS = 80


def _arithmetic(rng: Random) -> Iterator[Group]:
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


def _final_number(output: str) -> int | None:
    """Return the number that an output gives as its answer, else its last one."""
    own = output.partition("\nQuestion:")[0]  # what a model that completes texts goes on to ask
    said = re.search(r"answer is:?\D{0,3}(-?[\d,]*\d)", own)
    numbers = [said[1]] if said else re.findall(r"-?\d[\d,]*", own)
    digits = numbers[-1].replace(",", "") if numbers else ""
    return int(digits) if digits and len(digits) < 20 else None


# Tool calls -------------------------------------------------------------------------------------

_TOOLS_IN_GROUP, _CALLS_OF_TOOL = 4, 2
_CALL_TOKENS = 64
_CITIES = ("Bergen", "Cusco", "Dakar", "Galway", "Hobart", "Izmir", "Lagos", "Nantes")


def _text(values: Sequence[str]) -> tuple[dict[str, object], Sequence[object]]:
    return {"type": "string"}, values


def _choice(values: Sequence[str]) -> tuple[dict[str, object], Sequence[object]]:
    return {"type": "string", "enum": list(values)}, values


def _integer(low: int, high: int) -> tuple[dict[str, object], Sequence[object]]:
    return {"type": "integer", "minimum": low, "maximum": high}, range(low, high + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """A tool: its parameters, each with its schema and the values that requests have, and what a
    request says, with a place for each parameter."""

    name: str
    description: str
    request: str
    parameters: Mapping[str, tuple[dict[str, object], Sequence[object]]]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return {
            "type": "object",
            "properties": {name: schema for name, (schema, _) in self.parameters.items()},
            "required": list(self.parameters),
            "additionalProperties": False,
        }

    @property
    def definition(self) -> str:
        """The tool as a context states it."""
        shown = {"name": self.name, "description": self.description, "parameters": self.schema}
        return f"\nTool: {json.dumps(shown)}\n"


_TOOLS = (
    _Tool(
        name="book_table",
        description="Book a table in a restaurant.",
        request="Book a table for {guests} in {city}, {place}.",
        parameters={
            "city": _text(_CITIES),
            "guests": _integer(2, 12),
            "place": _choice(("inside", "outside")),
        },
    ),
    _Tool(
        name="set_alarm",
        description="Set an alarm.",
        request="Wake me at {hour} hours and {minute} minutes with {sound}.",
        parameters={
            "hour": _integer(0, 23),
            "minute": _integer(0, 59),
            "sound": _choice(("bell", "birds", "piano")),
        },
    ),
    _Tool(
        name="send_parcel",
        description="Send a parcel.",
        request="Send a parcel of {grams} grams to {city}, {speed}.",
        parameters={
            "city": _text(_CITIES),
            "grams": _integer(100, 9000),
            "speed": _choice(("standard", "express")),
        },
    ),
    _Tool(
        name="convert_money",
        description="Convert an amount of money.",
        request="How much are {amount} {source} in {target}?",
        parameters={
            "amount": _integer(10, 5000),
            "source": _choice(("EUR", "USD", "JPY")),
            "target": _choice(("CHF", "GBP", "NOK")),
        },
    ),
    _Tool(
        name="rent_bicycle",
        description="Rent bicycles.",
        request="Rent {number} bicycles in {city} for {days} days.",
        parameters={
            "city": _text(_CITIES),
            "days": _integer(1, 14),
            "number": _integer(1, 8),
        },
    ),
    _Tool(
        name="water_plants",
        description="Water the plants of a room.",
        request="Give the plants in the {room} {milliliters} milliliters of water.",
        parameters={
            "milliliters": _integer(50, 900),
            "room": _choice(("kitchen", "office", "hall")),
        },
    ),
    _Tool(
        name="find_train",
        description="Find a train.",
        request="Find a train from {origin} to {target} for {travelers}.",
        parameters={
            "origin": _text(_CITIES[:4]),
            "target": _text(_CITIES[4:]),
            "travelers": _integer(1, 9),
        },
    ),
    _Tool(
        name="dim_lights",
        description="Dim the lights of a room.",
        request="Dim the lights in the {room} to {percent} percent.",
        parameters={
            "percent": _integer(1, 99),
            "room": _choice(("kitchen", "office", "hall")),
        },
    ),
)


def _tool_calls(rng: Random) -> Iterator[Group]:
    while True:
        tools = rng.sample(_TOOLS, len(_TOOLS))
        for start in range(0, len(tools), _TOOLS_IN_GROUP):
            chosen = tools[start : start + _TOOLS_IN_GROUP]
            puzzles = [_call(rng, tool) for tool in chosen for _ in range(_CALLS_OF_TOOL)]
            yield Group(
                pieces=tuple(tool.definition for tool in chosen),
                puzzles=tuple(rng.sample(puzzles, len(puzzles))),
            )


def _call(rng: Random, tool: _Tool) -> Puzzle:
    arguments = {name: rng.choice(values) for name, (_, values) in tool.parameters.items()}
    request = tool.request.format(**arguments)
    call = {"call": tool.name, "arguments": arguments}
    return Puzzle(
        key=request,
        question=(
            f'A user says: "{request}" Which call of a tool does that? Answer with one JSON object '
            'of the form {"call": NAME, "arguments": {NAME: VALUE, NAME: VALUE}}, with the name of '
            "the tool and those of its parameters, and nothing else."
        ),
        prefix=' {"call":',
        answer=json.dumps(call),
        grade=lambda output: _grade_call(output, call, tool.schema),
        output_tokens=_CALL_TOKENS,
    )


def _grade_call(
    output: str, call: Mapping[str, object], schema: Mapping[str, Any]
) -> Mapping[str, float]:
    """Return whether an output begins with the call, and whether with any that the tool takes."""
    try:
        found, _ = json.JSONDecoder().raw_decode(output.strip())
    except ValueError:
        return {"exact": 0.0, "valid": 0.0}
    named = isinstance(found, dict) and found.keys() == call.keys()
    valid = named and found["call"] == call["call"] and _follows(found["arguments"], schema)
    return {"exact": float(valid and found == call), "valid": float(valid)}


def require_schemas() -> None:
    """Raise MissingDependencyError where calls of tools cannot be checked."""
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "checking the calls of tools (task tool-call) needs jsonschema: pip install jsonschema"
        ) from None


def _follows(arguments: object, schema: Mapping[str, Any]) -> bool:
    """Return whether arguments follow a JSON Schema."""
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator(schema).is_valid(arguments))


# Ordered copies ---------------------------------------------------------------------------------

_VERBS = ("waits", "sleeps", "sings", "dances", "hides", "shines", "turns", "rests", "drifts")
_PLACES = ("behind", "above", "below", "beside", "near", "inside")


def _ordered_copies(rng: Random) -> Iterator[Group]:
    for topic in _unused(rng, NOUNS):
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


# Graph walks ------------------------------------------------------------------------------------

_NODES, _CHILDREN, _ASKED_NODES = 12, 2, 4
_NODE_TOKENS = 32


def _graph_walks(rng: Random) -> Iterator[Group]:
    unused = _unused(rng, NOUNS)
    while True:
        nodes = [next(unused) for _ in range(_NODES)]
        children = {
            node: rng.sample([other for other in nodes if other != node], _CHILDREN)
            for node in nodes
        }
        edges = [(node, child) for node in nodes for child in children[node]]
        rng.shuffle(edges)
        parents = {node: {a for a, b in edges if b == node} for node in nodes}
        puzzles = []
        for node in rng.sample([node for node in nodes if parents[node]], _ASKED_NODES):
            puzzles.append(_walk(f"Which nodes have an edge to {node}?", parents[node]))
        for node in rng.sample(nodes, _ASKED_NODES):
            near = {node, *children[node]}
            far = {b for a in children[node] for b in children[a]} - near
            if far:
                question = f"Which nodes are reached from {node} in two steps, and not in fewer?"
                puzzles.append(_walk(question, far))
        yield Group(pieces=tuple(f"\nEdge: {a} -> {b}\n" for a, b in edges), puzzles=tuple(puzzles))


def _walk(question: str, nodes: set[str]) -> Puzzle:
    return Puzzle(
        key=question,
        question=(
            'The lines above that begin with "Edge:" are the edges of a directed graph, each from '
            f"one node to another. {question} Answer with their names in one line, separated by "
            "commas, and nothing else."
        ),
        prefix=" Nodes:",
        answer=", ".join(sorted(nodes)),
        grade=lambda output: _grade_set(output.lstrip().removeprefix("Nodes:"), nodes),
        output_tokens=_NODE_TOKENS,
    )


def _grade_set(output: str, expected: set[str]) -> Mapping[str, float]:
    """Return whether the names that follow are the expected set, and their F1 score: those of the
    first line, or of a list with a line for each."""
    listed = re.match(r"\s*\n((?:[ \t]*(?:\d+[.)]|[-*])[ \t]+\S.*\n?)+)", output)
    if listed:
        names = re.sub(r"(?m)^[ \t]*(?:\d+[.)]|[-*])", ",", listed[1])
    else:
        names = output.strip().partition("\n")[0]
    words = re.split(r",|\band\b", names)
    named = {word.strip(" .*`'\"[]\n").lower() for word in words} - {""}
    hits = len(named & expected)
    return {"exact": float(named == expected), "f1": 2 * hits / (len(named) + len(expected))}


# Code with a bug --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """A correct function of one list, what it returns, and lines that are wrong in the place of
    the right ones."""

    verb: str
    meaning: str
    lines: tuple[str, ...]
    bugs: tuple[tuple[int, str], ...]


_FUNCTIONS = (
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


def _code_bugs(rng: Random) -> Iterator[Group]:
    for noun in _unused(rng, NOUNS):
        function = rng.choice(_FUNCTIONS)
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


def _unused(rng: Random, words: Sequence[str]) -> Iterator[str]:
    """Yield words without end, in an order that is drawn; a word that comes again has a counter."""
    for round_ in count(1):
        for word in rng.sample(words, len(words)):
            yield word if round_ == 1 else f"{word} {round_}"


_GROUPS: Mapping[str, Callable[[Random], Iterator[Group]]] = {
    "arithmetic": _arithmetic,
    "tool-call": _tool_calls,
    "ordered-copies": _ordered_copies,
    "graph-walk": _graph_walks,
    "code-bug": _code_bugs,
}
DAMAGE_TASKS: tuple[TaskName, ...] = tuple(_GROUPS)  # type: ignore[arg-type]
"""The tasks that are made of puzzles."""
