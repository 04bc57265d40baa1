"""Draws up the record of an edit in place and keeps it on disk.

The journal is complete and durable before the first byte of the model changes, and becomes the
undo record by a rename. It describes the old file as a sequence of pieces: bytes that the edit
destroys, which it carries, and spans of the new file.

An insertion is a single system call: a process that is killed leaves it undone or done. Whether a
power cut can leave it half done, in a file of very many extents, is up to the file system.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ggufrope._files import storage
from ggufrope.container.filesystem import FileLayer, journal_path, record_path, undo_path, write_all
from ggufrope.container.pieces import (
    Composition,
    Insertion,
    Kept,
    Lost,
    Patch,
    Piece,
    inverse,
    piece_length,
)
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ggufrope.container.types import Header


# What is known about one edit in place, and its bytes on disk.
#
# Format: a line naming it, a line of JSON, the carried bytes, and the SHA-256 of all that.

_MAGIC = b"ggufrope journal 1\n"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """The SHA-256 of some spans of a file, by which the file is known again."""

    spans: tuple[Span, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One edit in place.

    `patched` files were written into, after the insertion if there is one; `replaced` ones were
    exchanged for a new file. `pieces` is the old file: bytes, and spans of the new file.
    `old_seal` and `new_seal` cover what the edit is about, `samples` bytes of the new file that
    it did not touch.
    """

    kind: Literal["patched", "replaced"]
    old_size: int
    new_size: int
    old_mtime_ns: int
    insertion: Insertion | None
    pieces: tuple[Piece, ...]
    old_seal: Seal
    new_seal: Seal
    samples: Seal


def encode(record: Record) -> bytes:
    """Return the bytes of a record, with a digest behind them."""
    carried = [piece for piece in record.pieces if isinstance(piece, bytes)]
    fields: dict[str, Any] = {
        "kind": record.kind,
        "old_size": record.old_size,
        "new_size": record.new_size,
        "old_mtime_ns": record.old_mtime_ns,
        "insertion": record.insertion and [record.insertion.offset, record.insertion.length],
        "pieces": [_piece_fields(piece) for piece in record.pieces],
    }
    for name in ("old_seal", "new_seal", "samples"):
        value: Seal = getattr(record, name)
        fields[name] = [[[s.offset, s.length] for s in value.spans], value.digest]
    body = b"".join([_MAGIC, json.dumps(fields).encode(), b"\n", *carried])
    return body + hashlib.sha256(body).digest()


def decode(data: bytes) -> Record:
    """The inverse of `encode`. Raises ValueError, KeyError or TypeError on anything else."""
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("its checksum does not match")
    at = body.index(b"\n", len(_MAGIC)) + 1
    fields = json.loads(body[len(_MAGIC) : at])
    pieces: list[Piece] = []
    for piece in fields["pieces"]:
        if isinstance(piece, int):
            pieces.append(body[at : at + piece])
            at += piece
        else:
            pieces.append(_span(piece))
    insertion = fields["insertion"]
    return Record(
        kind=fields["kind"],
        old_size=fields["old_size"],
        new_size=fields["new_size"],
        old_mtime_ns=fields["old_mtime_ns"],
        insertion=insertion and Insertion(offset=insertion[0], length=insertion[1]),
        pieces=tuple(pieces),
        old_seal=_seal(fields["old_seal"]),
        new_seal=_seal(fields["new_seal"]),
        samples=_seal(fields["samples"]),
    )


def _piece_fields(piece: Piece) -> int | list[int]:
    return len(piece) if isinstance(piece, bytes) else [piece.offset, piece.length]


def _span(fields: list[int]) -> Span:
    offset, length = fields
    return Span(offset=offset, length=length)


def _seal(fields: list[Any]) -> Seal:
    spans, digest = fields
    return Seal(spans=tuple(map(_span, spans)), digest=digest)


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
