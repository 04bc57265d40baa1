"""The record of an edit in place: how it is made, kept and read.

Before the first byte of the model changes, the journal is complete and durable; after the edit it
becomes the undo record by a rename. A record describes the old file as a sequence of pieces: spans
of the new file, and the bytes that the edit destroys, which the record holds itself.

An insertion is a single system call: a process that is killed leaves it undone or done. Whether a
power cut can leave it half done, in a file of very many extents, is up to the file system.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.beside import journal_path, new_record_path, undo_path
from ggufrope.container.filesystem import FileLayer, unfinished, write_all
from ggufrope.container.pieces import (
    Composition,
    Insertion,
    Kept,
    Lost,
    Patch,
    Piece,
    copied,
    inverse,
    piece_length,
    place_pieces,
)
from ggufrope.container.record import (
    MAX_RECORD_BYTES,
    Checksum,
    Group,
    Record,
    decode_record,
    encode_record,
)
from ggufrope.container.strategies import IN_PLACE, Option
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ggufrope.container.types import Header


_CHUNK = 1 << 20
_SAMPLE = 4096
_SAMPLES = 32
_TIME_STEP_NS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an edit stands: its number, the group it is a part of, and the inode it leaves."""

    number: int
    group: Group | None
    inode: int


def make_record(
    files: FileLayer, file: BinaryIO, old: Header, option: Option, place: Place
) -> Record:
    """Return the record of the edit that `option` makes of the open `file` with the header `old`.

    To be called before the edit: it reads the bytes that the edit destroys. Raises OSError.
    """
    composition = option.composition
    patched = option.strategy in IN_PLACE
    kept, patches = place_pieces(composition.pieces, option.insertion)
    if not patched:
        kept, patches = copied(composition.pieces), _new_bytes(composition)
    pieces: list[Piece] = []
    for part in inverse(kept, old.file_size):
        if isinstance(part, Lost):
            pieces.append(files.read(file, part.source.offset, part.source.length))
        else:
            pieces.append(part)
    body = tuple(_behind(patches, composition.data_offset))
    written = [*_head(composition), *(patch.piece for patch in body)]
    spans = [Span(offset=0, length=composition.data_offset)]
    spans += [Span(offset=patch.offset, length=piece_length(patch.piece)) for patch in body]
    old_head = Span(offset=0, length=old.data_offset)
    samples = tuple(_samples(kept))
    old_mtime_ns = os.fstat(file.fileno()).st_mtime_ns
    return Record(
        kind="patched" if patched else "replaced",
        old_size=old.file_size,
        new_size=composition.size,
        old_mtime_ns=old_mtime_ns,
        insertion=option.insertion,
        pieces=tuple(pieces),
        old_checksum=Checksum(spans=(old_head,), digest=_digest(files, file, [old_head])),
        new_checksum=Checksum(spans=tuple(spans), digest=_digest(files, file, written)),
        samples=Checksum(
            spans=tuple(Span(offset=one.offset, length=one.source.length) for one in samples),
            digest=_digest(files, file, [one.source for one in samples]),
        ),
        number=place.number,
        first=place.number,
        new_mtime_ns=_next_time(old_mtime_ns),
        inodes=(place.inode,),
        group=place.group,
    )


def _behind(patches: Iterable[Patch], start: int) -> Iterator[Patch]:
    """Yield what of the patches is at `start` or behind it."""
    for patch in patches:
        end = patch.offset + piece_length(patch.piece)
        if patch.offset >= start:
            yield patch
        elif end > start:
            cut = start - patch.offset
            if isinstance(patch.piece, Span):
                part: Piece = Span(offset=patch.piece.offset + cut, length=end - start)
            else:
                part = patch.piece[cut:]
            yield Patch(offset=start, piece=part)


def _new_bytes(composition: Composition) -> tuple[Patch, ...]:
    """Return the bytes of a new file that the old one does not have."""
    found = []
    offset = 0
    for piece in composition.pieces:
        if isinstance(piece, bytes):
            found.append(Patch(offset=offset, piece=piece))
        offset += piece_length(piece)
    return tuple(found)


def _next_time(before: int) -> int | None:
    """Return the time of change of an edited file: now, and later than before the edit.

    In steps of 10 ms, which every file system but FAT can store exactly. None where the system
    cannot set the time of an open file.
    """
    if os.utime not in os.supports_fd:
        return None
    now = max(time.time_ns(), before + _TIME_STEP_NS)
    return now // _TIME_STEP_NS * _TIME_STEP_NS


def _digest(files: FileLayer, file: BinaryIO, pieces: Iterable[Piece]) -> str:
    """Return the SHA-256 of bytes and of spans of the open file, in order."""
    state = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, bytes):
            state.update(piece)
        else:
            for at in range(piece.offset, piece.end, _CHUNK):
                state.update(files.read(file, at, min(_CHUNK, piece.end - at)))
    return state.hexdigest()


def matches(
    checksum: Checksum, files: FileLayer, file: BinaryIO, insertion: Insertion | None = None
) -> bool:
    """Return whether the open file has the bytes of a checksum.

    With `insertion`, its spans are looked up where they were before that insertion.
    """
    spans = checksum.spans
    if insertion is not None:
        spans = tuple(_before(span, insertion) for span in spans)
    return _digest(files, file, spans) == checksum.digest


def write_journal(files: FileLayer, path: Path, record: Record) -> None:
    """Write the journal of `path` durably. Raises StorageError."""
    write_record(files, path, journal_path(path), record)


def write_record(files: FileLayer, path: Path, target: Path, record: Record) -> None:
    """Write a record of `path` durably under the name `target`. Raises StorageError."""
    with storage("write the journal", target):
        with unfinished(files, lambda: new_record_path(path)) as (name, file):
            write_all(files, file, 0, encode_record(record))
            files.sync(file)
            files.release(file)
            files.replace(name, target)
        files.sync_directory(path.parent)


def commit(files: FileLayer, path: Path, record: Record) -> None:
    """Finish an edit: its journal becomes the undo record. Raises StorageError."""
    with storage("finish the edit of", path):
        files.replace(journal_path(path), undo_path(path, record.number, record.first))
        files.sync_directory(path.parent)


def read_record(files: FileLayer, path: Path, model: Path) -> Record:
    """Read the record at `path`, a journal or an undo record of `model`.

    Raises StorageError where it is damaged, no regular file, or of an owner who is neither this
    user nor the model's owner: anybody may have put it into a shared folder.
    """
    with storage("read", path):
        status = path.lstat()
        owners = {0, model.stat().st_uid, *([os.geteuid()] if hasattr(os, "geteuid") else [])}
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not a regular file; remove it to use {model.name}")
    if os.name != "nt" and status.st_uid not in owners:
        raise StorageError(
            f"{path} belongs to another user than {model.name}; remove it, or let its owner use it"
        )
    if status.st_size > MAX_RECORD_BYTES:
        raise StorageError(f"{path} has {status.st_size} bytes, too many for a record; remove it")
    with storage("read", path), files.open(path, "rb") as file:
        data = files.read(file, 0, status.st_size)
    try:
        return decode_record(data)
    except ValueError as error:
        reason = str(error) if type(error) is ValueError else "its fields are not JSON"
        raise StorageError(
            f"{path} is damaged and cannot be used: {reason}; remove it to use "
            f"{model.name} as it is"
        ) from error


def _head(composition: Composition) -> Iterator[Piece]:
    """Yield the pieces in front of the tensor data."""
    left = composition.data_offset
    for piece in composition.pieces:
        length = min(piece_length(piece), left)
        if isinstance(piece, Span):
            yield Span(offset=piece.offset, length=length)
        else:
            yield piece[:length]
        left -= length
        if not left:
            return


def _samples(kept: Sequence[Kept]) -> Iterator[Kept]:
    """Yield short stretches spread over all that is kept; the file's first bytes always are."""
    total = sum(part.source.length for part in kept)
    step = max(total // _SAMPLES, _SAMPLE)
    for part in kept:
        for at in range(0, part.source.length, step):
            length = min(_SAMPLE, part.source.length - at)
            source = Span(offset=part.source.offset + at, length=length)
            yield Kept(source=source, offset=part.offset + at)


def _before(span: Span, insertion: Insertion) -> Span:
    """Return where a span of the new file was before; the insertion does not split it."""
    if span.offset < insertion.offset + insertion.length:
        return span
    return Span(offset=span.offset - insertion.length, length=span.length)
