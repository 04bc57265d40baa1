"""The undo records of a model: numbered, found again after a rename, and bounded.

Every edit in place leaves a record in each file that it changed. Of one model those of at most
`KEPT_RECORDS` edits are kept, and `KEPT_BYTES` in all: beyond that the records of the two oldest
become those of one edit, which undoes both at once, so that the original can be reached. Only where
that would hold too many bytes the oldest are removed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope._files import storage
from ggufrope.container.beside import (
    journal_path,
    merged_records,
    orphans,
    stem_of,
    undo_path,
    undo_records,
)
from ggufrope.container.filesystem import lock
from ggufrope.container.journal import read_record, write_record
from ggufrope.container.pieces import merged, piece_length
from ggufrope.container.record import Group
from ggufrope.container.restore import is_new, is_ours
from ggufrope.container.strategies import CARRY_LIMIT
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    """One edit that can be undone, or several that are undone at once, from `first` to `number`.

    `paths` are the files that have a record of it.
    """

    number: int
    first: int
    paths: tuple[Path, ...]

    @property
    def edits(self) -> int:
        """How many edits it undoes."""
        return self.number - self.first + 1

    def record(self, path: Path) -> Path:
        """Return the name of its record of the file at `path`."""
        return undo_path(path, self.number, self.first)


def undo_steps(paths: Iterable[Path]) -> tuple[UndoStep, ...]:
    """Return the edits of a model's files that are on record, oldest first."""
    found: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        for record in undo_records(path):
            found.setdefault((record.number, record.first), []).append(path)
    return tuple(
        UndoStep(number=number, first=first, paths=tuple(found[number, first]))
        for number, first in sorted(found)
    )


def next_number(paths: Iterable[Path]) -> int:
    """Return the number of the next edit of a model's files.

    Raises StorageError where the last number is taken: somebody else put a file of that name there.
    """
    steps = undo_steps(paths)
    if steps and steps[-1].number >= LAST_NUMBER:
        last = undo_path(steps[-1].paths[0], steps[-1].number)
        raise StorageError(f"{last} has the last number of all undo records; remove it")
    return steps[-1].number + 1 if steps else 1


def adopt(files: FileLayer, file: BinaryIO, path: Path, *, copies: bool = True) -> bool:
    """Give records of the open file that were made under another name of the folder its name now.

    They are recognized by size and content, and only where no file has that other name any more.
    The file that was edited is known by its inode; another one of the same content takes its
    records only with `copies`, and while that file is not in the folder. Return whether any were
    found. Raises StorageError.
    """
    found = [one for one in orphans(path.parent) if one.stem != stem_of(path.name)]
    for stem in sorted({one.stem for one in found}):
        mine = [one for one in found if one.stem == stem]
        if _fits(files, file, path, mine, copies=copies):
            _rename(files, path, mine)
            return True
    return False


def _fits(
    files: FileLayer, file: BinaryIO, path: Path, mine: Sequence[HiddenFile], *, copies: bool
) -> bool:
    """Return whether the newest of some records is that of the open file."""
    newest = max(mine, key=_age)
    own = undo_records(path)
    if own and newest.kind == "undo" and own[-1].number >= newest.number:
        return False
    try:
        record = read_record(files, newest.path, path)
        if newest.kind == "journal":
            fits = is_ours(files, file, record) and record.kind == "patched"
        else:
            fits = is_new(files, file, record)
        inode = os.fstat(file.fileno()).st_ino
        if not fits or not record.inodes or inode in record.inodes:
            return fits
        return copies and not _has_inode(path.parent, record.inodes)
    except StorageError:
        return False


def _has_inode(folder: Path, inodes: Collection[int]) -> bool:
    """Return whether a file of the folder has one of these inodes."""
    with storage("read", folder), os.scandir(folder) as found:
        return any(one.stat(follow_symlinks=False).st_ino in inodes for one in found)


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


def set_aside_stale(files: FileLayer, paths: Sequence[Path]) -> None:
    """Rename the undo records of a model whose newest edit did not leave what is there now.

    Another file came under that name: none of them leads back from it. No file has the name that
    they get, so that `adopt` finds them for the one that was edited, if it is still there. A record
    that cannot be read is left for `undo` to name. Raises StorageError.
    """
    steps = undo_steps(paths)
    if not steps or all(_has_left(files, steps[-1], path) for path in steps[-1].paths):
        return
    for path in paths:
        name = path.with_name(f"{path.name}~{os.urandom(4).hex()}")
        _rename(files, name, undo_records(path))


def _has_left(files: FileLayer, step: UndoStep, path: Path) -> bool:
    """Return whether a file is what an edit left, also where that cannot be known."""
    try:
        record = read_record(files, step.record(path), path)
        with storage("read", path), files.open(path, "rb") as file:
            return is_new(files, file, record)
    except StorageError:
        return True


def forget(files: FileLayer, paths: Iterable[Path]) -> None:
    """Remove all undo records of a model, which was changed in a way that cannot be undone."""
    for step in undo_steps(paths):
        _remove(files, step)


def bound(files: FileLayer, paths: Sequence[Path]) -> None:
    """Keep the undo records of a model's files within their bounds. Raises StorageError.

    All records of two edits are written as those of one before any of the old ones is removed, so
    that `settle` can finish or drop what is interrupted.
    """
    if not _are_too_many(paths):
        settle(files, paths)
        return
    with storage("merge the undo records of", paths[-1]), ExitStack() as stack:
        _lock(files, paths, stack)
        _settle(files, paths)
        while _are_too_many(paths):
            steps = undo_steps(paths)[:2]
            both = combined(*(_records(files, step) for step in steps))
            for path, record in both.items():
                write_record(files, path, undo_path(path, record.number, record.first), record)
            for step in steps if both else steps[:1]:
                _remove(files, step)


def _are_too_many(paths: Sequence[Path]) -> bool:
    count = len(undo_steps(paths))
    sizes = (one.path.lstat().st_size for path in paths for one in undo_records(path))
    return count > 1 and (count > KEPT_RECORDS or sum(sizes) > KEPT_BYTES)


def _records(files: FileLayer, step: UndoStep) -> dict[Path, Record]:
    return {path: read_record(files, step.record(path), path) for path in step.paths}


def _remove(files: FileLayer, step: UndoStep) -> None:
    for path in step.paths:
        files.remove(step.record(path))


def settle(files: FileLayer, paths: Sequence[Path]) -> bool:
    """Finish a merge that was interrupted, or drop it; return whether anything was removed.

    It is finished where every file that has a record of one of its edits has the merged one too.
    Nothing is removed on account of a record that cannot be used. Raises StorageError.
    """
    if not any(merged_records(path) for path in paths):
        return False
    with storage("merge the undo records of", paths[-1]), ExitStack() as stack:
        _lock(files, paths, stack)
        return _settle(files, paths)


def _lock(files: FileLayer, paths: Sequence[Path], stack: ExitStack) -> None:
    """Lock the files that have records: nobody else edits them or merges their records."""
    for path in (path for path in paths if undo_records(path)):
        lock(stack.enter_context(files.open(path, "rb")), path, files=files)


def _settle(files: FileLayer, paths: Sequence[Path]) -> bool:
    settled = False
    for path in paths:
        for joint, covered in merged_records(path):
            record = read_record(files, joint.path, path)
            if (record.number, record.first) != (joint.number, joint.first):
                raise StorageError(f"{joint.path} is the record of another edit; remove it")
            whole = all(_has_merged(other, joint) for other in paths if other != path)
            for one in covered if whole else (joint,):
                files.remove(one.path)
                settled = True
    return settled


def _has_merged(path: Path, merged: HiddenFile) -> bool:
    """Return whether a file's own records of the edits of `merged` are merged as well, if any."""
    found = {(one.first, one.number) for one in undo_records(path)}
    mine = {(first, n) for first, n in found if merged.first <= first and n <= merged.number}
    return mine <= {(merged.first, merged.number)}


def combined(older: Mapping[Path, Record], newer: Mapping[Path, Record]) -> dict[Path, Record]:
    """Return the records of two edits that followed each other, by file, as those of one edit.

    Empty where there can be none: too many bytes would have to be held.
    """
    paths = dict.fromkeys((*newer, *older))
    first = next(iter(older.values())).first
    number = next(iter(newer.values())).number
    leader = next((path for path in paths if _leads(newer.get(path))), next(iter(paths)))
    id_ = os.urandom(8).hex()
    found = {}
    for path in paths:
        record = _joined(older.get(path), newer.get(path))
        if record is None:
            return {}
        group = Group(id=id_, size=len(paths), leader=path == leader) if len(paths) > 1 else None
        found[path] = replace(record, number=number, first=first, group=group)
    return found


def _leads(record: Record | None) -> bool:
    return record is not None and record.group is not None and record.group.leader


def _joined(older: Record | None, newer: Record | None) -> Record | None:
    """Return the way back through two edits of one file, either of which may have left it alone."""
    if older is None or newer is None:
        return older or newer
    if older.new_size != newer.old_size:
        return None
    pieces = merged(_through(older.pieces, newer.pieces))
    if sum(len(piece) for piece in pieces if isinstance(piece, bytes)) > CARRY_LIMIT:
        return None
    return replace(
        newer,
        kind="replaced",
        old_size=older.old_size,
        old_mtime_ns=older.old_mtime_ns,
        insertion=None,
        pieces=pieces,
        old_checksum=older.old_checksum,
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
