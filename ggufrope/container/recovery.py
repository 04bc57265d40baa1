"""Undo an edit in place: the last one that finished, or one that was interrupted.

`recover` is called before anything else is done with a file. It commits an interrupted edit whose
bytes are all there, rolls any other back, and removes files that were never finished.

Each file of a split model is edited and recovered by itself, with records of its own. Therefore
`undo` of the first file is refused while a later one has an undo record, and so are `recover` and
`undo` while a later one has a journal: the model would be left half changed without notice.
"""

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
from ggufrope.container.journal import commit, matches, read_record
from ggufrope.container.newfile import Build, building, keep_attributes
from ggufrope.container.pieces import Composition, piece_length
from ggufrope.container.reader import parse_header
from ggufrope.container.shards import later_paths
from ggufrope.container.types import Header
from ggufrope.errors import RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ggufrope.container.journal import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was done: an interrupted edit was committed or rolled back, or remains removed."""

    path: Path
    action: Literal["committed", "rolled back", "cleared"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReceipt:
    """The restored file; `header` is read back."""

    path: Path
    header: Header


def recover(path: str | os.PathLike[str], *, files: FileLayer = LOCAL) -> Recovery | None:
    """Repair the file at `path` if an edit of it was interrupted; return None where none was.

    Raises StorageError where an edit is going on right now, the repair is not possible, or a later
    file of the same split model has an unfinished edit.
    """
    _require_later_files_settled(Path(path))
    path = Path(path).resolve()
    if journal_path(path).exists() and path.is_file():
        with storage("repair", path), files.open(path, "r+b") as file:
            lock(file, path, files=files)
            if journal_path(path).exists():  # the edit may have ended while the lock was awaited
                return _repair(files, file, path)
    return _clear_remains(files, path)


def undo(
    path: str | os.PathLike[str],
    *,
    force: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    files: FileLayer = LOCAL,
) -> UndoReceipt:
    """Undo the last in-place edit of the file, bit for bit, its time of change included.

    Raises RequestError where there is none, the file has changed since, or later files of the same
    split model were edited too; GuardError as an edit does.
    """
    check_guards(path, force)
    _require_later_files_unedited(Path(path))
    path = Path(path).resolve()
    if not undo_path(path).exists():
        raise RequestError(f"there is no edit of {path} to undo")
    with storage("undo the edit of", path), files.open(path, "r+b") as file:
        lock(file, path, files=files)
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
    """Restore the old bytes of a file that was written into, and remove the journal.

    Works from every state that an edit passes through, and from every state of its own. Raises
    StorageError.
    """
    with storage("roll back the edit of", path):
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
        if not matches(record.old_checksum, files, file):
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
    """Build the old file from the new one that had replaced it, and put it in its place."""
    build = Build(
        files=files,
        source=file,
        target=path,
        composition=Composition(
            pieces=record.pieces,
            data_offset=record.old_checksum.spans[0].length,
            size=record.old_size,
            padding=None,
        ),
        progress=progress,
    )
    if files.clone_refusal(path) is None:
        with suppress(RefusedError):
            _build_old(build, record, clone=True)
            return
    require_room(files, path, record.old_size)
    _build_old(build, record, clone=False)


def _build_old(build: Build, record: Record, *, clone: bool) -> None:
    files, path = build.files, build.target
    with building(build, clone=clone) as old:
        if not matches(record.old_checksum, files, old):
            raise StorageError(f"{path} could not be restored; it is left as edited")
        keep_attributes(build.source, old, owner=True)
        files.sync(old)
        _restore_time(old, record)
        files.replace(partial_path(path), path)
    files.sync_directory(path.parent)
    files.remove(journal_path(path))
    files.sync_directory(path.parent)


def _repair(files: FileLayer, file: BinaryIO, path: Path) -> Recovery:
    """Commit the edit in the journal of the open file, or roll it back."""
    record = read_record(files, journal_path(path))
    if _is_new(files, file, record):
        commit(files, path)
        _clear_remains(files, path)
        return _recovery(path, "committed", "found a complete but uncommitted edit, committed it")
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
    return _recovery(path, "rolled back", "found an interrupted edit, rolled it back")


def _recovery(
    path: Path, action: Literal["committed", "rolled back", "cleared"], what: str
) -> Recovery:
    return Recovery(path=path, action=action, message=f"{path}: {what}")


def _later_files(path: Path) -> tuple[Path, ...]:
    """Return the later files of the model whose first file is at `path`, or behind that link."""
    return later_paths(path) or later_paths(path.resolve())


def _require_later_files_settled(path: Path) -> None:
    """Raise StorageError where a later file of the model that begins at `path` has a journal."""
    for later in _later_files(path):
        if journal_path(later.resolve()).exists():
            raise StorageError(
                f"{later}, a later file of the model {path}, has an unfinished edit; wait for it, "
                f"or run `ggufrope inspect {later}` to repair that file"
            )


def _require_later_files_unedited(path: Path) -> None:
    """Raise where undoing the file at `path` alone would leave its model half changed."""
    _require_later_files_settled(path)
    edited = [later for later in _later_files(path) if undo_path(later.resolve()).exists()]
    if edited:
        names = ", ".join(later.name for later in edited)
        raise RequestError(
            f"{path} cannot be undone alone: later files of the same model were edited too "
            f"({names}), and the model would be left half changed; if they were edited together, "
            "undo each of them by its own path first"
        )


def _is_new(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Return whether the file is exactly what the edit was to leave."""
    return (
        os.fstat(file.fileno()).st_size == record.new_size
        and matches(record.new_checksum, files, file)
        and matches(record.samples, files, file)
    )


def _is_ours(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Return whether size and samples of the file fit the journal, at any point of its edit."""
    size = os.fstat(file.fileno()).st_size
    insertion = record.insertion
    if insertion is None:
        low, high = sorted((record.old_size, record.new_size))
        return low <= size <= high and matches(record.samples, files, file)
    if size == record.old_size:
        return matches(record.samples, files, file, insertion)
    inserted = record.old_size + insertion.length
    return inserted <= size <= record.new_size and matches(record.samples, files, file)


def _clear_remains(files: FileLayer, path: Path) -> Recovery | None:
    """Remove half-written files beside `path`, unless another process is still writing them."""
    cleared = False
    for remains in (partial_path(path), record_path(path)):
        # Not worth failing for: the directory may be read-only, or the writer alive.
        with suppress(OSError, StorageError):
            if remains.exists():
                with files.open(remains, "r+b") as file:
                    lock(file, remains, files=files)
                    files.remove(remains)
                    cleared = True
    if not cleared:
        return None
    return _recovery(path, "cleared", "removed the remains of an interrupted edit")


def _restore_time(file: BinaryIO, record: Record) -> None:
    """Set the time of change of the old file; the time of access is left alone."""
    if os.utime in os.supports_fd:
        accessed = os.fstat(file.fileno()).st_atime_ns
        os.utime(file.fileno(), ns=(accessed, record.old_mtime_ns))
