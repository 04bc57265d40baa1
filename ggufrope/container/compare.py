"""Differences between two models: of keys and tensors as data, and of the bytes of tensors.

A split model is compared as one, with its keys in the first file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ggufrope._files import storage
from ggufrope.container.reader import read_array, read_span
from ggufrope.container.remote import FileName
from ggufrope.container.shards import open_model
from ggufrope.container.types import ArrayValue, KeyValue, TensorInfo, ValueType
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ggufrope.container.shards import ModelFiles, Shard
    from ggufrope.container.types import Header, Scalar, Span

_CHUNK = 1 << 20
_I8 = 24  # ggml.h


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDifference:
    """A key whose records differ; None stands for absent.

    `at` is the index of the first character or item that differs, where both are strings or arrays
    of one type; `items` are these two, None for one past the end.
    """

    key: str
    old: KeyValue | None
    new: KeyValue | None
    at: int | None = None
    items: tuple[Scalar | None, Scalar | None] = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """A tensor that only one file has, or whose shape or type differs; None stands for absent."""

    name: str
    old: TensorInfo | None
    new: TensorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All differences of two models, in the order of the first, then of the second."""

    keys: tuple[KeyDifference, ...]
    tensors: tuple[TensorDifference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The digests of the tensors that two models share, and the names of the others.

    `old` and `new` map the names of shared tensors to the SHA-256 of their data, in hexadecimal;
    `other_form` has those whose bytes stand for something else: of another shape, type or byte
    order.
    """

    old: Mapping[str, str]
    new: Mapping[str, str]
    other_form: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """The shared tensors that are not the same, in the order of the first model."""
        return tuple(
            name
            for name, digest in self.old.items()
            if self.new[name] != digest or name in self.other_form
        )


def diff(old: FileName, new: FileName) -> Difference:
    """Compare the headers of two models; the bytes of tensors are not read.

    Raises what `open_model` does.
    """
    before, after = open_model(old), open_model(new)
    first, second = before.shards[0], after.shards[0]
    old_keys = {kv.key: kv for kv in reversed(before.header.key_values)}
    new_keys = {kv.key: kv for kv in reversed(after.header.key_values)}
    keys = []
    for key in dict.fromkeys((*_names(before.header), *_names(after.header))):
        one, other = old_keys.get(key), new_keys.get(key)
        if one is None or other is None:
            keys.append(KeyDifference(key=key, old=one, new=other))
        elif not _same(first, one, second, other):
            keys.append(_difference(first, one, second, other))
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
    """Hash the data of every tensor that both models have, in `workers` threads at once.

    `progress` is called with (bytes hashed, bytes in all), from any of the threads. Raises what
    `open_model` does, StorageError where a file cannot be read.
    """
    before, after = open_model(old), open_model(new)
    mine, theirs = _forms(before), _forms(after)
    shared = mine.keys() & theirs.keys()
    first, second = _jobs(before, shared), _jobs(after, shared)
    digests = _hash_all([*first.values(), *second.values()], workers, progress)
    return Verification(
        old=dict(zip(first, digests, strict=False)),
        new=dict(zip(second, digests[len(first) :], strict=True)),
        other_form=tuple(name for name in first if mine[name] != theirs[name]),
        only_old=tuple(name for name in mine if name not in theirs),
        only_new=tuple(name for name in theirs if name not in mine),
    )


def _forms(model: ModelFiles) -> dict[str, tuple[object, ...]]:
    """Return by name what the bytes of each tensor stand for: shape, type and byte order.

    Single bytes have no order.
    """
    return {
        tensor.name: (
            tensor.shape,
            tensor.type,
            None if tensor.type == _I8 else shard.header.byte_order,
        )
        for shard in model.shards
        for tensor in shard.header.tensors
    }


def _jobs(model: ModelFiles, names: Collection[str]) -> dict[str, tuple[Path, Span]]:
    """Return by name where the bytes of these tensors are."""
    return {
        name: (shard.path, span)
        for shard in model.shards
        for name, span in _spans(shard.header, names).items()
    }


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


def _names(header: Header) -> Iterator[str]:
    return (key_value.key for key_value in header.key_values)


def _same(first: Shard, one: KeyValue, second: Shard, other: KeyValue) -> bool:
    """Return whether records of two files say the same, in any byte order."""
    if one.type is not other.type:
        return False
    ordered = first.header.byte_order == second.header.byte_order
    if ordered and read_span(first.place, one.span) == read_span(second.place, other.span):
        return True
    mine, theirs = one.value, other.value
    arrays = isinstance(mine, ArrayValue) and isinstance(theirs, ArrayValue)
    kind = mine.item_type if isinstance(mine, ArrayValue) else one.type
    if ordered and kind is not ValueType.BOOL:  # any byte but 0 is true
        return False
    if not arrays:
        return mine == theirs
    items = _items(first, one, second, other)
    return items is not None and items[0] == items[1]


def _items(
    first: Shard, one: KeyValue, second: Shard, other: KeyValue
) -> tuple[Sequence[Scalar], Sequence[Scalar]] | None:
    """Return the characters of two strings, or the items of two arrays of one type; else None."""
    mine, theirs = one.value, other.value
    if isinstance(mine, str) and isinstance(theirs, str):
        return mine, theirs
    if not isinstance(mine, ArrayValue) or not isinstance(theirs, ArrayValue):
        return None
    if mine.item_type is ValueType.ARRAY or mine.item_type is not theirs.item_type:
        return None
    return (
        read_array(first.place, first.header, one),
        read_array(second.place, second.header, other),
    )


def _difference(first: Shard, one: KeyValue, second: Shard, other: KeyValue) -> KeyDifference:
    """Return in what two records of one key differ."""
    found = KeyDifference(key=one.key, old=one, new=other)
    items = _items(first, one, second, other)
    if items is None:
        return found
    mine, theirs = items
    pairs = enumerate(zip(mine, theirs, strict=False))
    # By their texts: two zeros of different signs are equal.
    at = next((n for n, (a, b) in pairs if repr(a) != repr(b)), min(len(mine), len(theirs)))
    a, b = (None if at >= len(each) else each[at] for each in items)
    return replace(found, at=at, items=(a, b))
