"""A new file written from a composition: a temporary sibling, verified, then renamed.

`building` writes the file beside its final name, sharing blocks with the old file or copying them.
`verify_header` and `verify_pieces` read it back and compare it with the plan; the rename is the
caller's.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.beside import new_partial_path
from ggufrope.container.filesystem import (
    COPY_CHUNK,
    UNSUPPORTED,
    FileLayer,
    RefusedError,
    lock,
    unfinished,
    write_all,
)
from ggufrope.container.pieces import Composition, piece_length, place_pieces
from ggufrope.container.reader import parse_header
from ggufrope.container.types import PADDING_KEY, ArrayValue, Span, ValueType
from ggufrope.errors import GgufRopeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ggufrope.container.pieces import Rewrite
    from ggufrope.container.types import Header


_CHUNK = 1 << 20
_SAMPLE = 4096
_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A file to write: `composition` as `target`, its spans taken from the open file `source`.

    `progress` is called with (bytes done, bytes in all).
    """

    files: FileLayer
    source: BinaryIO
    target: Path
    composition: Composition
    progress: Callable[[int, int], None] | None = None

    def report(self, done: int) -> None:
        """Report that the first `done` bytes are written."""
        if self.progress is not None:
            self.progress(done, self.composition.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A file that is being written, under a name of its own until it is whole."""

    path: Path
    file: BinaryIO


@contextmanager
def building(build: Build, *, clone: bool) -> Iterator[Partial]:
    """Write the composition as a file beside the target: locked, not yet synced.

    The file is removed when the body raises anything. Raises RefusedError where `clone` is wanted
    and blocks cannot be shared.
    """
    files = build.files
    whole = clone and files.clones_whole_files
    with _partial_file(files, build.target, clone_of=build.source if whole else None) as partial:
        try:
            if whole:
                _rewrite_clone(build, partial.file)
            else:
                block = files.block_size(build.target) if clone else None
                if not clone:
                    files.allocate(partial.file, build.composition.size)
                _write_pieces(build, partial.file, clone_block=block)
        except OSError as error:
            if clone and error.errno in UNSUPPORTED:
                raise RefusedError(error.strerror) from error
            raise
        yield partial


@contextmanager
def _partial_file(
    files: FileLayer, target: Path, *, clone_of: BinaryIO | None
) -> Iterator[Partial]:
    """Create a locked file beside `target`, empty or a clone; remove it when the body raises."""
    with (
        storage("write beside", target),
        unfinished(files, lambda: new_partial_path(target)) as (path, file),
    ):
        if clone_of is None:
            yield Partial(path=path, file=file)
        else:
            files.remove(path)
            files.clone_file(Path(clone_of.name), path)
            with files.open(path, "r+b") as clone:
                lock(clone, path, optional=True, files=files)
                yield Partial(path=path, file=clone)


def _write_pieces(build: Build, file: BinaryIO, *, clone_block: int | None) -> None:
    """Fill `file` with the composition; with `clone_block`, share the blocks that line up."""
    files = build.files
    offset = 0
    for piece in build.composition.pieces:
        if isinstance(piece, Span):
            for start, length, shared in _stretches(piece, offset, clone_block):
                if shared:
                    files.clone_range(build.source, start, length, file, offset)
                else:
                    _copy(build, file, Span(offset=start, length=length), offset)
                offset += length
        else:
            write_all(files, file, offset, piece)
            offset += piece_length(piece)
        build.report(offset)


def _rewrite_clone(build: Build, clone: BinaryIO) -> None:
    """Turn a clone of the source into the composition: write what is not in its place yet."""
    _, patches = place_pieces(build.composition.pieces, None)
    for patch in patches:
        if isinstance(patch.piece, Span):
            _copy(build, clone, patch.piece, patch.offset)
        else:
            write_all(build.files, clone, patch.offset, patch.piece)
    build.files.resize(clone, build.composition.size)


def _copy(build: Build, file: BinaryIO, span: Span, offset: int) -> None:
    """Copy a span of the source to `offset` of the new file."""
    start, length = span.offset, span.length
    while length:
        copied = build.files.copy(build.source, start, min(length, COPY_CHUNK), file, offset)
        if not copied:
            raise StorageError("the source became shorter while it was copied")
        build.files.begin_writing(file, offset, copied)
        start, offset, length = start + copied, offset + copied, length - copied
        build.report(offset)


def _stretches(span: Span, offset: int, clone_block: int | None) -> Iterator[tuple[int, int, bool]]:
    """Split a span that goes to `offset`: (source offset, length, whether it can be cloned)."""
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
    """Return how many bytes of the composition need no copying where blocks can be shared."""
    offset = total = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            total += sum(n for _, n, shared in _stretches(piece, offset, block) if shared)
        offset += piece_length(piece)
    return total


def verify_header(file: BinaryIO, rewrite: Rewrite, composition: Composition, path: Path) -> Header:
    """Parse the written file and return its header; its bytes have been compared with the plan.

    Raises StorageError where keys, tensors, data offset or size differ from the plan.
    """
    size = file.seek(0, 2)
    file.seek(0)
    try:
        header = parse_header(file, size, _walked(rewrite, composition))
    except GgufRopeError as error:
        raise _unverified(path, str(error)) from error
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
        raise _unverified(path, "its header is not as planned")
    return header


def _walked(rewrite: Rewrite, composition: Composition) -> dict[tuple[int, int], int]:
    """Return the bytes of each array of strings that the old file had, by its new place and count:
    a vocabulary takes longer to walk than all else takes to parse."""
    arrays = [
        value
        for key_value in rewrite.source.key_values
        if isinstance(value := key_value.value, ArrayValue) and value.item_type is ValueType.STRING
    ]
    found = {}
    offset = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            for array in arrays:
                if piece.offset <= array.span.offset and array.span.end <= piece.end:
                    at = offset + array.span.offset - piece.offset
                    found[at, array.count] = array.span.length
        offset += piece_length(piece)
    return found


def verify_pieces(build: Build, file: BinaryIO, *, verify_all: bool) -> None:
    """Compare a new file with the old one it was made from, piece by piece.

    The header and all new bytes are compared in full; of copied tensor data, samples spread over
    each span and its two ends, or with `verify_all` every byte. Raises StorageError.
    """
    files, composition = build.files, build.composition
    offset = 0
    for piece in composition.pieces:
        if isinstance(piece, Span):
            sampled = not verify_all and offset >= composition.data_offset
            for at, length in _ranges(piece.length, sampled=sampled):
                old = files.read(build.source, piece.offset + at, length)
                _compare(build, files.read(file, offset + at, length), old, offset + at)
        else:
            _compare(build, files.read(file, offset, len(piece)), piece, offset)
        offset += piece_length(piece)


def _compare(build: Build, found: bytes, expected: bytes, offset: int) -> None:
    if found != expected:
        raise _unverified(build.target, f"bytes at {offset} differ from the plan")


def _unverified(path: Path, reason: str) -> StorageError:
    return StorageError(f"verification failed, {path} was not changed: {reason}")


def _ranges(length: int, *, sampled: bool) -> Iterator[tuple[int, int]]:
    if sampled and length > _SAMPLES * _SAMPLE:
        step = (length - _SAMPLE) // (_SAMPLES - 1)
        for number in range(_SAMPLES - 1):
            yield number * step, _SAMPLE
        yield length - _SAMPLE, _SAMPLE
    else:
        for at in range(0, length, _CHUNK):
            yield at, min(_CHUNK, length - at)


def keep_attributes(source: BinaryIO, target: BinaryIO, *, in_place: bool) -> None:
    """Give `target` what it should have of the permissions and extended attributes of `source`.

    A file that takes the place of another has its mode, and where permitted its owner and
    attributes. A copy has a mode that is no wider than that of the source or of new files, belongs
    to who made it, and has the attributes of users alone. Neither has setuid, setgid or
    capabilities: model files run nothing.
    """
    status = os.fstat(source.fileno())
    if in_place and hasattr(os, "fchown"):
        with suppress(PermissionError):
            os.fchown(target.fileno(), status.st_uid, status.st_gid)
    if hasattr(os, "fchmod"):
        mode = status.st_mode & 0o777 if in_place else status.st_mode & 0o666 & ~_umask()
        os.fchmod(target.fileno(), mode)
    if hasattr(os, "listxattr"):
        for name in _attributes(source):
            if name.startswith("user.") or (in_place and name in _KEPT_IN_PLACE):
                with suppress(OSError):
                    os.setxattr(target.fileno(), name, os.getxattr(source.fileno(), name))


_KEPT_IN_PLACE = ("system.posix_acl_access", "security.selinux")


def _attributes(file: BinaryIO) -> list[str]:
    try:
        return os.listxattr(file.fileno())
    except OSError:
        return []


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
