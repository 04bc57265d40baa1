"""Records to plain data and back, and the problems of data that is not a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from ggufrope._plain import decode, encode, json_schema, non_finite
from ggufrope.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    color: Literal["red", "green"] = "red"
    size: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str = field(metadata={"help": "what it is called"})
    counts: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    inner: Inner = Inner()
    either: int | tuple[float, ...] = 3
    mixed: tuple[Literal["a", "b"] | Inner, ...] = ()
    switch: bool = False

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise RequestError("that name is forbidden")


def problems(plain: object) -> str:
    with pytest.raises(RequestError) as caught:
        decode(Outer, plain, where="x.toml")
    return str(caught.value)


def test_a_record_survives_the_round_trip() -> None:
    outer = Outer(
        name="n",
        counts=(1, 2),
        pair=(3, 4.5),
        inner=Inner(color="green", size=1.5),
        either=(0.5, 1.0),
        mixed=("a", Inner()),
        switch=True,
    )
    assert decode(Outer, encode(outer)) == outer


def test_none_is_left_out_and_numbers_that_are_not_finite_become_null() -> None:
    assert encode(Inner()) == {"color": "red"}
    assert encode((float("nan"), float("inf"), 1.0)) == [None, None, 1.0]


def test_an_exact_encoding_keeps_none_and_numbers_that_are_not_finite() -> None:
    outer = Outer(name="n", inner=Inner(size=float("inf")), either=(float("-inf"), 1.0))
    assert encode(Inner(), exact=True) == {"color": "red", "size": None}
    assert decode(Outer, encode(outer, exact=True)) == outer


def test_numbers_that_are_not_finite_are_found_with_their_paths() -> None:
    outer = Outer(name="n", inner=Inner(size=float("inf")), either=(1.0, float("-inf")))
    assert list(non_finite(outer)) == [("inner.size", float("inf")), ("either[1]", float("-inf"))]
    assert list(non_finite(Outer(name="n"))) == []


def test_a_whole_number_is_accepted_as_a_number_but_not_the_reverse() -> None:
    size = decode(Outer, {"name": "n", "inner": {"size": 2}}).inner.size
    assert size == 2.0
    assert isinstance(size, float)
    assert problems({"name": "n", "counts": [1.5]}) == (
        "x.toml: counts[0] must be a whole number, found 1.5"
    )


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({}, "name is missing"),
        ({"name": "n", "cuonts": [1]}, "unknown key 'cuonts'; did you mean 'counts'?"),
        ({"name": "n", "zzz": 1}, "unknown key 'zzz'; known here: name, counts, pair, inner"),
        ({"name": 5}, "name must be text, found 5"),
        ({"name": "n", "switch": 1}, "switch must be true or false, found 1"),
        ({"name": "n", "counts": True}, "counts must be a list, found True"),
        ({"name": "n", "counts": [True]}, "counts[0] must be a whole number, found True"),
        ({"name": "n", "counts": "12"}, "counts must be a list, found '12'"),
        ({"name": "n", "pair": [1]}, "pair must have 2 items, found 1"),
        ({"name": "n", "inner": 1}, "inner must be a table, found 1"),
        (
            {"name": "n", "inner": {"color": "gren"}},
            "inner.color must be one of red, green, found 'gren'; did you mean 'green'?",
        ),
        ({"name": "n", "either": "x"}, "either must be a whole number or a list, found 'x'"),
        ({"name": "n", "either": ["x"]}, "either[0] must be a number, found 'x'"),
        ({"name": "n", "mixed": [{"size": "x"}]}, "mixed[0].size must be a number, found 'x'"),
        ({"name": "forbidden"}, "that name is forbidden"),
        ([], "the value must be a table, found []"),
    ],
)
def test_a_problem_is_named_with_its_place(plain: object, message: str) -> None:
    assert message in problems(plain)


def test_every_problem_is_reported_at_once() -> None:
    message = problems({"cuonts": [], "inner": {"color": 1, "sise": 2}})
    for part in ("cuonts", "name is missing", "inner.color", "'inner.sise'; did you mean 'size'"):
        assert part in message


def test_the_schema_says_what_is_accepted() -> None:
    schema = json_schema(Outer, title="Outer")
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["name"] == {"type": "string", "description": "what it is called"}
    assert properties["counts"] == {"type": "array", "items": {"type": "integer"}, "default": []}
    assert properties["either"]["anyOf"][1] == {"type": "array", "items": {"type": "number"}}
    assert properties["inner"]["properties"]["color"]["enum"] == ["red", "green"]


class Color(Enum):
    DARK_RED = 1


@dataclass(frozen=True)
class Answer:
    path: Path
    color: Color
    missing: int | None
    numbers: tuple[float, ...]
    array: object


def test_json_output_keeps_absent_fields_and_names_what_json_lacks() -> None:
    answer = Answer(
        path=Path("a.gguf"),
        color=Color.DARK_RED,
        missing=None,
        numbers=(1.5, float("nan"), float("inf")),
        array=np.array([[1, 2], [3, 4]], dtype=np.int8),
    )
    assert encode({"answer": answer, "raw": b"\x01\xff"}, nulls=True) == {
        "answer": {
            "path": "a.gguf",
            "color": "dark_red",
            "missing": None,
            "numbers": [1.5, None, None],
            "array": [[1, 2], [3, 4]],
        },
        "raw": "01ff",
    }
    assert "missing" not in encode(answer)


def test_a_value_without_a_plain_form_is_a_fault_of_ours() -> None:
    with pytest.raises(TypeError, match="object has no plain form"):
        encode(object())
