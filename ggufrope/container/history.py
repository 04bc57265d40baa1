"""The undo records of a model: numbered, found again after a rename, and bounded.

Every edit in place leaves a record in each file that it changed. Of one file at most `KEPT_RECORDS`
are kept, and `KEPT_BYTES` in all: beyond that the two oldest become one, which undoes both edits at
once, so that the original can always be reached. Only where that is not possible (a split model's
edits, or too many bytes to hold) the oldest is removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope._files import storage
from ggufrope.container.beside import (
    journal_path,
    orphans,
    stem_of,
    undo_path,
    undo_records,
)
from ggufrope.container.journal import read_record, write_record
from ggufrope.container.pieces import merged, piece_length
from ggufrope.container.restore import is_new, is_ours
from ggufrope.container.strategies import CARRY_LIMIT
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from ggufrope.container.beside import HiddenFile
    from ggufrope.container.filesystem import FileLayer
    from ggufrope.container.pieces import Piece
    from ggufrope.container.record import Record


KEPT_RECORDS = 32
KEPT_BYTES = 64 << 20
LAST_NUMBER = 999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoStep:
    """One edit that can be undone: its number, and the files that have a record of it."""

    number: int
    paths: tuple[Path, ...]


def undo_steps(paths: Iterable[Path]) -> tuple[UndoStep, ...]:
    """Return the edits of a model's files that are on record, oldest first."""
    found: dict[int, list[Path]] = {}
    for path in paths:
        for record in undo_records(path):
            found.setdefault(record.number, []).append(path)
    return tuple(UndoStep(number=n, paths=tuple(found[n])) for n in sorted(found))


def next_number(paths: Iterable[Path]) -> int:
    """Return the number of the next edit of a model's files.

    Raises StorageError where the last number is taken: somebody else put a file of that name there.
    """
    steps = undo_steps(paths)
    if steps and steps[-1].number >= LAST_NUMBER:
        last = undo_path(steps[-1].paths[0], steps[-1].number)
        raise StorageError(f"{last} has the last number of all undo records; remove it")
    return steps[-1].number + 1 if steps else 1


def adopt(files: FileLayer, file: BinaryIO, path: Path) -> bool:
    """Give records of the open file that were made under another name of the folder its name now.

    They are recognized by size and content, and only where no file has that other name any more.
    Return whether any were. Raises StorageError.
    """
    found = [one for one in orphans(path.parent) if one.stem != stem_of(path.name)]
    for stem in sorted({one.stem for one in found}):
        mine = [one for one in found if one.stem == stem]
        if _fits(files, file, path, mine):
            _rename(files, path, mine)
            return True
    return False


def _fits(files: FileLayer, file: BinaryIO, path: Path, mine: Sequence[HiddenFile]) -> bool:
    """Return whether the newest of some records is that of the open file."""
    newest = max(mine, key=_age)
    own = undo_records(path)
    if own and newest.kind == "undo" and own[-1].number >= newest.number:
        return False
    try:
        record = read_record(files, newest.path, path)
        if newest.kind == "journal":
            return is_ours(files, file, record) and record.kind == "patched"
        return is_new(files, file, record)
    except StorageError:
        return False


def _age(one: HiddenFile) -> tuple[bool, int]:
    """A journal is newer than every undo record."""
    return one.kind == "journal", one.number


def _rename(files: FileLayer, path: Path, mine: Sequence[HiddenFile]) -> None:
    """Rename records for `path`, the newest last: until then, they are found as before."""
    with storage("rename the undo records of", path):
        for one in sorted(mine, key=_age):
            target = (
                journal_path(path)
                if one.kind == "journal"
                else undo_path(path, one.number, one.first)
            )
            if not target.exists():
                files.replace(one.path, target)
        files.sync_directory(path.parent)


def forget(files: FileLayer, path: Path) -> None:
    """Remove all undo records of a file, which was changed in a way that cannot be undone."""
    for one in undo_records(path):
        files.remove(one.path)


def bound(files: FileLayer, path: Path) -> None:
    """Keep the undo records of a file within their bounds. Raises StorageError."""
    with storage("merge the undo records of", path):
        while True:
            records = undo_records(path)
            size = sum(one.path.lstat().st_size for one in records)
            if len(records) <= 1 or (len(records) <= KEPT_RECORDS and size <= KEPT_BYTES):
                return
            oldest, next_ = records[:2]
            both = combined(
                read_record(files, oldest.path, path), read_record(files, next_.path, path)
            )
            if both is not None:
                write_record(files, path, undo_path(path, both.number, both.first), both)
                files.remove(next_.path)
            files.remove(oldest.path)


def combined(older: Record, newer: Record) -> Record | None:
    """Return one record of two edits that followed each other, None where there can be none."""
    held = 0
    if older.group or newer.group or older.new_size != newer.old_size:
        return None
    pieces = merged(_through(older.pieces, newer.pieces))
    held = sum(len(piece) for piece in pieces if isinstance(piece, bytes))
    if held > CARRY_LIMIT:
        return None
    return replace(
        newer,
        kind="replaced",
        old_size=older.old_size,
        old_mtime_ns=older.old_mtime_ns,
        insertion=None,
        pieces=pieces,
        old_checksum=older.old_checksum,
        first=older.first,
    )


def _through(pieces: Iterable[Piece], newer: Sequence[Piece]) -> Iterator[Piece]:
    """Yield `pieces` with each span of the file in between as pieces of the newest file."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        offset = 0
        for part in newer:
            end = offset + piece_length(part)
            start, stop = max(piece.offset, offset), min(piece.end, end)
            if start < stop:
                if isinstance(part, bytes):
                    yield part[start - offset : stop - offset]
                else:
                    yield Span(offset=part.offset + start - offset, length=stop - start)
            offset = end
