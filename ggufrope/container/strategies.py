"""Ways to store a `Rewrite`: each strategy as an `Option` with its cost, or as a `Rejection`.

From cheapest to dearest: overwrite bytes of the same length, use reserved header space, insert
blocks so that the file grows from within, share blocks with a new file, copy everything. Pure
arithmetic but for what the file layer says about block sizes and refusals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from ggufrope.container.newfile import cloned_bytes
from ggufrope.container.pieces import (
    PADDING_RECORD_BYTES,
    Composition,
    Insertion,
    Lost,
    Rewrite,
    compose,
    copied,
    fitting,
    header_end,
    inverse,
    piece_length,
    place_pieces,
)
from ggufrope.container.reader import aligned
from ggufrope.container.types import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ggufrope.container.filesystem import FileLayer
    from ggufrope.container.pieces import Kept


CARRY_LIMIT = 16 << 20
"""Bytes that an edit in place may write, or a journal hold: both are kept in memory."""


class Strategy(str, Enum):
    """How an edit is stored, cheapest first."""

    OVERWRITE = "overwrite"
    RESERVE = "reserve"
    GROW = "grow"
    CLONE = "clone"
    STREAM = "stream"


IN_PLACE = (Strategy.OVERWRITE, Strategy.RESERVE, Strategy.GROW)
"""The strategies that write into the file itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A strategy that does not apply, and why."""

    strategy: Strategy
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A strategy that applies, and what it costs.

    `composition` is the resulting file, `bytes_written` what is written of it. `bytes_lost` counts
    the bytes of the old file that the new one lacks, which an undo record must hold.
    """

    strategy: Strategy
    composition: Composition
    insertion: Insertion | None
    bytes_written: int
    bytes_lost: int


def options_in_place(
    rewrite: Rewrite, files: FileLayer, path: Path
) -> Iterator[Option | Rejection]:
    """Yield the strategies that write into the file itself."""
    within = _best(_without_insertion(rewrite))
    if within is None:
        short = header_end(rewrite) + (rewrite.reserve or 0) - rewrite.source.data_offset
        reason = f"the header needs {short} more bytes" if short > 0 else "no layout fits"
        yield Rejection(strategy=Strategy.OVERWRITE, reason=reason)
        present = rewrite.present_padding
        reserved = "no space is reserved" if present is None else f"{present} bytes are reserved"
        yield Rejection(strategy=Strategy.RESERVE, reason=f"{reserved}, and {reason}")
    else:
        yield _limited(within)
    refusal = files.insert_refusal(path)
    if refusal is not None:
        yield Rejection(strategy=Strategy.GROW, reason=refusal)
        return
    grown = _best(_with_insertion(rewrite, files.block_size(path)))
    if grown is None:
        yield Rejection(strategy=Strategy.GROW, reason="no whole blocks can be inserted")
    else:
        yield _limited(grown)


def options_new_file(
    rewrite: Rewrite, files: FileLayer, path: Path
) -> Iterator[Option | Rejection]:
    """Yield the strategies that write a new file next to `path`."""
    refusal = files.clone_refusal(path)
    if refusal is not None:
        yield Rejection(strategy=Strategy.CLONE, reason=refusal)
    elif files.clones_whole_files:
        yield _clone_whole(rewrite)
    else:
        yield _clone(rewrite, files.block_size(path))
    composition = _streamed(rewrite)
    yield Option(
        strategy=Strategy.STREAM,
        composition=composition,
        insertion=None,
        bytes_written=composition.size,
        bytes_lost=_lost(copied(composition.pieces), rewrite),
    )


def _without_insertion(rewrite: Rewrite) -> Iterator[Option]:
    for start in _starts(rewrite):
        composition = fitting(rewrite, start)
        if composition is not None:
            same = composition.padding == rewrite.present_padding
            strategy = Strategy.OVERWRITE if same else Strategy.RESERVE
            yield _option(strategy, rewrite, composition, None)


def _with_insertion(rewrite: Rewrite, block: int) -> Iterator[Option]:
    unit = max(block, rewrite.alignment)
    for start in _starts(rewrite):
        least = max(aligned(header_end(rewrite) - start, unit), unit)
        most = least + aligned(PADDING_RECORD_BYTES + (rewrite.reserve or 0), unit)
        fits = (fitting(rewrite, start + room) for room in range(least, most + 1, unit))
        composition = next((found for found in fits if found is not None), None)
        if composition is None:
            continue
        room = composition.data_offset - start
        # Shrinking and inserting at once would make sizes ambiguous to a recovery.
        if composition.size < rewrite.source.file_size + room:
            continue
        for offset in _insertion_points(rewrite, composition, start, block):
            insertion = Insertion(offset=offset, length=room)
            yield _option(Strategy.GROW, rewrite, composition, insertion)


def _insertion_points(
    rewrite: Rewrite, composition: Composition, start: int, block: int
) -> Iterable[int]:
    """Return the block boundaries worth trying for an insertion.

    They are next to where bytes of the header begin to move, and where they move by what was
    inserted: behind the padding, at the tensor infos, at the data.
    """
    source = rewrite.source
    places = {start}
    if rewrite.padding is not None:
        places |= {rewrite.padding.span.offset, rewrite.padding.span.end}
    if source.tensors:
        places.add(source.tensors[0].span.offset)
    _, patches = place_pieces(composition.pieces, None)
    moved = (patch.offset for patch in patches if isinstance(patch.piece, Span))
    places.add(next(moved, start))
    points = {place // block * block for place in places}
    points |= {point + block for point in points}
    return sorted(point for point in points if point <= start and point < source.file_size)


def _starts(rewrite: Rewrite) -> Iterable[int]:
    """Return data offsets that leave tensor data of the old file in place, most bytes first."""
    stays = {rewrite.source.data_offset: 0}
    offset = 0
    for piece in rewrite.data:
        if isinstance(piece, Span):
            start = piece.offset - offset
            stays[start] = stays.get(start, 0) + piece.length
        offset += piece_length(piece)
    ranked = sorted(stays, key=lambda start: -stays[start])
    return [start for start in ranked[:4] if start > 0 and start % rewrite.alignment == 0]


def _clone(rewrite: Rewrite, block: int) -> Option | Rejection:
    unit = max(block, rewrite.alignment)
    best: Option | None = None
    for start in _starts(rewrite):
        least = start % unit
        least += aligned(max(header_end(rewrite) - least, 0), unit)
        most = least + aligned(PADDING_RECORD_BYTES + (rewrite.reserve or 0), unit)
        fits = (fitting(rewrite, at) for at in (start, *range(least, most + 1, unit)))
        composition = next((found for found in fits if found is not None), None)
        if composition is None:
            continue
        option = Option(
            strategy=Strategy.CLONE,
            composition=composition,
            insertion=None,
            bytes_written=composition.size - cloned_bytes(composition, block),
            bytes_lost=_lost(copied(composition.pieces), rewrite),
        )
        if best is None or option.bytes_written < best.bytes_written:
            best = option
    if best is None or best.bytes_written > best.composition.size // 2:
        return Rejection(strategy=Strategy.CLONE, reason="too few blocks of the two files line up")
    return best


def _clone_whole(rewrite: Rewrite) -> Option | Rejection:
    """Return the option of cloning the whole file: what does not move stays shared."""
    best = _best(_without_insertion(rewrite))
    if best is None or best.bytes_written > best.composition.size // 2:
        return Rejection(strategy=Strategy.CLONE, reason="the tensor data would have to move")
    lost = _lost(copied(best.composition.pieces), rewrite)
    return replace(best, strategy=Strategy.CLONE, bytes_lost=lost)


def _streamed(rewrite: Rewrite) -> Composition:
    """Return the copy: data where it was if the reserved space allows, else behind the header."""
    if rewrite.reserve is None and rewrite.padding is not None:
        kept = fitting(rewrite, rewrite.source.data_offset)
        return kept or compose(rewrite, padding=rewrite.present_padding)
    return compose(rewrite, padding=rewrite.reserve or None)


def _option(
    strategy: Strategy, rewrite: Rewrite, composition: Composition, insertion: Insertion | None
) -> Option:
    kept, patches = place_pieces(composition.pieces, insertion)
    return Option(
        strategy=strategy,
        composition=composition,
        insertion=insertion,
        bytes_written=sum(piece_length(patch.piece) for patch in patches),
        bytes_lost=_lost(kept, rewrite),
    )


def _lost(kept: Iterable[Kept], rewrite: Rewrite) -> int:
    parts = inverse(kept, rewrite.source.file_size)
    return sum(part.source.length for part in parts if isinstance(part, Lost))


def _best(options: Iterable[Option]) -> Option | None:
    return min(options, key=lambda option: option.bytes_written, default=None)


def _limited(option: Option) -> Option | Rejection:
    most = min(CARRY_LIMIT, max(option.composition.size // 2, option.composition.data_offset))
    if max(option.bytes_written, option.bytes_lost) > most:
        reason = f"{option.bytes_written} bytes would have to move inside the file"
        return Rejection(strategy=option.strategy, reason=reason)
    return option
