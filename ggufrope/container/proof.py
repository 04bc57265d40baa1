"""Rereads what an edit wrote, and compares it with what was planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from ggufrope.container.composition import piece_length
from ggufrope.container.edits import PADDING_KEY
from ggufrope.container.reader import parse_header
from ggufrope.container.types import Span
from ggufrope.errors import GgufRopeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ggufrope.container.composition import Composition, Rewrite
    from ggufrope.container.files import FileLayer
    from ggufrope.container.types import Header

_CHUNK = 1 << 20
_SAMPLE = 4096
_SAMPLES = 64


def prove_header(file: BinaryIO, rewrite: Rewrite, composition: Composition, path: Path) -> Header:
    """Parses the new file and holds keys, tensors, data offset and size against the plan."""
    size = file.seek(0, 2)
    file.seek(0)
    try:
        header = parse_header(file, size)
    except GgufRopeError as error:
        raise StorageError(f"proof failed, {path} was not written: {error}") from error
    padding = (PADDING_KEY,) if composition.padding is not None else ()
    at = rewrite.padding_index
    keys = (*rewrite.keys[:at], *padding, *rewrite.keys[at:])
    planned = (keys, rewrite.tensor_names, composition.data_offset, composition.size)
    found = (
        tuple(kv.key for kv in header.key_values),
        tuple(tensor.name for tensor in header.tensors),
        header.data_offset,
        size,
    )
    if planned != found:
        raise StorageError(f"proof failed, {path} was not written: its header is not as planned")
    return header


def prove_pieces(
    files: FileLayer,
    source: BinaryIO,
    target: BinaryIO,
    composition: Composition,
    path: Path,
    *,
    whole: bool,
) -> None:
    """Compares a new file with the old one it was made from, piece by piece.

    The header and all new bytes are always compared in full; of copied tensor data, samples
    spread over each span and its two ends, or with `whole` every byte.
    """
    offset = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            sampled = not whole and offset >= composition.data_offset
            for at, length in _ranges(piece.length, sampled=sampled):
                old = files.read(source, piece.offset + at, length)
                _compare(files.read(target, offset + at, length), old, offset + at, path)
        else:
            _compare(files.read(target, offset, len(piece)), piece, offset, path)
        offset += piece_length(piece)


def _ranges(length: int, *, sampled: bool) -> Iterator[tuple[int, int]]:
    if sampled and length > _SAMPLES * _SAMPLE:
        step = (length - _SAMPLE) // (_SAMPLES - 1)
        for number in range(_SAMPLES - 1):
            yield number * step, _SAMPLE
        yield length - _SAMPLE, _SAMPLE
    else:
        for at in range(0, length, _CHUNK):
            yield at, min(_CHUNK, length - at)


def _compare(found: bytes, expected: bytes, offset: int, path: Path) -> None:
    if found != expected:
        raise StorageError(
            f"proof failed, {path} was not written: bytes at {offset} differ from the plan"
        )
