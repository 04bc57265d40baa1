"""What is known about one edit in place, and its bytes on disk.

Format: a line naming it, a line of JSON, the carried bytes, and the SHA-256 of all that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from ggufrope.container.composition import Piece
from ggufrope.container.inplace import Insertion
from ggufrope.container.types import Span

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
