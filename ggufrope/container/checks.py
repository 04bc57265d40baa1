"""What is odd about a file that can be read: all of it, as findings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggufrope.container import ggml
from ggufrope.container.reader import aligned
from ggufrope.container.types import ArrayValue, ValueType
from ggufrope.container.writer import MAX_TENSOR_NAME_BYTES, data_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.container.types import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFinding:
    """`error`: llama.cpp refuses the file. `note`: it loads, and an editor should know.

    `subject` is the key or tensor it is about, empty where it is about the file.
    """

    code: str
    severity: Literal["error", "note"]
    subject: str
    message: str


def layout_findings(header: Header) -> tuple[LayoutFinding, ...]:
    """Everything in the layout that llama.cpp refuses (ggml/src/gguf.cpp) or writers omit."""
    return (*_key_findings(header), *_tensor_findings(header), *_end_findings(header))


def _error(code: str, subject: str, message: str) -> LayoutFinding:
    return LayoutFinding(code=code, severity="error", subject=subject, message=message)


def _note(code: str, subject: str, message: str) -> LayoutFinding:
    return LayoutFinding(code=code, severity="note", subject=subject, message=message)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_findings(header: Header) -> Iterator[LayoutFinding]:
    if header.byte_order == ">":
        yield _note("big-endian", "", "the file is big-endian: only big-endian builds load it")
    for key, times in Counter(kv.key for kv in header.key_values).items():
        if times > 1:
            yield _error("duplicate-key", key, f"{key} occurs {times} times; the first one counts")
        if not key:
            yield _error("empty-key", key, "a key is empty")
    for kv in header.key_values:
        if not _is_utf8(kv.key) or (isinstance(kv.value, str) and not _is_utf8(kv.value)):
            yield _note("not-utf8", kv.key, f"{kv.key!r} or its value is not valid UTF-8")
        if isinstance(kv.value, ArrayValue) and kv.value.item_type is ValueType.ARRAY:
            yield _error("nested-array", kv.key, f"{kv.key} is an array of arrays")


def _tensor_findings(header: Header) -> Iterator[LayoutFinding]:
    for name, times in Counter(tensor.name for tensor in header.tensors).items():
        if times > 1:
            yield _error("duplicate-tensor", name, f"tensor {name!r} occurs {times} times")
    expected = 0
    for tensor in header.tensors:
        name = tensor.name
        if len(name.encode("utf-8", "surrogateescape")) > MAX_TENSOR_NAME_BYTES:
            yield _error("long-tensor-name", name, f"tensor name {name!r} has over 63 bytes")
        if tensor.type not in ggml.TYPES:
            yield _note("unknown-type", name, f"tensor {name!r} has the unknown type {tensor.type}")
        if tensor.offset != expected:
            yield _error(
                "tensor-offset", name, f"tensor {name!r} is at {tensor.offset}, expected {expected}"
            )
        expected = aligned(tensor.offset + tensor.length, header.alignment)


def _end_findings(header: Header) -> Iterator[LayoutFinding]:
    if not header.tensors:
        return
    end = data_end(header)
    if header.file_size > end:
        extra = header.file_size - end
        yield _note("trailing-bytes", "", f"{extra} bytes follow the tensor data; edits keep them")
    elif header.file_size < end:
        yield _note(
            "no-final-padding", "", f"the last {end - header.file_size} bytes of padding are absent"
        )
