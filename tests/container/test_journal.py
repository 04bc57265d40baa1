"""Records of edits: their bytes are read back, stay readable, and are not trusted when damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from ggufrope.container.journal import Checksum, Record, decode_record, encode_record
from ggufrope.container.pieces import Insertion
from ggufrope.container.types import Span

RECORD = Record(
    kind="patched",
    old_size=100,
    new_size=4196,
    old_mtime_ns=1_700_000_000_000_000_007,
    insertion=Insertion(offset=0, length=4096),
    pieces=(b"old\nbytes", Span(offset=4105, length=91)),
    old_checksum=Checksum(spans=(Span(offset=0, length=64),), digest="0" * 64),
    new_checksum=Checksum(spans=(Span(offset=0, length=4160),), digest="1" * 64),
    samples=Checksum(spans=(), digest="2" * 64),
)
FIELDS = {
    "kind": "patched",
    "old_size": 100,
    "new_size": 4196,
    "old_mtime_ns": 1_700_000_000_000_000_007,
    "insertion": [0, 4096],
    "pieces": [9, [4105, 91]],
    "old_seal": [[[0, 64]], "0" * 64],
    "new_seal": [[[0, 4160]], "1" * 64],
    "samples": [[], "2" * 64],
}
"""The same record as format 1 has it on disk."""


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, insertion=None),
        replace(RECORD, kind="replaced", pieces=(Span(offset=0, length=100),)),
        replace(RECORD, pieces=(b"", b"\0\n" * 8, Span(offset=0, length=0))),
    ],
)
def test_a_record_is_read_back(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


def test_the_format_on_disk_stays() -> None:
    """Records that an earlier version left must still be usable."""
    data = sealed(b"ggufrope journal 1\n" + json.dumps(FIELDS).encode() + b"\nold\nbytes")
    assert encode_record(RECORD) == data
    assert decode_record(data) == RECORD


def test_a_damaged_record_is_refused() -> None:
    data = encode_record(RECORD)
    assert len(data) > 400
    for at in range(0, len(data), 7):
        with pytest.raises(ValueError, match="checksum"):
            decode_record(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            decode_record(data[:at])
    with pytest.raises(KeyError):
        decode_record(sealed(b"ggufrope journal 1\n{}\n"))
