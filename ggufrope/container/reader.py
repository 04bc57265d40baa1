"""Read a GGUF header from a file or a stream, decoding only what is needed.

Every count and length is checked against the bytes that are left before anything is allocated or
skipped, so a hostile file costs no more than an honest one. Long arrays and arrays of strings are
skipped, not decoded: their `span` says where they are, and `read_array` decodes them on demand.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, Protocol

from ggufrope._files import model_status, storage
from ggufrope.container import ggml
from ggufrope.container.beside import journal_path
from ggufrope.container.filesystem import LOCAL
from ggufrope.container.remote import FileName, Place, RemoteFile, place_of
from ggufrope.container.types import (
    ArrayValue,
    FileIdentity,
    Header,
    KeyValue,
    Span,
    TensorInfo,
    ValueType,
)
from ggufrope.errors import MalformedError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.container.types import ByteOrder, Scalar, Value


MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

# Limits far beyond any model, and low enough that a header at the limits fits in memory.
MAX_KEY_VALUES = 65_536
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 65_535
MAX_STRING_BYTES = 16 << 20
MAX_DIMENSIONS = 4
MAX_DECODED_ITEMS = 1024
MAX_DEPTH = 4
MAX_WALKED_ITEMS = 1 << 24
"""Strings in the arrays of one header: sixty times the largest vocabulary known."""

MAX_NESTED_ARRAYS = 1 << 16
"""Arrays inside arrays in one header; llama.cpp reads none."""
MAX_DECODED_TOTAL = 1 << 18
"""Items of all decoded arrays of one header. Those of further arrays are skipped, as long ones are:
a number takes up to forty times as much memory as it takes in the file."""
MAX_TEXT_BYTES = 32 << 20
"""All keys, names and strings of one header that are decoded; the largest known have 5 MiB."""

_MAX_ELEMENTS = (1 << 63) - 1
_CHUNK = 1 << 18
EDIT_SECONDS = 10.0
"""How long a reader waits for an edit of the same file."""
_CHANGE_SECONDS = 1.0
"""How long a reader tries to read a file that changes meanwhile."""
PAUSE_SECONDS = 0.01

CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""`struct` codes of the types of fixed size."""


def read_header(name: FileName) -> Header:
    """Read the header of a file, on disk or on a server.

    Raises StorageError where the file cannot be read, MalformedError where it is not a GGUF file
    of version 2 or 3, ends early, or contradicts itself.
    """
    path = place_of(name)
    if isinstance(path, RemoteFile):
        with path.open() as stream, _located(path):
            return parse_header(stream, stream.size)
    start = time.monotonic()
    while True:
        before = _state_of(path)
        try:
            header: Header | MalformedError = _read_once(path)
        except MalformedError as error:
            header = error
        # In this order: an editor sets the time of change before it is done.
        edited = _is_being_edited(path, start + EDIT_SECONDS)
        changed = _state_of(path) != before and time.monotonic() < start + _CHANGE_SECONDS
        if not edited and not changed:
            break
        time.sleep(PAUSE_SECONDS)
    if isinstance(header, MalformedError):
        raise header
    return header


def _read_once(path: Path) -> Header:
    model_status(path)
    with storage("read", path), path.open("rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        with _located(path):
            header = parse_header(stream, status.st_size)
    return replace(header, identity=FileIdentity.of(status))


@contextmanager
def _located(place: Place) -> Iterator[None]:
    """Name the file in what is wrong with its bytes."""
    try:
        yield
    except MalformedError as error:
        located = MalformedError(f"{place}: {error}")
        located.offset = error.offset
        raise located from None


def _state_of(path: Path) -> tuple[FileIdentity, int]:
    """Return what differs after every change: an undo restores the identity, and nobody ctime."""
    with storage("read", path):
        status = path.stat()
    return FileIdentity.of(status), status.st_ctime_ns


def _is_being_edited(path: Path, last: float) -> bool:
    """Return whether an editor is at work on the file, which a reader should wait for.

    An editor has a journal beside the file, and the file locked. Where a crash left a journal,
    nobody has. Raises StorageError where it is still at work at the time `last`.
    """
    if not path.name:
        return False
    path = path.resolve()
    if not journal_path(path).exists():
        return False
    with storage("read", path), path.open("rb") as file:
        try:
            free = LOCAL.try_lock(file, shared=True)
        except OSError:  # no locks, so no editors
            return False
    if not free and time.monotonic() > last:
        raise StorageError(
            f"{path} is being edited by another ggufrope process; try again when it is done"
        )
    return not free


def parse_header(
    stream: ByteStream, file_size: int, known: Mapping[tuple[int, int], int] = MappingProxyType({})
) -> Header:
    """Read the header at the start of `stream`, of `file_size` bytes. Raises MalformedError.

    `known` are the bytes of arrays of strings that need not be walked again, by the offset of their
    items and the number of these.
    """
    cursor = Cursor(stream, file_size, known)
    version = _read_preamble(cursor)
    tensor_count = _read_count(cursor, "tensors", MAX_TENSORS)
    key_value_count = _read_count(cursor, "key-values", MAX_KEY_VALUES)
    key_values = tuple(_read_key_value(cursor) for _ in range(key_value_count))
    alignment = _alignment(key_values)
    records = [_read_tensor_info(cursor) for _ in range(tensor_count)]
    data_offset = aligned(cursor.position, alignment)
    return Header(
        version=version,
        byte_order=cursor.order,
        key_values=key_values,
        tensors=_with_lengths(records, data_offset, file_size),
        alignment=alignment,
        data_offset=data_offset,
        file_size=file_size,
    )


def aligned(offset: int, alignment: int) -> int:
    """Return the first multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def read_array(name: FileName, header: Header, key_value: KeyValue) -> tuple[Scalar, ...]:
    """Read all items of an array of numbers, booleans or strings.

    Raises RequestError where the value is no such array, StorageError where it cannot be read.
    """
    value = key_value.value
    if not isinstance(value, ArrayValue) or value.item_type is ValueType.ARRAY:
        raise RequestError(f"{key_value.key} is not an array of numbers or strings")
    if value.items is not None:
        return value.items
    data = _read_as_of(name, header, value.span)
    if value.item_type is ValueType.STRING:
        return _strings(data, value, header)
    return struct.unpack(f"{header.byte_order}{value.count}{CODES[value.item_type]}", data)


def read_tensor(file: FileName, header: Header, name: str) -> bytes:
    """Read the data of a tensor, in the file's byte order. Raises RequestError without one."""
    tensor = header.tensor(name)
    if tensor is None:
        raise RequestError(f"{file} has no tensor {name!r}")
    return _read_as_of(file, header, header.data_span(tensor))


def _read_as_of(name: FileName, header: Header, span: Span) -> bytes:
    """Read a span of the file that has this header. Raises StorageError where it was changed."""
    path = place_of(name)
    if isinstance(path, RemoteFile):  # which compares each answer with the first
        return read_span(path, span)
    before = _state_of(path)
    try:
        return read_span(path, span)
    finally:
        if header.identity not in (None, before[0]) or _state_of(path) != before:
            raise StorageError(f"{path} was changed while it was read; try again")


def read_span(name: FileName, span: Span) -> bytes:
    """Read the bytes of a span of the file. Raises StorageError, MalformedError where cut short."""
    path = place_of(name)
    with storage("read", path), path.open("rb") as stream:
        stream.seek(span.offset)
        data = stream.read(span.length)
    if len(data) < span.length:
        raise MalformedError(f"{path} became shorter while it was read", offset=span.offset)
    return data


class ByteStream(Protocol):
    """What a header is read from: a file, or a stream of a remote one."""

    def seek(self, offset: int, /) -> int: ...
    def read(self, length: int, /) -> bytes: ...


class Cursor:
    """A position in a stream that moves forward, through a window, and never past the end."""

    def __init__(self, stream: ByteStream, size: int, known: Mapping[tuple[int, int], int]) -> None:
        self._stream = stream
        self._size = size
        self._base = 0
        self._window = b""
        self._at = 0
        self._walked = 0
        self._nested = 0
        self._text = 0
        self._decoded = 0
        self._known = known
        self.use_byte_order("<")

    def use_byte_order(self, order: ByteOrder) -> None:
        self.order: ByteOrder = order
        self.u32 = Struct(order + "I")
        self.u64 = Struct(order + "Q")
        self.formats = {kind: Struct(order + code) for kind, code in CODES.items()}

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def remaining(self) -> int:
        return self._size - self.position

    def fail(self, message: str, *, offset: int | None = None) -> NoReturn:
        raise MalformedError(message, offset=self.position if offset is None else offset)

    def take(self, length: int, what: str) -> bytes:
        """Read `length` bytes; `what` names them in the message where they are missing."""
        end = self._at + length
        if end > len(self._window):
            self._fill(length, what)
            end = length
        piece = self._window[self._at : end]
        self._at = end
        return piece

    def unpack(self, format_: Struct, what: str) -> int:
        at = self._at
        if at + format_.size > len(self._window):
            self._fill(format_.size, what)
            at = 0
        self._at = at + format_.size
        value: int = format_.unpack_from(self._window, at)[0]
        return value

    def skip(self, length: int, what: str) -> None:
        if length > self.remaining:
            self.fail(f"{what} of {length} bytes runs past the end of the file")
        self._at += length
        if self._at > len(self._window):
            self._base, self._at, self._window = self.position, 0, b""

    def walk(self, count: int, what: str) -> None:
        """Count items that must be visited one by one. Raises MalformedError for too many."""
        self._walked += count
        if self._walked > MAX_WALKED_ITEMS:
            self.fail(f"{what} takes the header past {MAX_WALKED_ITEMS} strings")

    def nest(self, count: int, what: str) -> None:
        """Count arrays inside arrays. Raises MalformedError for too many."""
        self._nested += count
        if self._nested > MAX_NESTED_ARRAYS:
            self.fail(f"{what} takes the header past {MAX_NESTED_ARRAYS} arrays inside arrays")

    def text(self, length: int, what: str) -> str:
        """Read text of `length` bytes. Raises MalformedError where the header has too much."""
        self._text += length
        if self._text > MAX_TEXT_BYTES:
            self.fail(f"{what} takes the header past {MAX_TEXT_BYTES} bytes of text")
        return self.take(length, what).decode("utf-8", "surrogateescape")

    def may_decode(self, count: int) -> bool:
        """Whether an array of so many items is short enough to be decoded, with all before it."""
        if count > min(MAX_DECODED_ITEMS, MAX_DECODED_TOTAL - self._decoded):
            return False
        self._decoded += count
        return True

    def skip_strings(self, count: int, what: str) -> None:
        """Skip `count` length-prefixed strings; the inner loop is the cost of a big vocabulary."""
        start = self.position
        if (start, count) in self._known:
            self.skip(self._known[start, count], what)
            return
        unpack = self.u64.unpack_from
        while count:
            window, at = self._window, self._at
            try:
                for count in range(count, 0, -1):  # noqa: B007, B020 - what is left when it stops
                    (length,) = unpack(window, at)
                    at += 8 + length
                count = 0
            except (struct.error, OverflowError):  # the window ends, or the length is absurd
                pass
            if self._base + at > self._size:
                self.fail(f"a string of {what} runs past the end of the file", offset=start)
            self._at = at
            if at > len(window):
                self._base, self._at, self._window = self.position, 0, b""
            if count:
                self._fill(8, what)

    def _fill(self, length: int, what: str) -> None:
        """Move the window so that it begins here and has at least `length` bytes."""
        if length > self.remaining:
            self.fail(f"the file ends inside {what}: {length} bytes needed, {self.remaining} left")
        self._base = self.position
        self._stream.seek(self._base)
        wanted = min(max(length, _CHUNK), self._size - self._base)
        pieces = []
        while wanted:
            piece = self._stream.read(wanted)
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        self._window, self._at = b"".join(pieces), 0
        if len(self._window) < length:
            self.fail(f"the file became shorter while reading {what}")


def _read_preamble(cursor: Cursor) -> int:
    """Read magic and version; set the byte order, which only the version number shows."""
    if cursor.remaining == 0:
        cursor.fail("the file is empty; expected a GGUF file")
    magic = cursor.take(min(4, cursor.remaining), "the magic")
    if not MAGIC.startswith(magic):
        cursor.fail(f"not a GGUF file: begins with {magic!r}, expected {MAGIC!r}", offset=0)
    if magic != MAGIC:
        cursor.fail("the file ends inside the magic; it is truncated")
    word = cursor.take(4, "the version")
    version: int = cursor.u32.unpack(word)[0]
    if version & 0xFFFF == 0:
        cursor.use_byte_order(">")
        version = cursor.u32.unpack(word)[0]
    if version not in VERSIONS:
        hint = (
            "convert the model again with a current converter"
            if version == 1
            else "expected 2 or 3"
        )
        cursor.fail(f"GGUF version {version} is not supported; {hint}", offset=4)
    return version


def _read_count(cursor: Cursor, what: str, most: int) -> int:
    offset = cursor.position
    count = cursor.unpack(cursor.u64, f"the number of {what}")
    if count > most:
        cursor.fail(f"{count} {what} are more than the {most} this reader allows", offset=offset)
    return count


def _read_text(cursor: Cursor, what: str, most: int) -> str:
    offset = cursor.position
    length = cursor.unpack(cursor.u64, f"the length of {what}")
    if length > most:
        cursor.fail(f"{what} claims {length} bytes; at most {most} are allowed", offset=offset)
    return cursor.text(length, what)


def _read_type(cursor: Cursor, what: str) -> ValueType:
    offset = cursor.position
    number = cursor.unpack(cursor.u32, f"the type of {what}")
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"{what} has the unknown value type {number}", offset=offset)


def _read_key_value(cursor: Cursor) -> KeyValue:
    start = cursor.position
    key = _read_text(cursor, "a key", MAX_NAME_BYTES)
    what = f"key {key!r}"
    kind = _read_type(cursor, what)
    value = _read_value(cursor, kind, what)
    span = Span(offset=start, length=cursor.position - start)
    return KeyValue(key=key, type=kind, value=value, span=span)


def _read_value(cursor: Cursor, kind: ValueType, what: str) -> Value:
    if kind is ValueType.STRING:
        return _read_text(cursor, what, MAX_STRING_BYTES)
    if kind is ValueType.ARRAY:
        return _read_array(cursor, what, depth=1)
    format_ = cursor.formats[kind]
    scalar: Scalar = format_.unpack(cursor.take(format_.size, what))[0]
    return scalar


def _read_array(cursor: Cursor, what: str, *, depth: int) -> ArrayValue:
    """Read item type, count and items; `span` covers the items alone."""
    item_type = _read_type(cursor, f"the items of {what}")
    offset = cursor.position
    count = cursor.unpack(cursor.u64, f"the item count of {what}")
    # The smallest string is its length word; the smallest array has a type and a count.
    format_ = cursor.formats.get(item_type)
    smallest = format_.size if format_ else 8 if item_type is ValueType.STRING else 12
    if count * smallest > cursor.remaining:
        cursor.fail(f"{what} claims {count} items, more than the file can hold", offset=offset)
    start = cursor.position
    items: tuple[Scalar, ...] | None = None
    if format_ and cursor.may_decode(count):
        data = cursor.take(count * format_.size, what)
        items = tuple(item for (item,) in format_.iter_unpack(data))
    elif format_:
        cursor.skip(count * format_.size, what)
    elif item_type is ValueType.STRING:
        cursor.walk(count, what)
        cursor.skip_strings(count, what)
    elif depth == MAX_DEPTH:
        cursor.fail(f"{what} nests arrays deeper than {MAX_DEPTH}", offset=offset)
    else:
        cursor.nest(count, what)
        for _ in range(count):
            _read_array(cursor, what, depth=depth + 1)
    span = Span(offset=start, length=cursor.position - start)
    return ArrayValue(item_type=item_type, count=count, span=span, items=items)


def _alignment(key_values: tuple[KeyValue, ...]) -> int:
    """Return `general.alignment` as llama.cpp reads it: a UINT32 power of two, 32 where absent."""
    found = next((kv for kv in key_values if kv.key == ALIGNMENT_KEY), None)
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.type is not ValueType.UINT32 or not isinstance(value, int):
        raise MalformedError(
            f"{ALIGNMENT_KEY} is {found.type.name}, expected UINT32", offset=found.span.offset
        )
    if value <= 0 or value & (value - 1):
        raise MalformedError(
            f"{ALIGNMENT_KEY} is {value}, expected a power of two", offset=found.span.offset
        )
    return value


def _read_tensor_info(cursor: Cursor) -> TensorInfo:
    """Read one record; where its type is unknown, `length` is -1 until all offsets are known."""
    start = cursor.position
    name = _read_text(cursor, "a tensor name", MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    dimensions = cursor.unpack(cursor.u32, f"the dimensions of {what}")
    if dimensions > MAX_DIMENSIONS:
        cursor.fail(f"{what} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are allowed")
    shape = tuple(cursor.unpack(cursor.u64, f"the shape of {what}") for _ in range(dimensions))
    kind = cursor.unpack(cursor.u32, f"the type of {what}")
    offset = cursor.unpack(cursor.u64, f"the offset of {what}")
    elements = 1
    for size in shape:
        elements *= max(size, 1)
    if elements > _MAX_ELEMENTS:
        cursor.fail(f"{what} has the absurd shape {shape}", offset=start)
    try:
        length = ggml.data_length(kind, shape)
    except ValueError as error:
        cursor.fail(f"{what}: {error}", offset=start)
    return TensorInfo(
        name=name,
        shape=shape,
        type=kind,
        offset=offset,
        length=-1 if length is None else length,
        span=Span(offset=start, length=cursor.position - start),
    )


def _with_lengths(
    records: list[TensorInfo], data_offset: int, file_size: int
) -> tuple[TensorInfo, ...]:
    """Give unknown types the bytes up to the next tensor, and check that all data is there."""
    available = max(file_size - data_offset, 0)
    starts = sorted({record.offset for record in records} | {available})
    following = dict(pairwise(starts))
    tensors = []
    for record in records:
        if record.length < 0:
            end = following.get(record.offset, available)
            record = replace(record, length=max(end - record.offset, 0))
        if record.offset + record.length > available:
            raise MalformedError(
                f"the data of tensor {record.name!r} ends at byte "
                f"{data_offset + record.offset + record.length}, the file at {file_size}: "
                "it is truncated, fetch it again",
                offset=record.span.offset,
            )
        tensors.append(record)
    return tuple(tensors)


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
