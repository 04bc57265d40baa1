"""Tools are defined by JSON Schemas, and a request has to become the one right call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ggufrope.errors import MissingDependencyError
from ggufrope.evals.puzzles.puzzle import Group, Puzzle

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


def tool_calls(rng: Random) -> Iterator[Group]:
    """Yield some tools at a time and requests for each, without end."""
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
    """Return whether the first object in an output is the call, and whether one that the tool
    takes. Around it may be the fence of a block of code."""
    try:
        found, _ = json.JSONDecoder().raw_decode(output[output.find("{") :])
    except (ValueError, RecursionError):
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
