"""What an edit in place leaves where it is, what it writes over, and what that destroys.

Room for a longer header comes from an insertion: whole file-system blocks pushed in at a block
boundary, behind which every byte moves up without being copied. Offsets of the old file at or
behind the insertion are therefore read as higher by its length in the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container.composition import Piece, piece_length
from ggufrope.container.types import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """`length` bytes of room made at `offset`, both multiples of the block size."""

    offset: int
    length: int

    def after(self, offset: int) -> int:
        """Where the byte at `offset` of the old file stands in the new one."""
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


def settle(
    pieces: Iterable[Piece], insertion: Insertion | None
) -> tuple[tuple[Kept, ...], tuple[Patch, ...]]:
    """The pieces of the new file that already stand in their place, and those to write."""
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
    """Where a new file that was written from `pieces` has the bytes of the old one."""
    kept = []
    offset = 0
    for piece in pieces:
        if isinstance(piece, Span):
            kept.append(Kept(source=piece, offset=offset))
        offset += piece_length(piece)
    return tuple(kept)


def inverse(kept: Iterable[Kept], old_size: int) -> Iterator[Span | Lost]:
    """The old file, in order, as spans of the new file and spans that are lost."""
    end = 0
    for keeping in sorted(kept, key=lambda keeping: keeping.source.offset):
        source = keeping.source
        if source.offset > end:
            yield Lost(source=Span(offset=end, length=source.offset - end))
        start = max(source.offset, end)
        if start < source.end:
            offset = keeping.offset + start - source.offset
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
