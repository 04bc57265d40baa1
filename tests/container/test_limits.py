"""What a header's numbers decide is bounded before it is allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import pytest

from ggufrope.container.reader import MAX_DECODED_TOTAL, parse_header, read_array, read_header
from ggufrope.container.types import ArrayValue, Edits, TypedValue, ValueType
from ggufrope.container.writer import MAX_ALIGNMENT, plan_rewrite
from ggufrope.errors import MalformedError, RequestError
from ggufrope.patching.inspection import inspect


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def string(name: bytes, value: bytes) -> bytes:
    return key(name, 8, text(value))


def number(name: bytes, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def header(*keys: bytes) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)
    return start + bytes(-len(start) % 32)


def int8_array(name: bytes, count: int) -> bytes:
    return key(name, 9, struct.pack("<IQ", 1, count) + b"\x9c" * count)


LLAMA = (
    string(b"general.architecture", b"llama"),
    number(b"llama.context_length", 2048),
    number(b"llama.embedding_length", 64),
    number(b"llama.attention.head_count", 2),
    number(b"llama.block_count", 1),
)


def test_small_numbers_in_many_arrays_take_no_more_than_stated(tmp_path: Path) -> None:
    arrays = tuple(int8_array(b"k%d" % n, 1024) for n in range(4000))
    path = tmp_path / "m.gguf"
    path.write_bytes(header(*LLAMA, *arrays))
    tracemalloc.start()
    try:
        found = read_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
    values = [kv.value for kv in found.key_values if isinstance(kv.value, ArrayValue)]
    assert len(values) == 4000
    decoded = [value for value in values if value.items is not None]
    assert len(decoded) == MAX_DECODED_TOTAL // 1024
    assert read_array(path, found, found.key_values[-1]) == (-100,) * 1024


def test_text_is_bounded_in_all() -> None:
    data = header(*(string(b"k%d" % n, bytes(12 << 20)) for n in range(3)))
    with pytest.raises(MalformedError, match="past 33554432 bytes of text"):
        parse_header(io.BytesIO(data), len(data))


def test_arrays_inside_arrays_are_bounded() -> None:
    nest = struct.pack("<IQ", 9, 70_000) + struct.pack("<IQ", 4, 0) * 70_000
    data = header(key(b"n", 9, nest))
    with pytest.raises(MalformedError, match="past 65536 arrays inside arrays"):
        parse_header(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((string(b"general.architecture", b"\xff" * 5000),), "has 5000 characters"),
        ((*LLAMA, string(b"llama.rope.scaling.type", b"x" * 5000)), "string of 5000 characters"),
        ((*LLAMA, string(b"llama.rope.dimension_count", b"x" * 5000)), "string of 5000 characters"),
    ],
)
def test_settings_of_any_length_are_refused(
    tmp_path: Path, keys: tuple[bytes, ...], message: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(*keys))
    with pytest.raises(MalformedError, match=message) as caught:
        inspect(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("power", [21, 28, 31])
def test_a_file_is_not_filled_up_to_an_absurd_alignment(power: int) -> None:
    data = header(*LLAMA, number(b"general.alignment", 1 << power))
    found = parse_header(io.BytesIO(data), len(data))
    edits = Edits(set={"x": TypedValue(type=ValueType.UINT32, value=1)})
    assert 1 << power > MAX_ALIGNMENT
    with pytest.raises(RequestError, match=f"aligns to at most {MAX_ALIGNMENT} bytes"):
        plan_rewrite(found, edits)
