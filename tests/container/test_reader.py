"""The reader on literal bytes, on every truncation, and on false counts and lengths."""

from __future__ import annotations

import io
import struct
from dataclasses import fields
from typing import TYPE_CHECKING, get_args, get_type_hints

import pytest

from ggufrope.container.checks import LayoutFinding, layout_findings
from ggufrope.container.reader import parse_header, read_array, read_header, read_tensor
from ggufrope.container.types import ArrayValue, ValueType
from ggufrope.errors import MalformedError, StorageError
from ggufrope.rope.lint import Finding, Severity
from tests.container.writer import ARRAY, STRING, Model, Tensor, small_model

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.types import Header

MINIMAL = b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7)
KEY = b"\x03\0\0\0\0\0\0\0a.b"


def parse(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), len(data))


def test_literal_scalar() -> None:
    header = parse(MINIMAL + KEY + b"\x04\0\0\0" + b"\x2a\0\0\0")
    (kv,) = header.key_values
    assert (kv.key, kv.type, kv.value) == ("a.b", ValueType.UINT32, 42)
    assert (kv.span.offset, kv.span.end) == (24, 43)
    assert (header.version, header.byte_order, header.data_offset) == (3, "<", 64)


def test_literal_big_endian() -> None:
    data = (
        b"GGUF\0\0\0\x03" + bytes(15) + b"\x01" + b"\0\0\0\0\0\0\0\x03a.b" + b"\0\0\0\x04\0\0\x01\0"
    )
    header = parse(data)
    assert (header.byte_order, header.get("a.b")) == (">", 256)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_everything_a_file_has(order: str, version: int, tmp_path: Path) -> None:
    model = small_model(order=order, version=version)
    path = tmp_path / "m.gguf"
    path.write_bytes(model.encoded())
    header = read_header(path)
    assert header.version == version
    assert header.architecture == "llama"
    assert header.get("llama.rope.freq_base") == 10000.0
    assert header.get("general.quantized") is True
    assert header.data_offset == len(model.encoded()) - len(model.data())
    heads = header.get("llama.attention.head_count_kv")
    assert isinstance(heads, ArrayValue)
    assert heads.items == (3, 4)
    tokens = header.find("tokenizer.ggml.tokens")
    assert tokens is not None
    assert isinstance(tokens.value, ArrayValue)
    assert tokens.value.items is None
    assert read_array(path, header, tokens) == ("<s>", "", "a\n", "\udcff\udcfe", "é")
    for tensor in model.tensors:
        assert read_tensor(path, header, tensor.name) == tensor.data
    found = {finding.code for finding in layout_findings(header)}
    assert found == ({"big-endian"} if order == ">" else set())


def test_truncation_anywhere_is_malformed() -> None:
    data = small_model(final_padding=False).encoded()
    assert parse(data).tensors
    for length in range(len(data)):
        with pytest.raises(MalformedError) as caught:
            parse(data[:length])
        assert caught.value.offset is not None
        assert "\n" not in str(caught.value)


U64_MAX = b"\xff" * 8


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"GG", "ends inside the magic"),
        (b"ggml" + bytes(40), "not a GGUF file"),
        (b"\x80\x04PK" + bytes(40), "not a GGUF file"),
        (b"GGUF\x01\0\0\0" + bytes(40), "version 1 is not supported"),
        (b"GGUF\x09\0\0\0" + bytes(40), "version 9 is not supported"),
        (b"GGUF\0\0\0\0" + bytes(40), "version 0 is not supported"),
        (b"GGUF\x03\0\0\0" + U64_MAX + bytes(40), "tensors are more than"),
        (b"GGUF\x03\0\0\0" + bytes(8) + U64_MAX, "key-values are more than"),
        (MINIMAL + U64_MAX + bytes(9), "a key claims"),
        (MINIMAL + b"\xff\xff" + bytes(6) + bytes(9), "ends inside a key"),
        (MINIMAL + KEY + b"\x0d\0\0\0" + bytes(9), "unknown value type 13"),
        (MINIMAL + KEY + b"\x08\0\0\0" + U64_MAX, "claims"),
        (MINIMAL + KEY + b"\x09\0\0\0\x04\0\0\0" + U64_MAX, "more than the file can hold"),
        (MINIMAL + KEY + b"\x09\0\0\0\x08\0\0\0\x01" + bytes(7) + U64_MAX, "past the end"),
        (MINIMAL + KEY + (b"\x09\0\0\0" * 6) + bytes(99), "more than the file can hold"),
    ],
)
def test_false_counts_and_lengths_are_malformed(data: bytes, says: str) -> None:
    with pytest.raises(MalformedError, match=says):
        parse(data)


@pytest.mark.parametrize("alignment", [0, 3, 33, 1 << 31])
def test_impossible_alignment(alignment: int) -> None:
    model = small_model()
    model.metadata.append(("general.alignment", 4, alignment))
    with pytest.raises(MalformedError):
        parse(model.encoded())


def test_alignment_of_another_type() -> None:
    model = Model(metadata=[("general.alignment", 10, 32)])
    with pytest.raises(MalformedError, match="UINT64, expected UINT32"):
        parse(model.encoded())


def test_deep_nesting_ends() -> None:
    value: tuple[int, list[object]] = (4, [])
    for _ in range(3):
        value = (ARRAY, [value])
    assert parse(Model(metadata=[("k", ARRAY, value)]).encoded()).find("k")
    with pytest.raises(MalformedError, match="nests arrays deeper"):
        parse(Model(metadata=[("k", ARRAY, (ARRAY, [value]))]).encoded())


def test_tensor_beyond_the_file() -> None:
    data = small_model(trailing=b"").encoded()
    with pytest.raises(MalformedError, match=r"output_norm\.weight"):
        parse(data[:-20])
    assert parse(data[:-16]).tensors


@pytest.mark.parametrize("shape", [(1 << 62, 4), (1 << 63,), (33, 1)])
def test_absurd_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError):
        parse(Model(tensors=[Tensor("t", shape, bytes(64), 2)]).encoded())


def test_unknown_tensor_type_reaches_to_its_neighbor() -> None:
    model = Model(
        tensors=[
            Tensor("a", (3,), bytes(70), 999),
            Tensor("b", (8,), bytes(32)),
            Tensor("c", (1,), bytes(9), 998),
        ],
        final_padding=False,
    )
    header = parse(model.encoded())
    assert [tensor.length for tensor in header.tensors] == [96, 32, 9]


def test_findings_come_together() -> None:
    model = small_model(trailing=b"tail")
    model.metadata += [("dup", 4, 1), ("dup", 4, 2), ("bad", STRING, "\udcff"), ("", 4, 1)]
    model.metadata.append(("nested", ARRAY, (ARRAY, [(4, [1])])))
    model.tensors[:0] = [Tensor("x" * 64, (1,), bytes(4), 77), Tensor("x" * 64, (1,), bytes(4))]
    found = layout_findings(parse(model.encoded()))
    codes = {finding.code for finding in found}
    assert codes == {
        "duplicate-key", "duplicate-tensor", "not-utf8", "empty-key", "nested-array",
        "long-tensor-name", "unknown-type", "trailing-bytes",
    }  # fmt: skip
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities), "errors first"
    assert {finding.code for finding in found if finding.severity == "info"} == {
        "not-utf8", "trailing-bytes",
    }  # fmt: skip
    (finding,) = layout_findings(parse(small_model(trailing=b"tail").encoded()))
    assert (finding.code, finding.severity, finding.key) == ("trailing-bytes", "info", "")


def test_layout_findings_have_the_fields_of_findings_about_rope() -> None:
    """So that `inspect` shows both in one list."""
    (found,) = layout_findings(parse(small_model(trailing=b"tail").encoded()))
    shown = Finding(**{field.name: getattr(found, field.name) for field in fields(found)})
    assert (shown.code, shown.message) == (found.code, found.message)
    assert [field.name for field in fields(found)] == [field.name for field in fields(shown)]
    severities = set(get_args(get_type_hints(LayoutFinding)["severity"]))
    assert severities == {"error", "info"} <= set(get_args(Severity))


def test_offsets_out_of_order_are_read_and_reported() -> None:
    model = small_model()
    data = bytearray(model.encoded())
    at = data.index(struct.pack("<IQ", 0, 96))  # type and offset of the second tensor
    data[at : at + 12] = struct.pack("<IQ", 0, 64)
    header = parse(bytes(data))
    assert [f.key for f in layout_findings(header) if f.code == "tensor-offset"]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a directory"):
        read_header(tmp_path)
    with pytest.raises(StorageError, match="No such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(StorageError, match="not a regular file"):
        read_header("/dev/null")
    (tmp_path / "bad.gguf").write_bytes(b"nope")
    with pytest.raises(MalformedError, match=r"bad\.gguf: not a GGUF file") as caught:
        read_header(tmp_path / "bad.gguf")
    assert caught.value.offset == 0


def test_long_string_arrays_cross_the_reading_window() -> None:
    tokens = [("t" * (n % 300)) for n in range(6000)]
    data = Model(metadata=[("a", ARRAY, (STRING, tokens)), ("b", 4, 7)]).encoded()
    header = parse(data)
    assert header.get("b") == 7
    assert header.key_values[0].span.length == len(data) - 24 - 8 - 1 - 4 - 4
