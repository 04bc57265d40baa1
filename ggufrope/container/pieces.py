"""A file as a sequence of pieces: new bytes, and spans of the old file.

A `Rewrite` fixes what the new file says, record by record; where its tensor data starts is left
open, because that decides how cheaply it can be stored. `compose` fixes that too. The records
themselves are encoded here, in either byte order.

`place_pieces` compares a composition with the old file: what is already in its place, and what to
write. Room for a longer header can come from an insertion: whole file-system blocks put in at a
block boundary, behind which every byte moves up without being copied. Offsets of the old file at or
behind the insertion are then higher by its length in the new one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.container.reader import CODES, MAX_NAME_BYTES, MAX_STRING_BYTES, aligned
from ggufrope.container.types import (
    PADDING_KEY,
    ArrayValue,
    Header,
    KeyValue,
    Span,
    TypedValue,
    ValueType,
)
from ggufrope.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ggufrope.container.types import ByteOrder, Scalar


Piece: TypeAlias = "bytes | Span"
"""A part of the new file: these bytes, or this span of the old one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What the new file contains: every tensor offset is known, the start of the data is not.

    `padding` is the record of reserved space in the old file, None where it has none. `reserve` is
    how many bytes the new file must have reserved, None where any number will do.
    """

    source: Header
    keys: tuple[str, ...]
    tensor_names: tuple[str, ...]
    alignment: int
    key_values: tuple[Piece, ...]
    padding_index: int
    padding: KeyValue | None
    reserve: int | None
    tensor_infos: tuple[Piece, ...]
    data: tuple[Piece, ...]

    @property
    def present_padding(self) -> int | None:
        """Zeros reserved in the old file, or None."""
        value = None if self.padding is None else self.padding.value
        return value.count if isinstance(value, ArrayValue) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The new file in full: its pieces in order, and where the tensor data starts."""

    pieces: tuple[Piece, ...]
    data_offset: int
    size: int
    padding: int | None


def encode_key_value(key: str, value: TypedValue, order: ByteOrder) -> bytes:
    """Return one metadata record. Raises RequestError where the value does not fit its type."""
    name = _encode_text(key, order)
    if not 8 < len(name) <= 8 + MAX_NAME_BYTES:
        raise RequestError(f"key {key[:80]!r} must have 1 to {MAX_NAME_BYTES} bytes")
    try:
        return name + struct.pack(order + "I", value.type) + _encode_value(value, order)
    except (struct.error, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        wanted = value.type if value.item_type is None else value.item_type
        raise RequestError(f"{key} = {value.value!r:.80} does not fit {wanted.name}") from error


def encode_tensor_info(
    name: str, shape: Sequence[int], type_: int, offset: int, order: ByteOrder
) -> bytes:
    """Return one tensor info record; `offset` is relative to the tensor data."""
    dimensions = len(shape)
    format_ = f"{order}I{dimensions}QIQ"
    return _encode_text(name, order) + struct.pack(format_, dimensions, *shape, type_, offset)


def encode_padding(count: int, order: ByteOrder) -> bytes:
    """Return the padding key-value with `count` zeros."""
    head = struct.pack(order + "IIQ", ValueType.ARRAY, ValueType.UINT8, count)
    return _encode_text(PADDING_KEY, order) + head + bytes(count)


PADDING_RECORD_BYTES = 8 + len(PADDING_KEY) + 4 + 4 + 8
"""Bytes of the padding key-value without its zeros."""


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


def compose(
    rewrite: Rewrite, *, padding: int | None = None, data_offset: int | None = None
) -> Composition:
    """Return the new file with `padding` zeros reserved (None: no padding key-value).

    Without `data_offset` the data follows the header as closely as the alignment permits. Raises
    ValueError where the data cannot start there.
    """
    source = rewrite.source
    keys = len(rewrite.key_values) + (padding is not None)
    pieces: list[Piece] = [
        Span(offset=0, length=8),
        _count(source, 8, len(source.tensors), len(rewrite.tensor_names)),
        _count(source, 16, len(source.key_values), keys),
        *rewrite.key_values[: rewrite.padding_index],
    ]
    if rewrite.padding is not None and padding == rewrite.present_padding:
        pieces.append(rewrite.padding.span)
    elif padding is not None:
        pieces.append(encode_padding(padding, source.byte_order))
    pieces += rewrite.key_values[rewrite.padding_index :]
    pieces += rewrite.tensor_infos
    end = sum(map(piece_length, pieces))
    start = aligned(end, rewrite.alignment) if data_offset is None else data_offset
    if start < end or start % rewrite.alignment:
        raise ValueError(f"tensor data cannot start at {start}: the header ends at {end}")
    if rewrite.data or source.file_size >= source.data_offset:
        pieces.append(_gap(source, start - end))
    else:  # A file without tensor data may end within the padding; the new one does too.
        rest = min(source.file_size - _end(source), start - end)
        pieces.append(Span(offset=_end(source), length=rest))
    pieces += rewrite.data
    return Composition(
        pieces=merged(pieces),
        data_offset=start,
        size=sum(map(piece_length, pieces)),
        padding=padding,
    )


def header_end(rewrite: Rewrite) -> int:
    """Return where the tensor infos end when no space is reserved."""
    return 24 + sum(map(piece_length, (*rewrite.key_values, *rewrite.tensor_infos)))


def fitting(rewrite: Rewrite, data_offset: int) -> Composition | None:
    """Return the new file with its data at `data_offset`, the space between reserved.

    None where that cannot be: the header is too long, the gap is too small for a padding key-value,
    or less than the wanted reserve remains.
    """
    gap = data_offset - header_end(rewrite)
    if data_offset % rewrite.alignment or gap < 0:
        return None
    if gap < rewrite.alignment:
        padding = None
    elif gap >= PADDING_RECORD_BYTES:
        padding = gap - PADDING_RECORD_BYTES
    else:
        return None
    if (padding or 0) < (rewrite.reserve or 0):
        return None
    return compose(rewrite, padding=padding, data_offset=data_offset)


def piece_length(piece: Piece) -> int:
    """Return the bytes that a piece takes."""
    return piece.length if isinstance(piece, Span) else len(piece)


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return the same bytes in as few pieces as possible."""
    joined: list[Piece | list[bytes]] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if not piece_length(piece):
            continue
        if isinstance(piece, bytes):
            if isinstance(last, list):
                last.append(piece)
            else:
                joined.append([piece])
        elif isinstance(last, Span) and last.end == piece.offset:
            joined[-1] = Span(offset=last.offset, length=last.length + piece.length)
        else:
            joined.append(piece)
    return tuple(b"".join(piece) if isinstance(piece, list) else piece for piece in joined)


def _gap(source: Header, length: int) -> Piece:
    """Return the padding in front of the data: that of the old file where it is long enough."""
    if length <= source.data_offset - _end(source) and source.file_size >= source.data_offset:
        return Span(offset=source.data_offset - length, length=length)
    return bytes(length)


def _end(source: Header) -> int:
    """Return where the records of the old header end."""
    records = source.tensors or source.key_values
    return records[-1].span.end if records else 24


def _count(source: Header, offset: int, old: int, new: int) -> Piece:
    if old == new:
        return Span(offset=offset, length=8)
    return struct.pack(source.byte_order + "Q", new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """`length` bytes of room made at `offset`, both multiples of the block size."""

    offset: int
    length: int

    def after(self, offset: int) -> int:
        """Return where the byte at `offset` of the old file is in the new one."""
        return offset + self.length if offset >= self.offset else offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A piece to write at `offset` of the new file."""

    offset: int
    piece: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A span of the old file whose bytes are found at `offset` of the new one."""

    source: Span
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A span of the old file that is nowhere in the new one."""

    source: Span


def place_pieces(
    pieces: Iterable[Piece], insertion: Insertion | None
) -> tuple[tuple[Kept, ...], tuple[Patch, ...]]:
    """Return the pieces of the new file that are already in their place, and those to write."""
    kept: list[Kept] = []
    patches: list[Patch] = []
    offset = 0
    for piece in pieces:
        for part in _split(piece, insertion):
            if isinstance(part, Span) and offset == _after(part.offset, insertion):
                kept.append(Kept(source=part, offset=offset))
            else:
                patches.append(Patch(offset=offset, piece=part))
            offset += piece_length(part)
    return tuple(kept), tuple(patches)


def copied(pieces: Iterable[Piece]) -> tuple[Kept, ...]:
    """Return where a new file written from `pieces` has the bytes of the old one."""
    kept = []
    offset = 0
    for piece in pieces:
        if isinstance(piece, Span):
            kept.append(Kept(source=piece, offset=offset))
        offset += piece_length(piece)
    return tuple(kept)


def inverse(kept: Iterable[Kept], old_size: int) -> Iterator[Span | Lost]:
    """Yield the old file, in order, as spans of the new file and spans that are lost."""
    end = 0
    for part in sorted(kept, key=lambda part: part.source.offset):
        source = part.source
        if source.offset > end:
            yield Lost(source=Span(offset=end, length=source.offset - end))
        start = max(source.offset, end)
        if start < source.end:
            offset = part.offset + start - source.offset
            yield Span(offset=offset, length=source.end - start)
            end = source.end
    if end < old_size:
        yield Lost(source=Span(offset=end, length=old_size - end))


def _after(offset: int, insertion: Insertion | None) -> int:
    return offset if insertion is None else insertion.after(offset)


def _split(piece: Piece, insertion: Insertion | None) -> Iterator[Piece]:
    if isinstance(piece, Span) and insertion and piece.offset < insertion.offset < piece.end:
        head = insertion.offset - piece.offset
        yield Span(offset=piece.offset, length=head)
        yield Span(offset=insertion.offset, length=piece.length - head)
    else:
        yield piece
