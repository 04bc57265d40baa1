"""Header + edits -> `Rewrite`: what the new file says, record by record. Touches no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container.ggml import data_length
from ggufrope.container.pieces import (
    Rewrite,
    encode_key_value,
    encode_tensor_info,
    merged,
    piece_length,
)
from ggufrope.container.reader import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAX_DIMENSIONS,
    MAX_KEY_VALUES,
    MAX_TENSORS,
    aligned,
)
from ggufrope.container.types import (
    PADDING_KEY,
    ArrayValue,
    Edits,
    Span,
    TensorData,
    TensorInfo,
    TypedValue,
    ValueType,
)
from ggufrope.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ggufrope.container.pieces import Piece
    from ggufrope.container.types import Header, KeyValue


MAX_TENSOR_NAME_BYTES = 63
MAX_ALIGNMENT = 1 << 20
"""Of a file that is edited: up to so many zeros are written in front of each tensor."""


def plan_rewrite(header: Header, edits: Edits, *, reserve: int | None = None) -> Rewrite:
    """Return what the file of `header` becomes under `edits`.

    `reserve` is how many bytes of header space to leave for later edits. Raises RequestError where
    an edit names what is not there, or what no file can hold.
    """
    if reserve is not None and not 0 <= reserve <= 1 << 30:
        raise RequestError(f"`reserve` of {reserve} bytes: expected 0 to {1 << 30}")
    _refuse_padding_edits(edits)
    padding = _own_padding(header)
    keys, records, padding_index = _key_values(header, edits, padding)
    alignment = _new_alignment(header, edits)
    if max(alignment, header.alignment) > MAX_ALIGNMENT:
        raise RequestError(
            f"{ALIGNMENT_KEY} is {max(alignment, header.alignment)}: a file can be edited that "
            f"aligns to at most {MAX_ALIGNMENT} bytes; convert the model again"
        )
    entries = _tensors(header, edits)
    if edits.touches_tensors or alignment != header.alignment:
        infos, data = _relaid(header, entries, alignment)
    else:
        infos = [tensor.span for tensor in header.tensors]
        data = [_tail(header, header.data_offset)]
    return Rewrite(
        source=header,
        keys=tuple(keys),
        tensor_names=tuple(entry.name for entry in entries),
        alignment=alignment,
        key_values=tuple(records),
        padding_index=padding_index,
        padding=padding,
        reserve=reserve,
        tensor_infos=tuple(infos),
        data=merged(data),
    )


def _refuse_padding_edits(edits: Edits) -> None:
    if PADDING_KEY in edits.set or PADDING_KEY in edits.remove:
        raise RequestError(f"{PADDING_KEY} cannot be edited; use `reserve` to leave header space")
    both = edits.set.keys() & edits.remove
    if both:
        raise RequestError(f"{min(both)} is both set and removed")


def _own_padding(header: Header) -> KeyValue | None:
    """Return the padding key-value. Raises RequestError where its key holds something else."""
    found = header.find(PADDING_KEY)
    if found is None:
        return None
    value = found.value
    if not isinstance(value, ArrayValue) or value.item_type is not ValueType.UINT8:
        raise RequestError(f"{PADDING_KEY} is not an array of UINT8 as expected; remove it first")
    return found


def _key_values(
    header: Header, edits: Edits, padding: KeyValue | None
) -> tuple[list[str], list[Piece], int]:
    """Return keys and records without the padding, and the index of the padding among them.

    New keys go in front of the padding: it can then be shortened without moving what follows it.
    """
    missing = edits.remove - {kv.key for kv in header.key_values}
    if missing:
        raise RequestError(f"there is no key {min(missing)} to remove")
    added = dict(edits.set)
    written: set[str] = set()
    keys: list[str] = []
    records: list[Piece] = []
    insert_at: int | None = None
    for kv in header.key_values:
        if kv is padding:
            insert_at = len(records)
        elif kv.key in edits.set:
            if kv.key not in written:  # duplicates of a key that is set are dropped
                keys.append(kv.key)
                records.append(_record(header, kv, added.pop(kv.key)))
                written.add(kv.key)
        elif kv.key not in edits.remove:
            keys.append(kv.key)
            records.append(kv.span)
    if insert_at is None:
        insert_at = len(records)
    new = [encode_key_value(key, value, header.byte_order) for key, value in added.items()]
    if len(records) + len(new) >= MAX_KEY_VALUES:
        raise RequestError(f"a file may have at most {MAX_KEY_VALUES} key-values")
    keys[insert_at:insert_at] = added
    records[insert_at:insert_at] = new
    return keys, records, insert_at + len(new)


def _record(header: Header, kv: KeyValue, wanted: TypedValue) -> Piece:
    """Return the record of a key that is set: the old one where it already says the same."""
    new = encode_key_value(kv.key, wanted, header.byte_order)
    old = kv.value
    if kv.type is not wanted.type or len(new) != kv.span.length:
        return new
    if not isinstance(old, ArrayValue):
        present = TypedValue(type=kv.type, value=old)
    elif old.items is not None:
        present = TypedValue(type=kv.type, value=old.items, item_type=old.item_type)
    else:
        return new
    same = encode_key_value(kv.key, present, header.byte_order) == new
    return kv.span if same else new


def _new_alignment(header: Header, edits: Edits) -> int:
    if ALIGNMENT_KEY in edits.remove:
        return DEFAULT_ALIGNMENT
    wanted = edits.set.get(ALIGNMENT_KEY)
    if wanted is None:
        return header.alignment
    value = wanted.value
    if (
        wanted.type is not ValueType.UINT32
        or not isinstance(value, int)
        or value <= 0
        or value & (value - 1)
    ):
        raise RequestError(f"{ALIGNMENT_KEY} must be a UINT32 power of two, not {value!r:.80}")
    return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of the new file; `content` is the old tensor, or the new data."""

    name: str
    content: TensorInfo | TensorData


def _tensors(header: Header, edits: Edits) -> list[_Entry]:
    _check_tensor_edits(header, edits)
    entries = []
    put = dict(edits.put_tensors)
    for tensor in header.tensors:
        if tensor.name not in edits.remove_tensors:
            name = edits.rename_tensors.get(tensor.name, tensor.name)
            entries.append(_Entry(name, put.pop(name, tensor)))
    entries += [_Entry(name, data) for name, data in put.items()]
    if edits.touches_tensors:
        names: set[str] = set()
        for entry in entries:
            if entry.name in names:
                raise RequestError(f"two tensors would be named {entry.name!r}")
            names.add(entry.name)
    if len(entries) > MAX_TENSORS:
        raise RequestError(f"a file may have at most {MAX_TENSORS} tensors")
    return entries


def _check_tensor_edits(header: Header, edits: Edits) -> None:
    names = {tensor.name for tensor in header.tensors}
    for name in sorted(edits.remove_tensors | edits.rename_tensors.keys()):
        if name not in names:
            raise RequestError(f"there is no tensor {name!r} to remove or rename")
        if name in edits.remove_tensors and name in edits.rename_tensors:
            raise RequestError(f"tensor {name!r} is both removed and renamed")
    for name in (*edits.rename_tensors.values(), *edits.put_tensors):
        if not 0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_TENSOR_NAME_BYTES:
            raise RequestError(f"tensor name {name!r} must have 1 to {MAX_TENSOR_NAME_BYTES} bytes")
    for name, tensor in edits.put_tensors.items():
        if len(tensor.shape) > MAX_DIMENSIONS or any(size < 0 for size in tensor.shape):
            raise RequestError(f"tensor {name!r} has the impossible shape {tensor.shape}")
        try:
            expected = data_length(tensor.type, tensor.shape)
        except ValueError as error:
            raise RequestError(f"tensor {name!r}: {error}") from error
        if expected is None:
            raise RequestError(f"tensor {name!r} has the unknown type {tensor.type}")
        if expected != len(tensor.data):
            raise RequestError(
                f"tensor {name!r} of shape {tensor.shape} takes {expected} bytes, "
                f"{len(tensor.data)} were given"
            )


def _relaid(
    header: Header, entries: Sequence[_Entry], alignment: int
) -> tuple[list[Piece], list[Piece]]:
    """Return tensor infos and data with contiguous, ascending offsets, as llama.cpp demands."""
    infos: list[Piece] = []
    data: list[Piece] = []
    present = {tensor.name: tensor for tensor in header.tensors}
    offset = written = 0
    for entry in entries:
        data.append(bytes(offset - written))
        written = offset
        content = entry.content
        if isinstance(content, TensorData):
            length = len(content.data)
            pieces: list[Piece] = [content.data, bytes(-length % alignment)]
        else:
            length = content.length
            pieces = [_with_pad(header, content, alignment)]
        infos.append(_info(header, present, entry, offset))
        data += pieces
        written += sum(map(piece_length, pieces))
        offset += aligned(length, alignment)
    trailing = _tail(header, data_end(header))
    if trailing.length:
        data += [bytes(offset - written), trailing]
    return infos, data


def _with_pad(header: Header, tensor: TensorInfo, alignment: int) -> Span:
    """Return the data of a tensor and the padding behind it, so that neighbors stay one span."""
    start = header.data_offset + tensor.offset
    length = aligned(tensor.length, alignment)
    if length > aligned(tensor.length, header.alignment):
        length = tensor.length
    # A tensor of no elements may begin behind the end of a file that was not padded.
    return Span(offset=start, length=max(min(length, header.file_size - start), 0))


def _info(header: Header, present: Mapping[str, TensorInfo], entry: _Entry, offset: int) -> Piece:
    """Return the record of a tensor: the old one where it already says the same."""
    content = entry.content
    found = present.get(entry.name)
    wanted = (content.shape, content.type, offset)
    if found and (found.shape, found.type, found.offset) == wanted:
        return found.span
    return encode_tensor_info(entry.name, content.shape, content.type, offset, header.byte_order)


def data_end(header: Header) -> int:
    """Return where tensor data and its final padding end; trailing bytes begin there."""
    ends = (aligned(tensor.offset + tensor.length, header.alignment) for tensor in header.tensors)
    return header.data_offset + max(ends, default=0)


def _tail(header: Header, start: int) -> Span:
    return Span(offset=start, length=max(header.file_size - start, 0))
