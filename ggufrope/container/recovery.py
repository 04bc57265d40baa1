"""Takes an edit in place back: one that was interrupted, or the last one that finished."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from ggufrope._files import storage
from ggufrope.container.filesystem import (
    LOCAL,
    FileLayer,
    RefusedError,
    journal_path,
    lock,
    partial_path,
    record_path,
    require_room,
    undo_path,
    write_all,
)
from ggufrope.container.guards import check_guards
from ggufrope.container.journal import commit, holds, read_record
from ggufrope.container.newfile import built, keep_attributes
from ggufrope.container.pieces import Composition, piece_length
from ggufrope.container.reader import parse_header
from ggufrope.container.types import Header
from ggufrope.errors import RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ggufrope.container.journal import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was found and done: an interrupted edit was finished or taken back, or only remains
    of one were cleared away."""

    path: Path
    action: Literal["finished", "taken back", "cleared"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReceipt:
    """The file as it is again; `header` is read back."""

    path: Path
    header: Header


def recover(path: str | os.PathLike[str], *, files: FileLayer = LOCAL) -> Recovery | None:
    """Repairs the file at `path` if an edit of it was interrupted; None where there was none.

    To be called before anything else is done with a file. Raises StorageError where an edit is
    going on right now, or the repair is not possible.
    """
    path = Path(path).resolve()
    if journal_path(path).exists() and path.is_file():
        with storage("repair", path), files.open(path, "r+b") as file:
            lock(file, path)
            if journal_path(path).exists():  # it may have been settled while the lock was awaited
                return _settle_journal(files, file, path)
    return _clear_remains(files, path)


def undo(
    path: str | os.PathLike[str],
    *,
    force: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    files: FileLayer = LOCAL,
) -> UndoReceipt:
    """Takes the last in-place edit of the file back, bit for bit, its time of change included.

    Raises RequestError where there is none or the file has changed since, GuardError as an edit
    does.
    """
    check_guards(path, force)
    path = Path(path).resolve()
    if not undo_path(path).exists():
        raise RequestError(f"there is no edit of {path} to undo")
    with storage("undo the edit of", path), files.open(path, "r+b") as file:
        lock(file, path)
        record = read_record(files, undo_path(path))
        if not _is_new(files, file, record):
            raise RequestError(f"{path} was changed after the edit that could be undone")
        files.replace(undo_path(path), journal_path(path))
        files.sync_directory(path.parent)
        if record.kind == "patched":
            roll_back(files, file, path, record)
        else:
            _put_back(files, file, path, record, progress)
    with storage("read", path), files.open(path, "rb") as file:
        return UndoReceipt(path=path, header=parse_header(file, record.old_size))


def roll_back(files: FileLayer, file: BinaryIO, path: Path, record: Record) -> None:
    """Gives a file that was written into its old bytes back, and drops the journal.

    Sound from every state an edit passes through, and from every state this itself does.
    """
    with storage("take the edit back in", path):
        size = os.fstat(file.fileno()).st_size
        insertion = record.insertion
        if insertion is not None and size >= record.old_size + insertion.length:
            if size > record.old_size + insertion.length:
                files.resize(file, record.old_size + insertion.length)
            files.collapse_range(file, insertion.offset, insertion.length)
            files.sync(file)
        elif size > record.old_size:
            files.resize(file, record.old_size)
        offset = 0
        for piece in record.pieces:
            if isinstance(piece, bytes):
                write_all(files, file, offset, piece)
            offset += piece_length(piece)
        files.sync(file)
        if not holds(record.old_seal, files, file):
            raise StorageError(f"{path} could not be restored; its journal is kept")
        _restore_time(file, record)
        files.remove(journal_path(path))
        files.sync_directory(path.parent)


def _put_back(
    files: FileLayer,
    file: BinaryIO,
    path: Path,
    record: Record,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Builds the old file from the new one that had replaced it, and lets it take its place."""
    if files.clone_refusal(path) is None:
        with suppress(RefusedError):
            _put_back_by(files, file, path, record, progress, clone=True)
            return
    require_room(files, path, record.old_size)
    _put_back_by(files, file, path, record, progress, clone=False)


def _put_back_by(
    files: FileLayer,
    file: BinaryIO,
    path: Path,
    record: Record,
    progress: Callable[[int, int], None] | None,
    *,
    clone: bool,
) -> None:
    composition = Composition(
        pieces=record.pieces,
        data_offset=record.old_seal.spans[0].length,
        size=record.old_size,
        padding=None,
    )
    with built(files, file, path, composition, clone=clone, progress=progress) as old:
        if not holds(record.old_seal, files, old):
            raise StorageError(f"{path} could not be restored; the edit stays")
        keep_attributes(file, old, owner=True)
        files.sync(old)
        _restore_time(old, record)
        files.replace(partial_path(path), path)
    files.sync_directory(path.parent)
    files.remove(journal_path(path))
    files.sync_directory(path.parent)


def _settle_journal(files: FileLayer, file: BinaryIO, path: Path) -> Recovery:
    record = read_record(files, journal_path(path))
    if _is_new(files, file, record):
        commit(files, path)
        _clear_remains(files, path)
        return _recovery(path, "finished", "an interrupted edit had reached its end")
    if record.kind == "replaced":
        # The old file was never written to, or is already back: only the journal is in the way.
        files.remove(journal_path(path))
        files.sync_directory(path.parent)
    elif _is_ours(files, file, record):
        roll_back(files, file, path, record)
    else:
        raise StorageError(
            f"{journal_path(path)} belongs to an interrupted edit, but {path} is another file now; "
            "remove the journal if that is intended"
        )
    _clear_remains(files, path)
    return _recovery(path, "taken back", "an interrupted edit was taken back")


def _recovery(
    path: Path, action: Literal["finished", "taken back", "cleared"], what: str
) -> Recovery:
    return Recovery(path=path, action=action, message=f"{path}: {what}")


def _is_new(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Whether the file is exactly what the edit meant to leave."""
    return (
        os.fstat(file.fileno()).st_size == record.new_size
        and holds(record.new_seal, files, file)
        and holds(record.samples, files, file)
    )


def _is_ours(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Whether the file can be the journal's, at any point of the edit: size and samples agree."""
    size = os.fstat(file.fileno()).st_size
    insertion = record.insertion
    if insertion is None:
        low, high = sorted((record.old_size, record.new_size))
        return low <= size <= high and holds(record.samples, files, file)
    if size == record.old_size:
        return holds(record.samples, files, file, insertion)
    inserted = record.old_size + insertion.length
    return inserted <= size <= record.new_size and holds(record.samples, files, file)


def _clear_remains(files: FileLayer, path: Path) -> Recovery | None:
    """Removes half-written files beside `path`, unless somebody is still writing them."""
    cleared = False
    for remains in (partial_path(path), record_path(path)):
        # Not worth failing for: the directory may be read-only, the writer alive.
        with suppress(OSError, StorageError):
            if remains.exists():
                with files.open(remains, "r+b") as file:
                    lock(file, remains)
                    files.remove(remains)
                    cleared = True
    return (
        _recovery(path, "cleared", "remains of an interrupted edit were removed")
        if cleared
        else None
    )


def _restore_time(file: BinaryIO, record: Record) -> None:
    """The file is what it was, so it says when it was made; its time of access is left alone."""
    if os.utime in os.supports_fd:
        accessed = os.fstat(file.fileno()).st_atime_ns
        os.utime(file.fileno(), ns=(accessed, record.old_mtime_ns))
