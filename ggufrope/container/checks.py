"""Findings about the layout of a file that can be read: all of them together.

They are about keys, tensor infos and file size, not about what the keys mean. A finding has the
fields of the findings about RoPE settings (`rope.lint.Finding`), so that `inspect` and `check` show
both in one list.
"""

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


MAPPED_ALIGNMENT = 32
"""The address of a mapped buffer has to be a multiple of this: TENSOR_ALIGNMENT of
ggml/src/ggml-impl.h, asserted in ggml-backend.cpp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFinding:
    """One thing that is wrong or unusual in the layout.

    `code` names the kind of finding and stays the same between versions. An `error` keeps llama.cpp
    from loading the file (ggml/src/gguf.cpp), an `info` is harmless. `key` is the key or the tensor
    it is about, empty where it is about the whole file.
    """

    code: str
    severity: Literal["error", "info"]
    key: str
    message: str


def layout_findings(header: Header) -> tuple[LayoutFinding, ...]:
    """Return everything in the layout that llama.cpp refuses, or that is unusual, errors first.

    Codes: big-endian, misaligned-data, duplicate-key, empty-key, not-utf8, nested-array,
    duplicate-tensor, long-tensor-name, unknown-type, unusable-type, tensor-offset,
    trailing-bytes, no-final-padding.
    """
    found = (*_key_findings(header), *_tensor_findings(header), *_end_findings(header))
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _error(code: str, key: str, message: str) -> LayoutFinding:
    return LayoutFinding(code=code, severity="error", key=key, message=message)


def _info(code: str, key: str, message: str) -> LayoutFinding:
    return LayoutFinding(code=code, severity="info", key=key, message=message)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_findings(header: Header) -> Iterator[LayoutFinding]:
    if header.byte_order == ">":
        yield _error(
            "big-endian",
            "",
            "the file is big-endian: llama.cpp loads it on big-endian machines alone; convert it "
            "with llama.cpp's gguf_convert_endian.py",
        )
    for key, times in Counter(kv.key for kv in header.key_values).items():
        if times > 1:
            yield _error(
                "duplicate-key", key, f"key {key!r} occurs {times} times; it may occur once"
            )
        if not key:
            yield _error("empty-key", key, "a key has an empty name")
    for kv in header.key_values:
        if not _is_utf8(kv.key) or (isinstance(kv.value, str) and not _is_utf8(kv.value)):
            yield _info("not-utf8", kv.key, f"{kv.key!r} or its value is not valid UTF-8")
        if isinstance(kv.value, ArrayValue) and kv.value.item_type is ValueType.ARRAY:
            yield _error(
                "nested-array",
                kv.key,
                f"key {kv.key!r} is an array of arrays, which llama.cpp refuses",
            )


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
            yield _error(
                "unknown-type",
                name,
                f"tensor {name!r} has the type {tensor.type}, which llama.cpp does not know",
            )
        if tensor.type in ggml.NO_WEIGHTS and len(tensor.shape) > 1 and name.endswith(".weight"):
            yield _error(
                "unusable-type",
                name,
                f"tensor {name!r} is of type {ggml.TYPES[tensor.type].name}: llama.cpp cannot "
                "multiply by such weights, and crashes; quantize the model again",
            )
        if tensor.offset != expected:
            yield _error(
                "tensor-offset", name, f"tensor {name!r} is at {tensor.offset}, expected {expected}"
            )
        expected = aligned(tensor.offset + tensor.length, header.alignment)


def _end_findings(header: Header) -> Iterator[LayoutFinding]:
    if not header.tensors:
        return
    start = header.data_offset + header.tensors[0].offset
    if start % MAPPED_ALIGNMENT:
        yield _error(
            "misaligned-data",
            "general.alignment",
            f"the tensors start at byte {start}, no multiple of {MAPPED_ALIGNMENT} (alignment "
            f"{header.alignment}): llama.cpp aborts when it maps the file; write it again with an "
            f"alignment of {MAPPED_ALIGNMENT}",
        )
    end = data_end(header)
    if header.file_size > end:
        extra = header.file_size - end
        yield _info("trailing-bytes", "", f"{extra} bytes follow the tensor data; edits keep them")
    elif header.file_size < end:
        yield _info(
            "no-final-padding", "", f"the last {end - header.file_size} bytes of padding are absent"
        )
