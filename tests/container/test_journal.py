"""Records of edits: their bytes are read back, stay readable, and are not trusted when damaged."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ggufrope.container.pieces import Insertion
from ggufrope.container.record import Checksum, Group, Record, decode_record, encode_record
from ggufrope.container.recovery import recover, undo
from ggufrope.container.types import Span
from ggufrope.errors import StorageError
from tests.container.writer import small_model

if TYPE_CHECKING:
    from pathlib import Path

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
    number=3,
    first=2,
    new_mtime_ns=1_700_000_001_000_000_000,
    inodes=(17, 18),
    group=Group(id="c0ffee", size=2, leader=True),
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
"""A record as earlier versions wrote it."""
MORE = {
    "number": 3,
    "first": 2,
    "new_mtime_ns": 1_700_000_001_000_000_000,
    "inodes": [17, 18],
    "group": ["c0ffee", 2, True],
}
"""What was added since."""


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, insertion=None, pieces=(b"old\nbytes", Span(offset=9, length=91))),
        replace(
            RECORD,
            kind="replaced",
            insertion=None,
            pieces=(Span(offset=7, length=100),),
            group=None,
        ),
        replace(RECORD, pieces=(b"", b"\0\n" * 50, Span(offset=4196, length=0))),
    ],
)
def test_a_record_is_read_back(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


def test_the_format_on_disk_stays() -> None:
    """Records that an earlier version left must still be usable."""
    data = sealed(b"ggufrope journal 1\n" + json.dumps(FIELDS).encode() + b"\nold\nbytes")
    old = replace(RECORD, number=0, first=0, new_mtime_ns=None, inodes=(), group=None)
    assert decode_record(data) == old
    fields = json.dumps(FIELDS | MORE).encode()
    assert encode_record(RECORD) == sealed(b"ggufrope journal 1\n" + fields + b"\nold\nbytes")


def test_a_damaged_record_is_refused() -> None:
    data = encode_record(RECORD)
    assert len(data) > 400
    for at in range(0, len(data), 7):
        with pytest.raises(ValueError, match="checksum"):
            decode_record(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            decode_record(data[:at])
    with pytest.raises(ValueError, match="a field is missing"):
        decode_record(sealed(b"ggufrope journal 1\n{}\n"))


IMPOSSIBLE = {
    "a kind": {"kind": "x"},
    "a kind of another type": {"kind": []},
    "no object for fields": None,
    "a size below a header": {"old_size": 23},
    "a negative size": {"new_size": -1},
    "a size as text": {"old_size": "100"},
    "a size beyond any disk": {"new_size": 1 << 63},
    "a size as a fraction": {"old_size": 100.0},
    "a size as a truth value": {"old_size": True},
    "pieces that do not add up": {"pieces": [9, [4105, 90]]},
    "bytes that are not there": {"pieces": [10, [4105, 90]]},
    "a piece past the end": {"pieces": [9, [4106, 91]]},
    "a piece that is not in its place": {"pieces": [9, [4000, 91]]},
    "a piece of a negative length": {"pieces": [9, [4105, 92], -1]},
    "pieces that are an object": {"pieces": {"a": 1}},
    "an insertion of nothing": {"insertion": [0, 0]},
    "an insertion with one number": {"insertion": [1]},
    "an insertion behind the end": {"insertion": [200, 4096]},
    "an insertion in a new file": {"kind": "replaced"},
    "a time beyond any clock": {"old_mtime_ns": 1 << 63},
    "no old header": {"old_seal": [[], "0" * 64]},
    "an old header elsewhere": {"old_seal": [[[8, 64]], "0" * 64]},
    "an old header past the end": {"old_seal": [[[0, 64], [64, 200]], "0" * 64]},
    "a new header that is read twice": {"new_seal": [[[0, 4160], [0, 100]], "1" * 64]},
    "samples past the end": {"samples": [[[1 << 60, 10]], "2" * 64]},
    "samples that are read again and again": {"samples": [[[0, 4196], [0, 1]], "2" * 64]},
    "samples of a negative length": {"samples": [[[0, -1]], "2" * 64]},
    "a digest that is none": {"samples": [[], None]},
    "a number below the first": {"number": 1},
    "an inode as text": {"inodes": ["a"]},
    "a group that is text": {"group": "abc"},
    "fields nested without end": [[]],
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
@pytest.mark.parametrize("kind", ["journal", "undo-000003", "undo"])
def test_a_record_that_no_edit_leaves_is_refused(
    tmp_path: Path, change: dict[str, object] | list[object] | None, kind: str
) -> None:
    """Its checksum is right: whoever put it there wanted it to be used."""
    if isinstance(change, dict):
        fields = json.dumps(FIELDS | MORE | change).encode()
    elif isinstance(change, list):
        fields = b"[" * 100_000
    else:
        fields = b"null"
    data = sealed(b"ggufrope journal 1\n" + fields + b"\nold\nbytes")
    with pytest.raises(ValueError, match=r"a field|cannot be those|out of range|does not|is not"):
        decode_record(data)
    path = tmp_path / "m.gguf"
    model = small_model().encoded()
    path.write_bytes(model)
    (tmp_path / f".m.gguf.ggufrope-{kind}").write_bytes(data)
    with pytest.raises(StorageError, match="is damaged and cannot be used") as caught:
        undo(path, force={"in-use"})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == model


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["journal", "undo-000001"])
@pytest.mark.parametrize("what", ["pipe", "folder", "link", "endless"])
def test_a_record_that_is_no_file_is_refused(tmp_path: Path, kind: str, what: str) -> None:
    path, hidden = tmp_path / "m.gguf", tmp_path / f".m.gguf.ggufrope-{kind}"
    model = small_model().encoded()
    path.write_bytes(model)
    if what == "pipe":
        os.mkfifo(hidden)
    elif what == "folder":
        hidden.mkdir()
    elif what == "link":
        hidden.symlink_to(path)
    else:
        with hidden.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(StorageError, match=r"is not a regular file|too many for a record"):
        undo(path, force={"in-use"})
    assert path.read_bytes() == model


def test_a_record_that_leads_to_no_model_is_refused(tmp_path: Path) -> None:
    """All its numbers fit, and it would cut the file down to 24 bytes."""
    path = tmp_path / "m.gguf"
    model = small_model().encoded()
    path.write_bytes(model)
    size, nothing = len(model), hashlib.sha256().hexdigest()
    for old in (b"X" * 24, b"GGUF" + b"\xff" * 20):
        record = replace(
            RECORD,
            old_size=24,
            new_size=size,
            insertion=None,
            pieces=(old,),
            old_checksum=Checksum(
                spans=(Span(offset=0, length=24),), digest=hashlib.sha256(old).hexdigest()
            ),
            new_checksum=Checksum(spans=(Span(offset=0, length=size),), digest="0" * 64),
            samples=Checksum(spans=(), digest=nothing),
            group=None,
        )
        (tmp_path / ".m.gguf.ggufrope-journal").write_bytes(encode_record(record))
        with pytest.raises(StorageError, match="does not lead back to a GGUF file"):
            recover(path)
        assert path.read_bytes() == model
