"""The record of an edit in place: what it holds, its bytes, and where it is kept.

Before the first byte of the model changes, the journal is complete and durable; after the edit it
becomes the undo record by a rename. A record describes the old file as a sequence of pieces: spans
of the new file, and the bytes that the edit destroys, which the record holds itself.

On disk: a line that names the format, a line of JSON, the bytes of the old file, and the SHA-256 of
all that.

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
    Piece,
    copied,
    inverse,
    piece_length,
    place_pieces,
)
from ggufrope.container.strategies import IN_PLACE, Option
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ggufrope.container.types import Header


_MAGIC = b"ggufrope journal 1\n"
_DIGEST_BYTES = 32
_CHUNK = 1 << 20
_SAMPLE = 4096
_SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """The SHA-256 of some spans of a file, by which the file is recognized."""

    spans: tuple[Span, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One edit in place.

    A `patched` file was written into, after the insertion if there is one; a `replaced` one was
    exchanged for a new file. `pieces` make up the old file: bytes, and spans of the new file.
    `old_checksum` and `new_checksum` cover what the edit changes, `samples` covers bytes of the
    new file that it did not touch.
    """

    kind: Literal["patched", "replaced"]
    old_size: int
    new_size: int
    old_mtime_ns: int
    insertion: Insertion | None
    pieces: tuple[Piece, ...]
    old_checksum: Checksum
    new_checksum: Checksum
    samples: Checksum


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, with a checksum behind them."""
    held = [piece for piece in record.pieces if isinstance(piece, bytes)]
    fields: dict[str, Any] = {
        "kind": record.kind,
        "old_size": record.old_size,
        "new_size": record.new_size,
        "old_mtime_ns": record.old_mtime_ns,
        "insertion": record.insertion and [record.insertion.offset, record.insertion.length],
        "pieces": [_piece_fields(piece) for piece in record.pieces],
        "old_seal": _checksum_fields(record.old_checksum),
        "new_seal": _checksum_fields(record.new_checksum),
        "samples": _checksum_fields(record.samples),
    }
    body = b"".join([_MAGIC, json.dumps(fields).encode(), b"\n", *held])
    return body + hashlib.sha256(body).digest()


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` turned into `data`.

    Raises ValueError, KeyError or TypeError on anything else.
    """
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
        old_checksum=_checksum(fields["old_seal"]),
        new_checksum=_checksum(fields["new_seal"]),
        samples=_checksum(fields["samples"]),
    )


def _piece_fields(piece: Piece) -> int | list[int]:
    return len(piece) if isinstance(piece, bytes) else [piece.offset, piece.length]


def _span(fields: list[int]) -> Span:
    offset, length = fields
    return Span(offset=offset, length=length)


def _checksum_fields(checksum: Checksum) -> list[Any]:
    return [[[span.offset, span.length] for span in checksum.spans], checksum.digest]


def _checksum(fields: list[Any]) -> Checksum:
    spans, digest = fields
    return Checksum(spans=tuple(map(_span, spans)), digest=digest)


def make_record(files: FileLayer, file: BinaryIO, old: Header, option: Option) -> Record:
    """Return the record of the edit that `option` makes of the open `file` with the header `old`.

    To be called before the edit: it reads the bytes that the edit destroys. Raises OSError.
    """
    composition = option.composition
    patched = option.strategy in IN_PLACE
    kept, patches = place_pieces(composition.pieces, option.insertion)
    if not patched:
        kept, patches = copied(composition.pieces), ()
    pieces: list[Piece] = []
    for part in inverse(kept, old.file_size):
        if isinstance(part, Lost):
            pieces.append(files.read(file, part.source.offset, part.source.length))
        else:
            pieces.append(part)
    body = [patch for patch in patches if patch.offset >= composition.data_offset]
    written = [*_head(composition), *(patch.piece for patch in body)]
    spans = [Span(offset=0, length=composition.data_offset)]
    spans += [Span(offset=patch.offset, length=piece_length(patch.piece)) for patch in body]
    old_head = Span(offset=0, length=old.data_offset)
    samples = tuple(_samples(kept))
    return Record(
        kind="patched" if patched else "replaced",
        old_size=old.file_size,
        new_size=composition.size,
        old_mtime_ns=os.fstat(file.fileno()).st_mtime_ns,
        insertion=option.insertion,
        pieces=tuple(pieces),
        old_checksum=Checksum(spans=(old_head,), digest=_digest(files, file, [old_head])),
        new_checksum=Checksum(spans=tuple(spans), digest=_digest(files, file, written)),
        samples=Checksum(
            spans=tuple(Span(offset=one.offset, length=one.source.length) for one in samples),
            digest=_digest(files, file, [one.source for one in samples]),
        ),
    )


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
    unfinished = record_path(path)
    with storage("write the journal", unfinished):
        try:
            with files.create(unfinished) as file:
                files.resize(file, 0)
                write_all(files, file, 0, encode_record(record))
                files.sync(file)
            files.replace(unfinished, journal_path(path))
        except BaseException:
            files.remove(unfinished)
            raise
        files.sync_directory(path.parent)


def commit(files: FileLayer, path: Path) -> None:
    """Finish an edit: its journal becomes the undo record. Raises StorageError."""
    with storage("finish the edit of", path):
        files.replace(journal_path(path), undo_path(path))
        files.sync_directory(path.parent)


def read_record(files: FileLayer, path: Path) -> Record:
    """Read the record at `path`, a journal or an undo record. Raises StorageError."""
    with storage("read", path), files.open(path, "rb") as file:
        data = files.read(file, 0, path.stat().st_size)
    try:
        return decode_record(data)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged and cannot be used: {error}") from error


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
