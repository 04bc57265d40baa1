"""Turn edited files back into what they were, one file or all files of an edit together.

The files of a split model are restored as one: the record of the leader becomes a journal first,
which decides that all of them go back, and is removed last. Whatever is interrupted in between is
finished by `recovery.recover`.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.beside import journal_path, undo_path, undo_records
from ggufrope.container.filesystem import (
    FileLayer,
    RefusedError,
    require_room,
    write_all,
)
from ggufrope.container.journal import commit, matches, read_record, write_record
from ggufrope.container.newfile import Build, building, keep_attributes
from ggufrope.container.pieces import Composition, piece_length
from ggufrope.container.reader import parse_header
from ggufrope.errors import MalformedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ggufrope.container.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A file that an edit changed, open and locked, and the record of that edit."""

    path: Path
    file: BinaryIO
    record: Record


def difference(record: Record, files: FileLayer, file: BinaryIO) -> str | None:
    """Return in what an edited file differs from what its edit left, None where in nothing."""
    size = os.fstat(file.fileno()).st_size
    if size != record.new_size:
        return f"it has {size} bytes, the edit left {record.new_size}"
    if not matches(record.new_checksum, files, file):
        return "its header or other bytes of the edit differ"
    if not matches(record.samples, files, file):
        return "its tensor data differ"
    return None


def is_new(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Return whether the file is what the edit was to leave."""
    return difference(record, files, file) is None


def is_ours(files: FileLayer, file: BinaryIO, record: Record) -> bool:
    """Return whether size and samples of the file fit the record, at any point of its edit."""
    size = os.fstat(file.fileno()).st_size
    insertion = record.insertion
    if record.kind == "replaced":
        return True  # the file that was there was never written to, and is not going to be
    if insertion is None:
        low, high = sorted((record.old_size, record.new_size))
        return low <= size <= high and matches(record.samples, files, file)
    if size == record.old_size:
        return matches(record.samples, files, file, insertion)
    inserted = record.old_size + insertion.length
    return inserted <= size <= record.new_size and matches(record.samples, files, file)


def finish(files: FileLayer, edited: Edited) -> None:
    """Commit an edit whose bytes are all there. Raises StorageError.

    What is read may so far exist in the cache of the system alone: it is made durable first.
    """
    with storage("finish the edit of", edited.path):
        set_time(edited.file, edited.record.new_mtime_ns)
        files.sync(edited.file)
        files.sync_directory(edited.path.parent)
    commit(files, edited.path, edited.record)


def restore(
    files: FileLayer,
    edited: Sequence[Edited],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Restore all files of one edit, the leader first in `edited`. Raises StorageError.

    Works from every state that an edit passes through, and from every state of its own.
    """
    for each in edited:
        journal, finished = (
            journal_path(each.path),
            undo_path(each.path, each.record.number, each.record.first),
        )
        with storage("undo the edit of", each.path):
            if not journal.exists() and finished.exists():
                files.replace(finished, journal)
                files.sync_directory(each.path.parent)
    for each in reversed(edited):
        if each.record.kind == "patched":
            _expect_inode(files, each.path, each.record, each.file)
            roll_back(files, each.file, each.path, each.record)
        elif is_new(files, each.file, each.record):
            _put_back(files, each, progress)
        else:
            # The old file was never written to, or is already back: only the journal is in the way.
            with storage("remove the journal of", each.path):
                files.sync_directory(each.path.parent)
                files.remove(journal_path(each.path))
                files.sync_directory(each.path.parent)


def roll_back(files: FileLayer, file: BinaryIO, path: Path, record: Record) -> None:
    """Restore the old bytes of a file that was written into, and remove the journal.

    Works from every state that an edit passes through, and from every state of its own. Raises
    StorageError, before anything is written where the record does not lead to a GGUF file.
    """
    with storage("roll back the edit of", path):
        _require_old_header(files, file, path, record)
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
        set_time(file, record.old_mtime_ns)
        files.remove(journal_path(path))
        files.sync_directory(path.parent)


def _require_old_header(files: FileLayer, file: BinaryIO, path: Path, record: Record) -> None:
    """Raise StorageError where the record's pieces do not make up the file that it describes."""
    insertion = record.insertion
    size = os.fstat(file.fileno()).st_size
    inserted = insertion is not None and size >= record.old_size + insertion.length
    wanted = record.old_checksum.spans[0].length
    head = bytearray()
    for piece in record.pieces:
        left = wanted - len(head)
        if left <= 0:
            break
        if isinstance(piece, bytes):
            head += piece[:left]
            continue
        at = piece.offset
        if insertion is not None and not inserted and at >= insertion.offset + insertion.length:
            at -= insertion.length
        head += files.read(file, at, min(piece.length, left))
    try:
        right = hashlib.sha256(head).hexdigest() == record.old_checksum.digest
        parse_header(io.BytesIO(bytes(head)), record.old_size)
    except MalformedError:
        right = False
    if not right:
        raise StorageError(
            f"{path} was not changed: {journal_path(path).name} does not lead back to a GGUF file; "
            "remove it to use the file as it is"
        )


def _put_back(
    files: FileLayer, edited: Edited, progress: Callable[[int, int], None] | None
) -> None:
    """Build the old file from the new one that had replaced it, and put it in its place."""
    path, record = edited.path, edited.record
    build = Build(
        files=files,
        source=edited.file,
        target=path,
        composition=Composition(
            pieces=record.pieces,
            data_offset=record.old_checksum.spans[0].length,
            size=record.old_size,
            padding=None,
        ),
        progress=progress,
    )
    with storage("undo the edit of", path):
        if files.clone_refusal(path) is None:
            with suppress(RefusedError):
                _build_old(build, record, clone=True)
                return
        require_room(files, path, record.old_size)
        _build_old(build, record, clone=False)


def _build_old(build: Build, record: Record, *, clone: bool) -> None:
    files, path = build.files, build.target
    with building(build, clone=clone) as partial:
        old = partial.file
        if not matches(record.old_checksum, files, old):
            raise StorageError(f"{path} could not be restored; it is left as edited")
        keep_attributes(build.source, old, in_place=True)
        set_time(old, record.old_mtime_ns)
        files.sync(old)
        _expect_inode(files, path, record, old)
        files.release(old, build.source)
        files.replace(partial.path, path)
    files.sync_directory(path.parent)
    files.remove(journal_path(path))
    files.sync_directory(path.parent)


def _expect_inode(files: FileLayer, path: Path, undone: Record, restored: BinaryIO) -> None:
    """Let the record before `undone` know the inode of the file that is restored."""
    older = [each for each in undo_records(path) if each.number < undone.number]
    if not older:
        return
    with suppress(StorageError):  # at worst, the older edit must be undone with `force`
        inode = os.fstat(restored.fileno()).st_ino
        record = read_record(files, older[-1].path, path)
        if record.inodes and inode not in record.inodes:
            inodes = (*record.inodes[-7:], inode)
            write_record(files, path, older[-1].path, replace(record, inodes=inodes))


def set_time(file: BinaryIO, modified_ns: int | None) -> None:
    """Set the time of change of an open file; the time of access is left alone."""
    if modified_ns is not None and os.utime in os.supports_fd:
        accessed = os.fstat(file.fileno()).st_atime_ns
        os.utime(file.fileno(), ns=(accessed, modified_ns))
