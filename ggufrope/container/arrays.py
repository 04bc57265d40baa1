"""Decodes on demand what the reader left as spans."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.container.cursor import CODES
from ggufrope.container.types import ArrayValue, ValueType
from ggufrope.errors import MalformedError, StorageError, WishError

if TYPE_CHECKING:
    import os

    from ggufrope.container.types import Header, KeyValue, Scalar, Span


def read_array(
    path: str | os.PathLike[str], header: Header, key_value: KeyValue
) -> tuple[Scalar, ...]:
    """All items of an array of numbers, booleans or strings.

    Raises WishError where the value is no such array, StorageError where it cannot be read.
    """
    value = key_value.value
    if not isinstance(value, ArrayValue) or value.item_type is ValueType.ARRAY:
        raise WishError(f"{key_value.key} is not an array of numbers or strings")
    if value.items is not None:
        return value.items
    data = read_span(path, value.span)
    if value.item_type is ValueType.STRING:
        return _strings(data, value, header)
    return struct.unpack(f"{header.byte_order}{value.count}{CODES[value.item_type]}", data)


def read_tensor(path: str | os.PathLike[str], header: Header, name: str) -> bytes:
    """The data of a tensor, in the file's byte order. Raises WishError where there is none."""
    tensor = header.tensor(name)
    if tensor is None:
        raise WishError(f"{path} has no tensor {name!r}")
    return read_span(path, header.data_span(tensor))


def read_span(path: str | os.PathLike[str], span: Span) -> bytes:
    """The bytes of a span of the file."""
    try:
        with Path(path).open("rb") as stream:
            stream.seek(span.offset)
            data = stream.read(span.length)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) < span.length:
        raise MalformedError(f"{path} became shorter while it was read", offset=span.offset)
    return data


def _strings(data: bytes, value: ArrayValue, header: Header) -> tuple[str, ...]:
    unpack = struct.Struct(header.byte_order + "Q").unpack_from
    items = []
    at = 0
    try:
        for _ in range(value.count):
            start = at + 8
            at = start + unpack(data, at)[0]
            items.append(data[start:at].decode("utf-8", "surrogateescape"))
    except struct.error:
        at = -1
    if at != len(data):
        raise MalformedError("an array of strings changed while read", offset=value.span.offset)
    return tuple(items)
