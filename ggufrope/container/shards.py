"""A model split over several files (shards), seen as one.

As gguf-split writes it and src/llama-model-loader.cpp reads it: the first file has the metadata,
`split.no` counts from 0 while file names count from 1, and of all copies of `split.tensors.count`
only that of the first file is read. So an edit of keys changes the first file alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.container.beside import is_unfinished
from ggufrope.container.reader import read_header
from ggufrope.container.remote import FileName, Place, RemoteFile, local, place_of
from ggufrope.container.types import Edits, Header, TypedValue
from ggufrope.errors import MalformedError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.container.types import TensorInfo

SPLIT_NO = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"

_AT_ONCE = 8
"""Headers that are read from a server at the same time."""
_MOST_REMOTE = 512
"""Files of a model on a server; the largest models known have 200."""

_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a model."""

    place: Place
    header: Header

    @property
    def path(self) -> Path:
        """The file on disk. Raises StorageError where it is on a server."""
        return local(self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """All files of a model in order; most models have one."""

    shards: tuple[Shard, ...]

    @property
    def header(self) -> Header:
        """The header with the metadata: that of the first file."""
        return self.shards[0].header

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor of the model. Offsets are relative to the tensor's own file."""
        return tuple(tensor for shard in self.shards for tensor in shard.header.tensors)

    @property
    def file_size(self) -> int:
        """Bytes of all files together."""
        return sum(shard.header.file_size for shard in self.shards)

    def shard_of(self, tensor: str) -> Shard | None:
        """Return the file that has the tensor of that name, or None."""
        return next((shard for shard in self.shards if shard.header.tensor(tensor)), None)


def open_model(name: FileName) -> ModelFiles:
    """Read the headers of the model whose only or first file is `name`.

    Raises RequestError for a later file of a split model, MalformedError where the files do not
    belong together, and what `read_header` raises.
    """
    place = place_of(name)
    first = Shard(place=place, header=read_header(place))
    count = _number(first, SPLIT_COUNT)
    if count is None or count <= 1:
        return ModelFiles(shards=(first,))
    names = names_of_shards(place.name)
    if len(names) != count:
        raise MalformedError(
            f"{place} is one of {count} files of a split model and must be named "
            f"NAME-00001-of-{count:05}.gguf so that the others are found"
        )
    if _number(first, SPLIT_NO) != 0 or place.name != names[0]:
        raise RequestError(f"{place} is not the first file of its model; name {names[0]}")
    others = tuple(place.with_name(each) for each in names[1:])
    read = zip(others, _headers(others), strict=True)
    model = ModelFiles(shards=(first, *(Shard(place=each, header=header) for each, header in read)))
    _check(model, count)
    return model


def _headers(places: tuple[Place, ...]) -> Iterable[Header]:
    """Read the headers of several files; those on a server at once, since each is a wait."""
    if not isinstance(places[0], RemoteFile):
        return map(read_header, places)
    if len(places) > _MOST_REMOTE:
        raise MalformedError(f"{places[0]} is one of {len(places) + 1} files, which no model has")
    from concurrent.futures import ThreadPoolExecutor  # slow to import

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read_header, places))


def names_of_shards(name: str) -> tuple[str, ...]:
    """Return the names of all files of the split model that a file of this name is one of, in
    order; the name alone where it is not of that form."""
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return (name,)
    count = int(match["count"])
    return tuple(f"{match['prefix']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))


def sibling_paths(first: Path, count: int) -> tuple[Path, ...]:
    """Return the paths of a model of `count` files whose first is `first`.

    Raises RequestError where several files cannot be named after it.
    """
    if count == 1:
        return (first,)
    names = names_of_shards(first.name)
    if len(names) != count or names[0] != first.name:
        raise RequestError(
            f"{first}: the model is split in {count} files; name the first of the new ones "
            f"NAME-00001-of-{count:05}.gguf"
        )
    return tuple(map(first.with_name, names))


def shard_paths(path: Path) -> tuple[Path, ...]:
    """Return the paths of all files of the model that `path` is a file of; `path` is one of them.

    The name alone decides, that of `path` or of what it is a link to; nothing is read. Of the other
    files only those that exist are returned.
    """
    for name in (path, path.resolve()):
        if not name.name:  # "." and "/"
            continue
        every = tuple(map(name.with_name, names_of_shards(name.name)))
        if len(every) == 1:
            continue
        present = set(os.listdir(name.parent)) if name.parent.is_dir() else set()  # noqa: PTH208
        return tuple(one for one in every if one.name in present or one == name)
    return (path,)


def first_path(path: Path) -> Path:
    """Return the path of the first file of the split model that `path` is a later file of.

    It is `path` itself where that is a first file, or the only one. The name alone decides.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return path
    return path.with_name(f"{match['prefix']}-00001-of-{match['count']}.gguf")


def needs_recovery(path: Path) -> bool:
    """Return whether anything that an unfinished edit leaves stands beside a model's files.

    A look at names only, so that commands which read need not load what repairs: see
    `recovery.recover`.
    """
    try:
        return is_unfinished(shard.resolve() for shard in shard_paths(path))
    except (OSError, RuntimeError):  # a name that is too long, or links in a circle
        return False


def distribute(model: ModelFiles, edits: Edits) -> tuple[tuple[Shard, Edits], ...]:
    """Split edits of a model into edits of its files: only those that change, later files first.

    Keys belong to the first file, and new tensors go there too; tensors that exist are edited
    where they are. The count of all tensors is kept up to date. Raises RequestError where a tensor
    does not exist or its new name is taken.
    """
    if len(model.shards) == 1:
        return ((model.shards[0], edits),)
    if edits.remove & {SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS}:
        raise RequestError("the split.* keys hold the files of a split model together; keep them")
    names = [tensor.name for tensor in model.tensors]
    unknown = (edits.remove_tensors | edits.rename_tensors.keys()) - set(names)
    if unknown:
        raise RequestError(f"there is no tensor {min(unknown)!r} to remove or rename")
    kept = [name for name in names if name not in edits.remove_tensors]
    left = [edits.rename_tensors.get(name, name) for name in kept]
    twice = [name for name, times in Counter(left).items() if times > 1]
    if twice:
        raise RequestError(f"two tensors would be named {twice[0]!r}")
    added = [name for name in edits.put_tensors if name not in left]
    parts = [_part(shard, edits, added if n == 0 else ()) for n, shard in enumerate(model.shards)]
    counted = model.header.find(SPLIT_TENSORS)
    total = len(left) + len(added)
    values = dict(edits.set)
    if counted is not None and counted.value != total:
        values[SPLIT_TENSORS] = TypedValue(type=counted.type, value=total)
    parts[0] = replace(parts[0], set=values, remove=edits.remove)
    pairs = reversed(tuple(zip(model.shards, parts, strict=True)))
    return tuple((shard, part) for shard, part in pairs if part != Edits())


def _part(shard: Shard, edits: Edits, added: list[str] | tuple[()]) -> Edits:
    """Return the tensor edits that concern one file."""
    names = {tensor.name for tensor in shard.header.tensors}
    renamed = {old: new for old, new in edits.rename_tensors.items() if old in names}
    final = {renamed.get(name, name) for name in names - edits.remove_tensors}
    return Edits(
        put_tensors={n: t for n, t in edits.put_tensors.items() if n in final or n in added},
        remove_tensors=edits.remove_tensors & names,
        rename_tensors=renamed,
    )


def _number(shard: Shard, key: str) -> int | None:
    value = shard.header.get(key)
    return value if isinstance(value, int) else None


def _check(model: ModelFiles, count: int) -> None:
    for number, shard in enumerate(model.shards):
        if (_number(shard, SPLIT_NO), _number(shard, SPLIT_COUNT)) != (number, count):
            raise MalformedError(
                f"{shard.place} is not number {number + 1} of the {count} files of its model: "
                f"{SPLIT_NO} is {_number(shard, SPLIT_NO)}, {SPLIT_COUNT} "
                f"{_number(shard, SPLIT_COUNT)}"
            )
    total = _number(model.shards[0], SPLIT_TENSORS)
    if total != len(model.tensors):
        raise MalformedError(
            f"{model.shards[0].place} counts {total} tensors, its files have {len(model.tensors)}"
        )
