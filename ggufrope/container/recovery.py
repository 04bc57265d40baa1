"""Undo edits in place: those that finished, newest first, or one that was interrupted.

`recover` is called before anything else is done with a file. It commits an interrupted edit whose
bytes are all there, rolls any other back, and removes files that were never finished.

A split model is one unit, whichever of its files is named: an edit that changed several of them is
finished, rolled back and undone in all of them.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ggufrope._files import storage
from ggufrope.container.beside import (
    journal_path,
    orphans,
    remains,
    undo_path,
)
from ggufrope.container.filesystem import LOCAL, BusyError, FileLayer, lock, open_to_edit
from ggufrope.container.guards import check_guards
from ggufrope.container.history import adopt, settle, undo_steps
from ggufrope.container.journal import read_record
from ggufrope.container.reader import PAUSE_SECONDS, parse_header
from ggufrope.container.restore import Edited, difference, finish, is_new, is_ours, restore
from ggufrope.container.shards import shard_paths
from ggufrope.container.types import Header
from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import BinaryIO

    from ggufrope.container.history import UndoStep
    from ggufrope.container.record import Record

    Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was done: an interrupted edit was committed or rolled back, or remains removed."""

    path: Path
    action: Literal["committed", "rolled back", "cleared"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReceipt:
    """The restored file; `header` is read back.

    `undone` counts the edits that were undone, `left` those that still can be, `lost` those before
    them of which no record was kept, and `files` are all files that were restored.
    """

    path: Path
    header: Header
    undone: int
    left: int
    lost: int
    files: tuple[Path, ...]


def recover(
    path: str | os.PathLike[str], *, patience: float = 0.0, files: FileLayer = LOCAL
) -> Recovery | None:
    """Repair the model at `path` if an edit of it was interrupted; return None where none was.

    An edit that is going on right now is waited for, `patience` seconds at most. Raises
    StorageError where it takes longer, or the repair is not possible.
    """
    last = time.monotonic() + patience
    path = Path(path)
    shards = tuple(shard.resolve() for shard in shard_paths(path))
    _adopt_journals(files, shards)
    recovery = None
    while any(journal_path(shard).exists() and shard.is_file() for shard in shards):
        try:
            with ExitStack() as stack:
                found = _open_unfinished(files, shards, stack)
                if found:  # the edit may have ended while the lock was awaited
                    recovery = _repair(files, path.resolve(), found)
        except BusyError:
            if time.monotonic() > last:
                raise
            time.sleep(PAUSE_SECONDS)
    cleared = clear_remains(files, shards)
    if cleared and recovery is None:
        return _recovery(path.resolve(), "cleared", "removed the remains of an interrupted edit")
    return recovery


def clear_remains(files: FileLayer, paths: Sequence[Path]) -> bool:
    """Remove half-written files beside `paths`, unless another process is still writing them."""
    cleared = False
    for remaining in (one for path in paths for one in remains(path)):
        # Not worth failing for: the directory may be read-only, or the writer alive.
        with suppress(OSError, StorageError):
            if not remaining.is_symlink() and remaining.is_file():
                with files.open(remaining, "r+b") as file:
                    lock(file, remaining, files=files)
                    files.release(file)
                    files.remove(remaining)
                    cleared = True
    with suppress(OSError, StorageError):
        cleared |= settle(files, paths)
    return cleared


def undo(
    path: str | os.PathLike[str],
    *,
    everything: bool = False,
    force: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    files: FileLayer = LOCAL,
) -> UndoReceipt:
    """Undo the newest in-place edit of the model, or `everything` that is on record.

    Every file that the edit changed is restored bit for bit, its time of change included, whichever
    file of a split model is named. Raises RequestError where there is nothing to undo or a file has
    other bytes than the edit left; GuardError as an edit does, and "changed" where a file was
    written to or replaced since, though the bytes that are compared are the same.
    """
    check_guards(path, force, instead="")
    path = Path(path)
    names = shard_paths(path)
    recover(path, files=files)
    for name in names:
        _adopt_records(files, name.resolve(), copies="changed" in force)
    shards = tuple(name.resolve() for name in names)
    steps = undo_steps(shards)
    if not steps:
        hint = "; for a copy of a file that was edited here, pass `force` 'changed'"
        others = any(orphans(shard.parent) for shard in shards)
        raise RequestError(f"there is no edit of {path} to undo{hint if others else ''}")
    for shard in {shard for step in steps for shard in step.paths}:
        if shard != path.resolve():
            check_guards(names[shards.index(shard)], force, instead="")
    restored: dict[Path, None] = {}
    undone, lost = 0, max(steps[0].first - 1, 0)
    while steps:
        try:
            _undo_step(files, steps, force, progress)
        except (GuardError, RequestError) as error:
            if undone:
                error.args = (f"undid {undone} of the edits, then: {error}",)
            raise
        restored |= dict.fromkeys(steps[-1].paths)
        undone += steps[-1].edits
        steps = undo_steps(shards)
        if not everything:
            break
    path = path.resolve()
    with storage("read", path), files.open(path, "rb") as file:
        header = parse_header(file, os.fstat(file.fileno()).st_size)
    return UndoReceipt(
        path=path,
        header=header,
        undone=undone,
        left=sum(step.edits for step in steps),
        lost=lost,
        files=tuple(restored),
    )


def _undo_step(
    files: FileLayer,
    steps: Sequence[UndoStep],
    force: Collection[str],
    progress: Progress | None,
) -> None:
    """Undo the newest step, in all files that have a record of it."""
    step = steps[-1]
    with ExitStack() as stack:
        edited = []
        for path in step.paths:
            file = _open_locked(files, path, stack)
            name = step.record(path)
            record = read_record(files, name, path)
            if (record.number, record.first) != (step.number, step.first):
                raise StorageError(f"{name} is the record of another edit; remove it")
            edited.append(Edited(path=path, file=file, record=record))
        edited.sort(key=lambda one: not (one.record.group and one.record.group.leader))
        _require_all(edited)
        for one in edited:
            _require_unchanged(files, one, force)
        restore(files, edited, progress)


def _require_all(edited: Sequence[Edited]) -> None:
    """Raise where the records are not all those of one edit."""
    group = edited[0].record.group
    if all(one.record.group is None for one in edited):  # of one file, or of an earlier version
        return
    groups = {one.record.group and one.record.group.id for one in edited}
    if group is None or len(groups) > 1 or len(edited) != group.size or not group.leader:
        names = ", ".join(one.path.name for one in edited)
        wanted = "one edit" if group is None else f"an edit of {group.size} files"
        raise RequestError(
            f"{edited[0].path}: the undo records of {names} are not all those of {wanted}; bring "
            "back the missing records, or the model would be left half changed"
        )


def _require_unchanged(files: FileLayer, one: Edited, force: Collection[str]) -> None:
    """Raise where the file is not what its edit left, or may not be."""
    path, record = one.path, one.record
    with storage("read", path):
        reason = difference(record, files, one.file)
        status = os.fstat(one.file.fileno())
    if reason is not None:
        raise RequestError(f"{path} was changed after the edit that could be undone: {reason}")
    if "changed" in force:
        return
    if record.new_mtime_ns is not None and not _same_time(status.st_mtime_ns, record.new_mtime_ns):
        reason = "its time of change is another"
    elif record.inodes and status.st_ino not in record.inodes:
        reason = "it is another file of the same name"
    if reason is not None:
        raise GuardError(
            f"{path} may have been changed after the edit that could be undone: {reason}; compare "
            "it with a copy, or pass `force` 'changed' to undo the edit anyway",
            guard="changed",
        )


def _same_time(found: int, recorded: int) -> bool:
    """Compare two times of change; FAT keeps even seconds, and HFS+ whole ones."""
    return found == recorded or (found % 10**9 == 0 and 0 <= recorded - found < 2 * 10**9)


def _adopt_journals(files: FileLayer, shards: Iterable[Path]) -> None:
    """Find journals of files that were renamed after an edit of them was interrupted."""
    for shard in shards:
        if not journal_path(shard).exists() and any(
            one.kind == "journal" for one in orphans(shard.parent)
        ):
            _adopt_records(files, shard)


def _adopt_records(files: FileLayer, path: Path, *, copies: bool = True) -> None:
    """Find the records of a file that was renamed within its folder; see `adopt`."""
    if not path.is_file() or not orphans(path.parent):
        return
    with storage("open", path), files.open(path, "rb") as file:
        adopt(files, file, path, copies=copies)


def _open_locked(files: FileLayer, path: Path, stack: ExitStack) -> BinaryIO:
    with storage("repair", path):
        try:
            file = stack.enter_context(open_to_edit(files, path))
        except PermissionError:
            with files.open(path, "rb") as reader:  # while somebody edits it, there is no need to
                lock(reader, path, shared=True, files=files)
            raise
    lock(file, path, files=files)
    return file


def _open_unfinished(
    files: FileLayer, shards: Sequence[Path], stack: ExitStack
) -> tuple[Edited, ...]:
    """Open and lock the files of an unfinished edit, the leader first; none where it has ended.

    Where several edits of different files are unfinished, those of one are returned.
    """
    waiting = [shard for shard in shards if journal_path(shard).exists() and shard.is_file()]
    opened = {shard: _open_locked(files, shard, stack) for shard in waiting}
    found = [
        Edited(path=path, file=file, record=read_record(files, journal_path(path), path))
        for path, file in opened.items()
        if journal_path(path).exists()
    ]
    if not found:
        return ()
    group = found[0].record.group
    if group is None:
        return (found[0],)
    members = [one for one in found if _id(one.record) == group.id]
    number = found[0].record.number
    for shard in shards:
        finished = undo_path(shard, number)
        if shard in opened or not finished.exists():
            continue
        record = read_record(files, finished, shard)
        if _id(record) == group.id:
            file = _open_locked(files, shard, stack)
            members.append(Edited(path=shard, file=file, record=record))
    return tuple(sorted(members, key=lambda one: not (one.record.group or group).leader))


def _id(record: Record) -> str | None:
    return None if record.group is None else record.group.id


def _repair(files: FileLayer, path: Path, found: Sequence[Edited]) -> Recovery:
    """Commit an unfinished edit, or roll it back, in all of its files."""
    journals = [one for one in found if journal_path(one.path).exists()]
    for one in journals:
        _require_ours(files, one)
    group = found[0].record.group
    finished = group is not None and group.leader and found[0] not in journals
    whole = len(journals) == (1 if group is None else group.size)
    if finished or (whole and all(is_new(files, one.file, one.record) for one in journals)):
        for one in journals:
            if not is_new(files, one.file, one.record):
                raise StorageError(
                    f"{one.path} is a part of a finished edit, but not what that edit left; fetch "
                    f"the model again, or remove {journal_path(one.path).name}"
                )
            finish(files, one)
        return _recovery(path, "committed", "found a complete but uncommitted edit, committed it")
    # Without its leader, an edit is being undone and nearly done, or none of it was written yet.
    restore(files, found if group is None or group.leader else journals)
    return _recovery(path, "rolled back", "found an interrupted edit, rolled it back")


def _require_ours(files: FileLayer, one: Edited) -> None:
    if not is_ours(files, one.file, one.record):
        raise StorageError(
            f"{journal_path(one.path)} belongs to an interrupted edit, but {one.path} is another "
            "file now; remove the journal if that is intended"
        )


def _recovery(
    path: Path, action: Literal["committed", "rolled back", "cleared"], what: str
) -> Recovery:
    return Recovery(path=path, action=action, message=f"{path}: {what}")
