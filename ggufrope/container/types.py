"""The values that a GGUF header is made of, and the changes to make to one.

The layout of a file, as in ggml/src/gguf.cpp and the GGUF specification: magic, version, counts,
key-values, tensor infos, padding, tensor data. A `Header` and its parts are immutable and know
their place in the file, so that an edit can copy what it does not change byte for byte. `Edits` are
plain data too: values to set, tensors to put.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.container import ggml
from ggufrope.errors import RequestError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


PADDING_KEY = "ggufrope.padding"
"""Key of reserved header space: an array of UINT8 zeros that later edits shorten, so that tensor
data need not move. Nothing reads it, any program may drop it, and only this package writes it."""


class ValueType(IntEnum):
    """The type number in front of every metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


ByteOrder: TypeAlias = Literal["<", ">"]
"""As in `struct`: "<" little-endian, ">" big-endian."""

Scalar: TypeAlias = int | float | bool | str
"""A decoded value. Strings are decoded as UTF-8 with `surrogateescape`, so any bytes survive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of bytes of the file."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayValue:
    """An array value. `span` covers the items alone.

    `items` is None where they were not decoded: strings, nested arrays, and arrays of more numbers
    than any per-layer setting has.
    """

    item_type: ValueType
    count: int
    span: Span
    items: tuple[Scalar, ...] | None = None


Value: TypeAlias = Scalar | ArrayValue


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One metadata record; `span` covers its key, type and value in the file."""

    key: str
    type: ValueType
    value: Value
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor info record.

    `shape` is in the file's order (innermost first, ggml's `ne`), `type` the raw ggml type number,
    `offset` relative to the start of tensor data. `length` is the bytes of data: computed from
    the shape where the type is known, else up to the next tensor or the end of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    length: int
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """What shows that a file was changed or exchanged since it was read."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Return the identity of the file that has this status."""
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything in front of the tensor data, and where that data starts.

    `identity` is that of the file it was read from, None where it was read from a stream.
    """

    version: int
    byte_order: ByteOrder
    key_values: tuple[KeyValue, ...]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_size: int
    identity: FileIdentity | None = field(default=None, compare=False, repr=False)

    def find(self, key: str) -> KeyValue | None:
        """Return the first record named `key`, or None."""
        return next((kv for kv in self.key_values if kv.key == key), None)

    def get(self, key: str) -> Value | None:
        """Return the value of `key`, or None where the file does not have it."""
        found = self.find(key)
        return None if found is None else found.value

    def tensor(self, name: str) -> TensorInfo | None:
        """Return the first tensor named `name`, or None."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def data_span(self, tensor: TensorInfo) -> Span:
        """Return where the data of `tensor` is in the file."""
        return Span(offset=self.data_offset + tensor.offset, length=tensor.length)

    @property
    def architecture(self) -> str | None:
        """`general.architecture`, or None where it is absent or not a string."""
        value = self.get("general.architecture")
        return value if isinstance(value, str) else None


Content: TypeAlias = "Scalar | tuple[Scalar, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedValue:
    """A metadata value to write: a scalar, or a tuple of `item_type` where `type` is ARRAY."""

    type: ValueType
    value: Content
    item_type: ValueType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorData:
    """A tensor to write. `shape` is innermost first; `data` is in the file's byte order."""

    shape: tuple[int, ...]
    data: bytes
    type: int = ggml.F32


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Changes to one file.

    Keys that exist keep their place, new ones follow the last. `rename_tensors` maps old names to
    new ones. `put_tensors` replaces the tensor of that (new) name in its place, or appends it.
    """

    set: Mapping[str, TypedValue] = field(default_factory=dict)
    remove: frozenset[str] = frozenset()
    put_tensors: Mapping[str, TensorData] = field(default_factory=dict)
    remove_tensors: frozenset[str] = frozenset()
    rename_tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def touches_tensors(self) -> bool:
        return bool(self.put_tensors or self.remove_tensors or self.rename_tensors)


def float_tensor(values: Sequence[float], byte_order: ByteOrder) -> TensorData:
    """Return a one-dimensional F32 tensor, such as RoPE factors.

    Raises RequestError where a value is beyond the range of F32.
    """
    try:
        data = struct.pack(f"{byte_order}{len(values)}f", *values)
    except (struct.error, OverflowError) as error:
        raise RequestError(f"tensor values do not fit F32: {error}") from error
    return TensorData(shape=(len(values),), data=data)
