"""Records (frozen dataclasses) to plain data and back, checked; and their JSON Schema.

One description serves the TOML plan that a person writes, the JSON in a run's database and between
its processes, and the schema that an editor completes from. The type of a field says what is
accepted: `str`, `int`, `float`, `bool`, a `Literal`, another record, `tuple[T, ...]`, a fixed
tuple, a union of these or None. A field's `metadata` may hold `help`, which goes into the schema.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from typing import Any, Literal, TypeVar, Union

from ggufrope.errors import RequestError

Plain = Any
"""What JSON and TOML are made of: str, int, float, bool, None, list, dict with string keys."""

T = TypeVar("T")


def encode(value: object, *, nulls: bool = False, exact: bool = False) -> Plain:
    """Return plain data for a value: the one encoder of stored records, plans and JSON output.

    Records become objects, enumerations their name in lower case, paths text, bytes hexadecimal
    digits, arrays and other iterables lists. A number that is not finite becomes None: JSON has no
    word for it. Absent (None) fields of a record are left out, or with `nulls` kept as None. With
    `exact` both stay as they are, so that `decode` returns an equal record whatever the defaults
    of its fields.
    """
    if isinstance(value, Enum):
        return value.name.lower()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if exact or math.isfinite(value) else None
    nested = partial(encode, nulls=nulls, exact=exact)
    if is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: nested(getattr(value, f.name)) for f in fields(value)}
        return {name: item for name, item in plain.items() if nulls or exact or item is not None}
    if isinstance(value, Mapping):
        return {str(name): nested(item) for name, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return nested(value.tolist())
    if isinstance(value, Iterable):
        return [nested(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form")


def decodable(plain: Plain) -> Plain:
    r"""Return plain data whose text is all Unicode: bytes of a name that are not UTF-8 become
    escapes (`\udcff`), which strict readers of JSON would refuse as they are."""
    if isinstance(plain, str):
        return plain.encode("utf-8", "backslashreplace").decode()
    if isinstance(plain, dict):
        return {decodable(key): decodable(item) for key, item in plain.items()}
    return [decodable(item) for item in plain] if isinstance(plain, list) else plain


def non_finite(value: object, path: str = "") -> typing.Iterator[tuple[str, float]]:
    """Yield the path and value of each number in a record that is infinite or not a number."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from non_finite(getattr(value, field.name), _join(path, field.name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from non_finite(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def decode(record: type[T], plain: Plain, *, where: str = "") -> T:
    """Return the record that `plain` describes; messages call it `where`, a file's name say.

    Raises RequestError naming every problem at once: unknown keys with the nearest known one, wrong
    types with the path to them, missing keys.
    """
    problems: list[str] = []
    value = _decode(record, plain, "", problems)
    if problems:
        prefix = f"{where}: " if where else ""
        raise RequestError(prefix + "; ".join(problems))
    return typing.cast("T", value)


def json_schema(record: type, *, title: str) -> dict[str, Plain]:
    """Return the JSON Schema (draft 2020-12) of what `decode(record, …)` accepts."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **_schema(record),
    }


@cache
def _fields(record: type) -> dict[str, tuple[Field[Any], Any]]:
    """Return each field of a record with its resolved type, in order."""
    hints = typing.get_type_hints(record)
    return {f.name: (f, hints[f.name]) for f in fields(record) if f.init}


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _decode(kind: Any, plain: Plain, path: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, plain, path, problems)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), plain, path, problems)
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(kind), plain, path, problems)
    if origin is dict:
        kind = dict
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            problems.append(f"{path or 'the value'} is a number with too many digits")
            return 0.0
    accepted = (
        plain in typing.get_args(kind)
        if origin is Literal
        else isinstance(plain, kind) and (kind is bool or not isinstance(plain, bool))
    )
    if not accepted:
        problems.append(f"{path or 'the value'} must be {_describe(kind)}, found {_show(plain)}")
        if origin is Literal and isinstance(plain, str):
            problems[-1] += did_you_mean(plain, typing.get_args(kind))
    return plain


def _decode_record(record: type, plain: Plain, path: str, problems: list[str]) -> Any:
    if not isinstance(plain, Mapping):
        problems.append(f"{path or 'the value'} must be a table, found {_show(plain)}")
        return None
    known = _fields(record)
    renamed = {field.metadata.get("was"): name for name, (field, _) in known.items()}
    before = len(problems)
    for name in plain:
        if name not in known:
            hint = did_you_mean(name, known) or f"; known here: {', '.join(known)}"
            if name in renamed:
                hint = f": it is {renamed[name]!r} now"
            problems.append(f"unknown key {_join(path, str(name))!r}{hint}")
    values = {}
    for name, (field, kind) in known.items():
        if name in plain:
            values[name] = _decode(kind, plain[name], _join(path, name), problems)
        elif _required(field):
            problems.append(f"{_join(path, name)} is missing")
    if len(problems) > before:
        return None
    try:
        return record(**values)
    except RequestError as error:
        problems.append(f"{path}: {error}" if path else str(error))
        return None


def _decode_tuple(
    items: tuple[Any, ...], plain: Plain, path: str, problems: list[str]
) -> tuple[Any, ...]:
    if isinstance(plain, str) or not isinstance(plain, Sequence):
        problems.append(f"{path} must be a list, found {_show(plain)}")
        return ()
    if items[-1] is Ellipsis:
        items = items[:1] * len(plain)
    elif len(items) != len(plain):
        problems.append(f"{path} must have {len(items)} items, found {len(plain)}")
        return ()
    return tuple(
        _decode(kind, item, f"{path}[{index}]", problems)
        for index, (kind, item) in enumerate(zip(items, plain, strict=True))
    )


def _decode_union(kinds: tuple[Any, ...], plain: Plain, path: str, problems: list[str]) -> Any:
    """Return the value as the first type that accepts it, else report what is wrong with it."""
    if plain is None and type(None) in kinds:
        return None
    attempts = []
    for kind in (k for k in kinds if k is not type(None)):
        complaints: list[str] = []
        value = _decode(kind, plain, path, complaints)
        if not complaints:
            return value
        attempts.append((kind, complaints))
    structured = [c for kind, c in attempts if _takes(kind, plain)]
    if structured or len(attempts) == 1:
        problems.extend((structured or [attempts[0][1]])[0])
    else:
        expected = " or ".join(_describe(kind) for kind, _ in attempts)
        problems.append(f"{path} must be {expected}, found {_show(plain)}")
    return None


def _takes(kind: Any, plain: Plain) -> bool:
    """Whether `plain` has the outer shape of `kind`, so that complaints about its inside help."""
    if isinstance(plain, Mapping):
        return is_dataclass(kind)
    return typing.get_origin(kind) is tuple and isinstance(plain, list)


def _schema(kind: Any) -> dict[str, Plain]:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record_schema(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_schema(a) for a in arguments]}
    if origin in (Union, types.UnionType):
        members = [_schema(a) for a in arguments if a is not type(None)]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if origin is Literal:
        return {"enum": list(arguments)}
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return {"type": names[kind]}


def _record_schema(record: type) -> dict[str, Plain]:
    properties, required = {}, []
    for name, (field, kind) in _fields(record).items():
        properties[name] = _schema(kind)
        if "help" in field.metadata:
            properties[name]["description"] = field.metadata["help"]
        if _required(field):
            required.append(name)
        elif field.default is not MISSING and field.default is not None:
            properties[name]["default"] = encode(field.default)
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": required} if required else schema


def _describe(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    if origin is tuple:
        return "a list"
    if is_dataclass(kind) or kind is dict:
        return "a table"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names[kind]


def _show(plain: Plain) -> str:
    text = repr(plain)
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Return the end of a message: the known word nearest to `word`, nothing where none is near."""
    names = {str(each).casefold(): str(each) for each in known}
    close = get_close_matches(word.casefold(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
