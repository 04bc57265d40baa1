"""What is known of one edit in place, and its bytes on disk.

On disk: a line that names the format, a line of JSON, the bytes of the old file, and the SHA-256 of
all that. Whoever can write into a model's folder can put such a file there, so a record is checked
to be one that an edit can have left before anything is done with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ggufrope.container.pieces import Insertion, Piece, piece_length
from ggufrope.container.strategies import CARRY_LIMIT
from ggufrope.container.types import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_MAGIC = b"ggufrope journal 1\n"
_DIGEST_BYTES = 32
_LEAST_FILE = 24
"""Bytes of the shortest GGUF file: one without keys and tensors."""
_MAX_FIELDS_BYTES = 4 << 20
_MAX_CHECKED_BYTES = 1 << 29
MAX_RECORD_BYTES = CARRY_LIMIT + _MAX_FIELDS_BYTES + (1 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """The SHA-256 of some spans of a file, by which the file is recognized."""

    spans: tuple[Span, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The edit of a split model that a record is a part of: `size` files have one each.

    The `leader`'s record decides: once it is an undo record, the whole edit is finished; while it
    is a journal, all files go back to what they were. It is written first and removed last.
    """

    id: str
    size: int
    leader: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One edit in place.

    A `patched` file was written into, after the insertion if there is one; a `replaced` one was
    exchanged for a new file. `pieces` make up the old file: bytes, and spans of the new file.
    `old_checksum` and `new_checksum` cover what the edit changes, `samples` covers bytes of the
    new file that it did not touch.

    `number` orders the edits of a model, 0 in records of earlier versions; `first` is lower where
    older records were merged into this one. `new_mtime_ns` and `inodes` are the time of change and
    the inodes that the edited file may have; None and empty where they are not known.
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
    number: int = 0
    first: int = 0
    new_mtime_ns: int | None = None
    inodes: tuple[int, ...] = ()
    group: Group | None = None


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, with a checksum behind them."""
    held = [piece for piece in record.pieces if isinstance(piece, bytes)]
    group = record.group
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
        "number": record.number,
        "first": record.first,
        "new_mtime_ns": record.new_mtime_ns,
        "inodes": list(record.inodes),
        "group": group and [group.id, group.size, group.leader],
    }
    body = b"".join([_MAGIC, json.dumps(fields).encode(), b"\n", *held])
    return body + hashlib.sha256(body).digest()


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` turned into `data`.

    Raises ValueError on anything else, and where the record cannot be that of an edit: whoever
    wrote it may have meant harm, and the checksum only shows that it is whole.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("its checksum does not match")
    end = body.find(b"\n", len(_MAGIC)) + 1
    if not end or end > _MAX_FIELDS_BYTES:
        raise ValueError("its fields have no end or are too long")
    try:
        record = _decoded(json.loads(body[len(_MAGIC) : end]), body[end:])
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("a field is missing or has the wrong type") from error
    _require_possible(record)
    return record


def _decoded(fields: dict[str, Any], held: bytes) -> Record:
    pieces: list[Piece] = []
    at = 0
    for piece in fields["pieces"]:
        if isinstance(piece, list):
            pieces.append(_span(piece))
        else:
            length = _count(piece)
            pieces.append(held[at : at + length])
            at += length
    if at != len(held):
        raise ValueError("it does not hold the bytes that it names")
    room = None if fields["insertion"] is None else _span(fields["insertion"])
    group = fields.get("group")
    changed = fields.get("new_mtime_ns")
    return Record(
        kind=fields["kind"],
        old_size=_count(fields["old_size"]),
        new_size=_count(fields["new_size"]),
        old_mtime_ns=_time(fields["old_mtime_ns"]),
        insertion=None if room is None else Insertion(offset=room.offset, length=room.length),
        pieces=tuple(pieces),
        old_checksum=_checksum(fields["old_seal"]),
        new_checksum=_checksum(fields["new_seal"]),
        samples=_checksum(fields["samples"]),
        number=_count(fields.get("number", 0)),
        first=_count(fields.get("first", 0)),
        new_mtime_ns=None if changed is None else _time(changed),
        inodes=tuple(map(_inode, fields.get("inodes", ()))),
        group=None if group is None else _group(group),
    )


def _require_possible(record: Record) -> None:
    """Raise ValueError where no edit leaves such a record."""
    held = sum(len(piece) for piece in record.pieces if isinstance(piece, bytes))
    kept = [piece for piece in record.pieces if isinstance(piece, Span)]
    for what, wrong in (
        ("kind", record.kind not in ("patched", "replaced")),
        ("sizes", min(record.old_size, record.new_size) < _LEAST_FILE),
        ("old file", held > CARRY_LIMIT or held + _total(kept) != record.old_size),
        ("spans", not _within(kept, record.new_size)),
        ("old checksum", not _is_head(record.old_checksum, record.old_size)),
        ("new checksum", not _is_head(record.new_checksum, record.new_size)),
        ("samples", not _within(record.samples.spans, record.new_size)),
        ("number", not record.first <= record.number < 10**6),
        ("patches", record.kind == "patched" and not _is_patched(record, kept)),
        ("insertion", record.kind == "replaced" and record.insertion is not None),
    ):
        if wrong:
            raise ValueError(f"its {what} cannot be those of an edit")
    checked = (record.old_checksum, record.new_checksum, record.samples)
    if any(_total(checksum.spans) > _MAX_CHECKED_BYTES for checksum in checked):
        raise ValueError("its checksums cover more than those of an edit")


def _is_patched(record: Record, kept: Sequence[Span]) -> bool:
    """Return whether all that is kept stays in its place, and the edit wrote what it may write."""
    insertion = record.insertion
    if insertion is not None and (
        not insertion.length
        or insertion.offset > record.old_size
        or record.old_size + insertion.length > record.new_size
    ):
        return False
    offset = 0
    for piece in record.pieces:
        end = offset + piece_length(piece)
        if isinstance(piece, Span):
            if insertion is None:
                moved = 0
            elif offset < insertion.offset < end:
                return False
            else:
                moved = insertion.length if offset >= insertion.offset else 0
            if piece.offset != offset + moved:
                return False
        offset = end
    return record.new_size - _total(kept) <= CARRY_LIMIT


def _is_head(checksum: Checksum, size: int) -> bool:
    """Return whether a checksum covers the beginning of a file of `size` bytes."""
    spans = checksum.spans
    if not spans or spans[0].offset != 0 or spans[0].length < _LEAST_FILE:
        return False
    # A file without tensors may end before the padding that its header is counted with.
    head = min(spans[0].length, size)
    return _within(spans[1:], size) and head + _total(spans[1:]) <= size


def _within(spans: Sequence[Span], size: int) -> bool:
    return all(span.end <= size for span in spans) and _total(spans) <= size


def _total(spans: Iterable[Span]) -> int:
    return sum(span.length for span in spans)


def _piece_fields(piece: Piece) -> int | list[int]:
    return len(piece) if isinstance(piece, bytes) else [piece.offset, piece.length]


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a number is out of range")
    return value


def _inode(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 128:
        raise ValueError("an inode is out of range")
    return value


def _time(value: object) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a time is out of range")
    return value


def _span(fields: list[int]) -> Span:
    if len(fields) != 2:
        raise ValueError("a span is not two numbers")
    offset, length = fields
    return Span(offset=_count(offset), length=_count(length))


def _group(fields: list[Any]) -> Group:
    if len(fields) != 3:
        raise ValueError("its group is not three values")
    id_, size, leader = fields
    if not isinstance(id_, str) or not isinstance(leader, bool):
        raise ValueError("its group is not one")
    return Group(id=id_, size=_count(size), leader=leader)


def _checksum_fields(checksum: Checksum) -> list[Any]:
    return [[[span.offset, span.length] for span in checksum.spans], checksum.digest]


def _checksum(fields: list[Any]) -> Checksum:
    if len(fields) != 2:
        raise ValueError("a checksum is not spans and a digest")
    spans, digest = fields
    if not isinstance(digest, str):
        raise ValueError("a digest is not text")
    return Checksum(spans=tuple(map(_span, spans)), digest=digest)
