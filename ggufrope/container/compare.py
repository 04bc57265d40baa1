"""Differences between two GGUF files: of keys and tensors as data, and of the bytes of tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ggufrope._files import storage
from ggufrope.container.reader import read_array, read_header, read_span
from ggufrope.container.remote import FileName
from ggufrope.container.types import ArrayValue, KeyValue, TensorInfo, ValueType
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ggufrope.container.types import Header, Span

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDifference:
    """A key whose records differ; None stands for absent."""

    key: str
    old: KeyValue | None
    new: KeyValue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """A tensor that only one file has, or whose shape or type differs; None stands for absent."""

    name: str
    old: TensorInfo | None
    new: TensorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All differences of two files, in the order of the first, then of the second."""

    keys: tuple[KeyDifference, ...]
    tensors: tuple[TensorDifference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The digests of the tensors that two files share, and the names of the others.

    `old` and `new` map the names of shared tensors to the SHA-256 of their data, in hexadecimal.
    """

    old: Mapping[str, str]
    new: Mapping[str, str]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        return tuple(name for name, digest in self.old.items() if self.new[name] != digest)


def diff(old: FileName, new: FileName) -> Difference:
    """Compare the headers of two files; the bytes of tensors are not read."""
    before, after = read_header(old), read_header(new)
    first, second = (old, before), (new, after)
    old_keys = {kv.key: kv for kv in reversed(before.key_values)}
    new_keys = {kv.key: kv for kv in reversed(after.key_values)}
    keys = []
    for key in dict.fromkeys(kv.key for kv in (*before.key_values, *after.key_values)):
        one, other = old_keys.get(key), new_keys.get(key)
        if one is None or other is None or not _same(first, one, second, other):
            keys.append(KeyDifference(key=key, old=one, new=other))
    old_tensors = {tensor.name: tensor for tensor in before.tensors}
    new_tensors = {tensor.name: tensor for tensor in after.tensors}
    tensors = []
    for name in dict.fromkeys((*old_tensors, *new_tensors)):
        mine, theirs = old_tensors.get(name), new_tensors.get(name)
        if mine is None or theirs is None or (mine.shape, mine.type) != (theirs.shape, theirs.type):
            tensors.append(TensorDifference(name=name, old=mine, new=theirs))
    return Difference(keys=tuple(keys), tensors=tuple(tensors))


def verify(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Hash the data of every tensor that both files have, in `workers` threads at once.

    `progress` is called with (bytes hashed, bytes in all), from any of the threads.
    """
    before, after = read_header(old), read_header(new)
    mine = {tensor.name for tensor in before.tensors}
    theirs = {tensor.name for tensor in after.tensors}
    shared = mine & theirs
    jobs = [(Path(path), span) for path, header in ((old, before), (new, after))
            for span in _spans(header, shared).values()]  # fmt: skip
    digests = _hash_all(jobs, workers, progress)
    first, second = _spans(before, shared), _spans(after, shared)
    return Verification(
        old=dict(zip(first, digests, strict=False)),
        new=dict(zip(second, digests[len(first) :], strict=True)),
        only_old=tuple(t.name for t in before.tensors if t.name not in theirs),
        only_new=tuple(t.name for t in after.tensors if t.name not in mine),
    )


def tensor_digests(
    path: str | os.PathLike[str],
    header: Header,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Return the SHA-256 of each tensor's data, in hexadecimal, by name in the file's order."""
    spans = _spans(header, {tensor.name for tensor in header.tensors})
    jobs = [(Path(path), span) for span in spans.values()]
    return dict(zip(spans, _hash_all(jobs, workers, progress), strict=True))


def weights_digest(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for all tensors: that of "DIGEST NAME" lines sorted by name.

    Neither metadata nor the order of tensors changes it.
    """
    lines = (f"{digests[name]} {name}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _spans(header: Header, names: Collection[str]) -> dict[str, Span]:
    return {t.name: header.data_span(t) for t in header.tensors if t.name in names}


def _hash_all(
    jobs: list[tuple[Path, Span]],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    total = sum(span.length for _, span in jobs)
    done = 0
    guard = Lock()

    def hashed(job: tuple[Path, Span]) -> str:
        nonlocal done
        path, span = job
        digest = hashlib.sha256()
        left = span.length
        with storage("read", path), path.open("rb", buffering=0) as file:
            file.seek(span.offset)
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise StorageError(f"{path} became shorter while it was read")
                digest.update(piece)
                left -= len(piece)
                with guard:
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)
        return digest.hexdigest()

    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(hashed, jobs))


def _same(
    first: tuple[FileName, Header],
    one: KeyValue,
    second: tuple[FileName, Header],
    other: KeyValue,
) -> bool:
    """Return whether records of two files (path, header) say the same, in any byte order."""
    if one.type is not other.type:
        return False
    (old, before), (new, after) = first, second
    if before.byte_order == after.byte_order:
        return read_span(old, one.span) == read_span(new, other.span)
    mine, theirs = one.value, other.value
    if not isinstance(mine, ArrayValue) or not isinstance(theirs, ArrayValue):
        return mine == theirs
    if ValueType.ARRAY in (mine.item_type, theirs.item_type) or mine.item_type != theirs.item_type:
        return False
    return read_array(old, before, one) == read_array(new, after, other)
