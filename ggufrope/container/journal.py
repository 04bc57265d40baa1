"""Draws up the record of an edit in place and keeps it on disk.

The journal is complete and durable before the first byte of the model changes, and becomes the
undo record by a rename. It describes the old file as a sequence of pieces: bytes that the edit
destroys, which it carries, and spans of the new file.

An insertion is a single system call: a process that is killed leaves it undone or done. Whether a
power cut can leave it half done, in a file of very many extents, is up to the file system.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, BinaryIO, Literal

from ggufrope.container.composition import Composition, Piece, piece_length
from ggufrope.container.files import FileLayer, storage, write_all
from ggufrope.container.inplace import Insertion, Kept, Lost, Patch, inverse
from ggufrope.container.records import Record, Seal, decode, encode
from ggufrope.container.siblings import journal_path, record_path, undo_path
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ggufrope.container.types import Header

_CHUNK = 1 << 20
_SAMPLE = 4096
_SAMPLES = 32


def draw_up(
    files: FileLayer,
    file: BinaryIO,
    *,
    kind: Literal["patched", "replaced"],
    header: Header,
    composition: Composition,
    kept: Sequence[Kept],
    patches: Sequence[Patch] = (),
    insertion: Insertion | None = None,
) -> Record:
    """The record of the edit that turns the open old `file` into `composition`.

    `kept` says what of the old file will be found in the new one, and where.
    """
    pieces: list[Piece] = []
    for part in inverse(kept, header.file_size):
        if isinstance(part, Lost):
            pieces.append(files.read(file, part.source.offset, part.source.length))
        else:
            pieces.append(part)
    body = [patch for patch in patches if patch.offset >= composition.data_offset]
    written = [*_head(composition), *(patch.piece for patch in body)]
    spans = [Span(offset=0, length=composition.data_offset)]
    spans += [Span(offset=patch.offset, length=piece_length(patch.piece)) for patch in body]
    samples = tuple(_samples(kept))
    return Record(
        kind=kind,
        old_size=header.file_size,
        new_size=composition.size,
        old_mtime_ns=os.fstat(file.fileno()).st_mtime_ns,
        insertion=insertion,
        pieces=tuple(pieces),
        old_seal=Seal(
            spans=(old_head := Span(offset=0, length=header.data_offset),),
            digest=digest(files, file, [old_head]),
        ),
        new_seal=Seal(spans=tuple(spans), digest=digest(files, file, written)),
        samples=Seal(
            spans=tuple(
                Span(offset=keeping.offset, length=keeping.source.length) for keeping in samples
            ),
            digest=digest(files, file, [keeping.source for keeping in samples]),
        ),
    )


def digest(files: FileLayer, file: BinaryIO, pieces: Iterable[Piece]) -> str:
    """SHA-256 over bytes and spans of the open file, in order."""
    state = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, bytes):
            state.update(piece)
        else:
            for at in range(piece.offset, piece.end, _CHUNK):
                state.update(files.read(file, at, min(_CHUNK, piece.end - at)))
    return state.hexdigest()


def holds(seal: Seal, files: FileLayer, file: BinaryIO, insertion: Insertion | None = None) -> bool:
    """Whether the open file has the sealed bytes; with `insertion`, where they stood before it."""
    spans = seal.spans
    if insertion is not None:
        spans = tuple(_before(span, insertion) for span in spans)
    return digest(files, file, spans) == seal.digest


def write_journal(files: FileLayer, path: Path, record: Record) -> None:
    """Puts the journal of `path` in place, durably."""
    growing = record_path(path)
    with storage("write the journal", growing):
        try:
            with files.create(growing) as file:
                files.resize(file, 0)
                write_all(files, file, 0, encode(record))
                files.sync(file)
            files.replace(growing, journal_path(path))
        except BaseException:
            files.remove(growing)
            raise
        files.sync_directory(path.parent)


def commit(files: FileLayer, path: Path) -> None:
    """Declares an edit finished: its journal becomes the undo record."""
    with storage("finish the edit of", path):
        files.replace(journal_path(path), undo_path(path))
        files.sync_directory(path.parent)


def read_record(files: FileLayer, path: Path) -> Record:
    """The record stored at `path`, which is a journal or an undo record."""
    with storage("read", path), files.open(path, "rb") as file:
        data = files.read(file, 0, path.stat().st_size)
    try:
        return decode(data)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged and cannot be used: {error}") from error


def _head(composition: Composition) -> Iterator[Piece]:
    """The pieces in front of the tensor data."""
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
    """Short stretches spread over all that stays, which the magic always does."""
    total = sum(keeping.source.length for keeping in kept)
    step = max(total // _SAMPLES, _SAMPLE)
    for keeping in kept:
        for at in range(0, keeping.source.length, step):
            length = min(_SAMPLE, keeping.source.length - at)
            source = Span(offset=keeping.source.offset + at, length=length)
            yield Kept(source=source, offset=keeping.offset + at)


def _before(span: Span, insertion: Insertion) -> Span:
    """A span of the new file, none that the insertion split -> where it stood before."""
    if span.offset < insertion.offset + insertion.length:
        return span
    return Span(offset=span.offset - insertion.length, length=span.length)
