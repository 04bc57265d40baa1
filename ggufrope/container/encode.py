"""Records of the header -> bytes, in either byte order."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ggufrope.container.cursor import CODES
from ggufrope.container.edits import PADDING_KEY, TypedValue
from ggufrope.container.reader import MAX_NAME_BYTES, MAX_STRING_BYTES
from ggufrope.container.types import ValueType
from ggufrope.errors import WishError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.container.types import ByteOrder, Scalar


def encode_key_value(key: str, value: TypedValue, order: ByteOrder) -> bytes:
    """One metadata record. Raises WishError where the value does not fit its type."""
    name = _encode_text(key, order)
    if not 8 < len(name) <= 8 + MAX_NAME_BYTES:
        raise WishError(f"key {key[:80]!r} must have 1 to {MAX_NAME_BYTES} bytes")
    try:
        return name + struct.pack(order + "I", value.type) + _encode_value(value, order)
    except (struct.error, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        wanted = value.type if value.item_type is None else value.item_type
        raise WishError(f"{key} = {value.value!r:.80} does not fit {wanted.name}") from error


def encode_tensor_info(
    name: str, shape: Sequence[int], type_: int, offset: int, order: ByteOrder
) -> bytes:
    """One tensor info record; `offset` is relative to the tensor data."""
    dimensions = len(shape)
    format_ = f"{order}I{dimensions}QIQ"
    return _encode_text(name, order) + struct.pack(format_, dimensions, *shape, type_, offset)


def encode_padding(count: int, order: ByteOrder) -> bytes:
    """The padding key-value with `count` zeros."""
    head = struct.pack(order + "IIQ", ValueType.ARRAY, ValueType.UINT8, count)
    return _encode_text(PADDING_KEY, order) + head + bytes(count)


PADDING_RECORD_BYTES = 8 + len(PADDING_KEY) + 4 + 4 + 8
"""What the padding key-value takes beside its zeros."""


def _encode_value(value: TypedValue, order: ByteOrder) -> bytes:
    if value.type is not ValueType.ARRAY:
        if isinstance(value.value, tuple) or value.item_type is not None:
            raise TypeError("a scalar is expected")
        return _encode_scalar(value.type, value.value, order)
    if not isinstance(value.value, tuple) or value.item_type in (None, ValueType.ARRAY):
        raise TypeError("a tuple of scalars and their type are expected")
    head = struct.pack(order + "IQ", value.item_type, len(value.value))
    return head + b"".join(_encode_scalar(value.item_type, item, order) for item in value.value)


def _encode_scalar(kind: ValueType, value: Scalar, order: ByteOrder) -> bytes:
    if kind is ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError("a string is expected")
        return _encode_text(value, order)
    if isinstance(value, bool) is not (kind is ValueType.BOOL):
        raise TypeError("BOOL takes True and False, and nothing else does")
    return struct.pack(order + CODES[kind], value)


def _encode_text(text: str, order: ByteOrder) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_STRING_BYTES:
        raise OverflowError("a string is too long")
    return struct.pack(order + "Q", len(data)) + data
