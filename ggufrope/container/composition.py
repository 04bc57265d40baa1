"""The new file as a sequence of pieces: bytes, and spans of the old file.

A `Rewrite` fixes what the new file says; where its tensor data starts is left open, because that
decides how cheaply it can be stored. `compose` closes the question.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.container.encode import PADDING_RECORD_BYTES, encode_padding
from ggufrope.container.reader import aligned
from ggufrope.container.types import ArrayValue, Header, KeyValue, Span

if TYPE_CHECKING:
    from collections.abc import Iterable


Piece: TypeAlias = "bytes | Span"
"""A stretch of the new file: these bytes, or this span of the old one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What the new file contains; every tensor offset is settled, the start of data is not.

    `padding` is the reserved space that stands in the old file, None where it has none, and
    `reserve` what the caller wants to be left afterwards, None for no opinion.
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
    def standing_padding(self) -> int | None:
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


def compose(
    rewrite: Rewrite, *, padding: int | None = None, data_offset: int | None = None
) -> Composition:
    """The new file with `padding` zeros reserved (None: no padding key-value).

    Without `data_offset` the data follows the header as closely as the alignment permits.
    """
    source = rewrite.source
    keys = len(rewrite.key_values) + (padding is not None)
    pieces: list[Piece] = [
        Span(offset=0, length=8),
        _count(source, 8, len(source.tensors), len(rewrite.tensor_names)),
        _count(source, 16, len(source.key_values), keys),
        *rewrite.key_values[: rewrite.padding_index],
    ]
    if rewrite.padding is not None and padding == rewrite.standing_padding:
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
    else:  # A file without tensor data may end anywhere in the padding, and goes on to do so.
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
    """Where the tensor infos end when no space is reserved."""
    return 24 + sum(map(piece_length, (*rewrite.key_values, *rewrite.tensor_infos)))


def fitting(rewrite: Rewrite, data_offset: int) -> Composition | None:
    """The new file with its data at `data_offset`, the space between reserved; None if that
    cannot be: the header is too long, the gap too small for a padding key-value, or less than
    the wanted reserve remains."""
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
    return piece.length if isinstance(piece, Span) else len(piece)


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same bytes in as few pieces as possible."""
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
    """The padding in front of the data: that of the old file as far as it reaches."""
    if length <= source.data_offset - _end(source) and source.file_size >= source.data_offset:
        return Span(offset=source.data_offset - length, length=length)
    return bytes(length)


def _end(source: Header) -> int:
    """Where the records of the old header end."""
    records = source.tensors or source.key_values
    return records[-1].span.end if records else 24


def _count(source: Header, offset: int, old: int, new: int) -> Piece:
    if old == new:
        return Span(offset=offset, length=8)
    return struct.pack(source.byte_order + "Q", new)
