"""Rereads what an edit wrote, and compares it with what was planned."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.filesystem import (
    COPY_CHUNK,
    UNSUPPORTED,
    RefusedError,
    lock,
    partial_path,
    write_all,
)
from ggufrope.container.pieces import piece_length, settle
from ggufrope.container.reader import parse_header
from ggufrope.container.types import PADDING_KEY, Span
from ggufrope.errors import GgufRopeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ggufrope.container.filesystem import FileLayer
    from ggufrope.container.pieces import Composition, Rewrite
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


# Writes a new file from a composition: a temporary sibling, proved, then renamed into place.


@contextmanager
def built(
    files: FileLayer,
    source: BinaryIO,
    target: Path,
    composition: Composition,
    *,
    clone: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[BinaryIO]:
    """The composition as a file beside `target`, locked, not yet synced; removed again when the
    body raises anything. Raises RefusedError where `clone` is wanted and cannot be had."""
    whole = clone and files.clones_whole_files
    with partial_file(files, target, clone_of=source if whole else None) as file:
        try:
            if whole:
                _turn_clone(files, source, file, composition, progress)
            else:
                block = files.block_size(target) if clone else None
                write_pieces(files, source, file, composition, clone_block=block, progress=progress)
        except OSError as error:
            if clone and error.errno in UNSUPPORTED:
                raise RefusedError(error.strerror) from error
            raise
        yield file


@contextmanager
def partial_file(
    files: FileLayer, target: Path, *, clone_of: BinaryIO | None = None
) -> Iterator[BinaryIO]:
    """A locked file beside `target`, empty or a clone; removed again when the body raises."""
    path = partial_path(target)
    with storage("write", path), files.create(path) as file:
        lock(file, path)
        try:
            if clone_of is None:
                files.resize(file, 0)
                yield file
            else:
                files.remove(path)
                files.clone_file(Path(clone_of.name), path)
                with files.open(path, "r+b") as clone:
                    lock(clone, path)
                    yield clone
        except BaseException:
            with suppress(OSError):
                files.remove(path)
            raise


def write_pieces(
    files: FileLayer,
    source: BinaryIO,
    target: BinaryIO,
    composition: Composition,
    *,
    clone_block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fills `target` with the composition; with `clone_block`, blocks that line up are shared."""
    offset = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            for start, length, shared in _stretches(piece, offset, clone_block):
                if shared:
                    files.clone_range(source, start, length, target, offset)
                else:
                    _copy(files, source, start, length, target, offset, composition.size, progress)
                offset += length
        else:
            write_all(files, target, offset, piece)
            offset += piece_length(piece)
        if progress is not None:
            progress(offset, composition.size)


def _turn_clone(
    files: FileLayer,
    source: BinaryIO,
    clone: BinaryIO,
    composition: Composition,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Makes a clone of `source` the composition by writing what stands elsewhere or nowhere."""
    for patch in settle(composition.pieces, None)[1]:
        piece, offset = patch.piece, patch.offset
        if isinstance(piece, Span):
            start, length = piece.offset, piece.length
            _copy(files, source, start, length, clone, offset, composition.size, progress)
        else:
            write_all(files, clone, offset, piece)
    files.resize(clone, composition.size)


def _stretches(span: Span, offset: int, clone_block: int | None) -> Iterator[tuple[int, int, bool]]:
    """A span as (source offset, length, whether it can be cloned to `offset` and on)."""
    start, end = span.offset, span.end
    if clone_block and (start - offset) % clone_block == 0:
        first = -(-start // clone_block) * clone_block
        last = end // clone_block * clone_block
        if first < last:
            if start < first:
                yield start, first - start, False
            yield first, last - first, True
            start = last
    if start < end:
        yield start, end - start, False


def cloned_bytes(composition: Composition, block: int) -> int:
    """How much of the composition needs no copying where blocks can be shared."""
    offset = total = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            total += sum(n for _, n, shared in _stretches(piece, offset, block) if shared)
        offset += piece_length(piece)
    return total


def _copy(
    files: FileLayer,
    source: BinaryIO,
    start: int,
    length: int,
    target: BinaryIO,
    offset: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    while length:
        copied = files.copy(source, start, min(length, COPY_CHUNK), target, offset)
        if not copied:
            raise StorageError("the source became shorter while it was copied")
        start, offset, length = start + copied, offset + copied, length - copied
        if progress is not None:
            progress(offset, total)


def keep_attributes(source: BinaryIO, target: BinaryIO, *, owner: bool) -> None:
    """Gives `target` the mode and, where permitted, owner and extended attributes of `source`."""
    status = os.fstat(source.fileno())
    if owner and hasattr(os, "fchown"):
        with suppress(PermissionError):
            os.fchown(target.fileno(), status.st_uid, status.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(target.fileno(), status.st_mode & 0o7777)
    if hasattr(os, "listxattr"):
        for name in os.listxattr(source.fileno()):
            with suppress(OSError):
                os.setxattr(target.fileno(), name, os.getxattr(source.fileno(), name))
