"""A model file whose factor tensors can be changed in place, without copying the model.

llama.cpp reads a split model from several files, and takes the number of its shards from metadata
that a load may override. So the file as it is becomes the first shards, by symbolic links in a
working folder, and a file of a few hundred bytes with nothing but factor tensors the last one.
Where the file has factor tensors of its own, or links cannot be made, the first shard is copied
(cloned where the file system can) and its tensors are changed there.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.container import (
    ByteOrder,
    Edits,
    TypedValue,
    ValueType,
    carry_out,
    float_tensor,
    plan_rewrite,
    plan_store,
)
from ggufrope.container.encode import encode_key_value, encode_tensor_info
from ggufrope.container.files import storage
from ggufrope.errors import StorageError, WishError
from ggufrope.rope import architecture
from ggufrope.rope.keys import FACTOR_TENSORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import rotary_dimensions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.patching import StoredModel

_ALIGNMENT = 32
_VERSION = 3
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_SPLIT_NO, _SPLIT_COUNT, _SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorFile:
    """`path` is what to load, with `kv_overrides`; the factors are in `holder`, at `offsets`."""

    path: Path
    kv_overrides: Mapping[str, int | float | bool | str]
    holder: Path
    offsets: tuple[int, ...]
    pairs: int
    byte_order: ByteOrder
    files: tuple[Path, ...]

    def write(self, factors: Sequence[float]) -> None:
        """Make these the factors of every factor tensor. Raises StorageError, WishError."""
        if len(factors) != self.pairs:
            raise WishError(f"{len(factors)} factors for {self.pairs} rotary pairs")
        data = float_tensor(factors, self.byte_order).data
        with storage("write", self.holder), self.holder.open("r+b", buffering=0) as stream:
            for offset in self.offsets:
                stream.seek(offset)
                if stream.write(data) != len(data):
                    raise StorageError(f"{self.holder}: the factors were not written whole")

    def remove(self) -> None:
        """Take the working files away."""
        for file in self.files:
            with suppress(OSError):
                file.unlink()


def factor_file(model: StoredModel, folder: Path) -> FactorFile:
    """Prepare `model` in `folder`; its factors are undefined until `write`.

    Raises StorageError where the folder cannot be written to or has no room.
    """
    if any(model.header.tensor(name) for name in FACTOR_TENSORS):
        return _copied(model, folder, Edits())
    try:
        return _overlaid(model, folder)
    except NotImplementedError:
        return _copied(model, folder, _added_factors(model))


def _overlaid(model: StoredModel, folder: Path) -> FactorFile:
    """The model's own shards linked, and one more that holds the factors."""
    names = _tensors_to_add(model)
    shards = _shards(model)
    total = len(shards) + 1
    links = tuple(folder / _shard_name(number, total) for number in range(1, total))
    holder = folder / _shard_name(total, total)
    pairs = _pairs(model)
    data, offsets = _shard(names, pairs, number=total - 1, order=model.header.byte_order)
    _link(links, shards)
    with storage("write", holder):
        holder.write_bytes(data)
    declared = model.header.get(_SPLIT_TENSORS)
    tensors = declared if isinstance(declared, int) else len(model.header.tensors)
    return FactorFile(
        path=links[0],
        kv_overrides={
            _SPLIT_NO: 0,
            _SPLIT_COUNT: total,
            _SPLIT_TENSORS: tensors + len(names),
            model.metadata.key("scaling_type"): _scaling_type(names),
        },
        holder=holder,
        offsets=offsets,
        pairs=pairs,
        byte_order=model.header.byte_order,
        files=(*links, holder),
    )


def _copied(model: StoredModel, folder: Path, edits: Edits) -> FactorFile:
    """The first shard copied with `edits`, after which it has factor tensors; the others linked."""
    first, *others = _shards(model)
    copy = folder / first.name
    links = tuple(folder / shard.name for shard in others)
    rewrite = plan_rewrite(model.header, edits)
    header = carry_out(plan_store(first, rewrite, output=copy, force={"exists"})).header
    tensors = [tensor for tensor in header.tensors if tensor.name in FACTOR_TENSORS]
    try:
        _link(links, others)
    except NotImplementedError as error:
        copy.unlink()
        raise StorageError(f"{folder}: {error}; name a working folder that can have them") from None
    return FactorFile(
        path=copy,
        kv_overrides={},
        holder=copy,
        offsets=tuple(header.data_offset + tensor.offset for tensor in tensors),
        pairs=_pairs(model),
        byte_order=header.byte_order,
        files=(copy, *links),
    )


def _added_factors(model: StoredModel) -> Edits:
    names = _tensors_to_add(model)
    ones = float_tensor((1.0,) * _pairs(model), model.header.byte_order)
    kind = TypedValue(type=ValueType.STRING, value=_scaling_type(names))
    return Edits(
        set={model.metadata.key("scaling_type"): kind}, put_tensors=dict.fromkeys(names, ones)
    )


def _tensors_to_add(model: StoredModel) -> tuple[str, ...]:
    if ROPE_FREQS in architecture(model.metadata.architecture).tensors:
        return (ROPE_FREQS,)
    return (ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT)


def _scaling_type(names: Sequence[str]) -> str:
    """The scaling type under which every architecture loads tensors of these names."""
    return "none" if ROPE_FREQS in names else "longrope"


def _pairs(model: StoredModel) -> int:
    return rotary_dimensions(model.metadata, architecture(model.metadata.architecture)) // 2


def _shards(model: StoredModel) -> list[Path]:
    """The files of a model, in order; WishError where the given one is not the first."""
    count = model.header.get(_SPLIT_COUNT)
    if not isinstance(count, int) or count < 2:
        return [model.path.resolve()]
    named = _SHARD.fullmatch(model.path.name)
    if named is None or int(named[2]) != 1 or int(named[3]) != count:
        raise WishError(f"{model.path.name}: not the first of {count} shards; name that one")
    name = f"{named[1]}-{{:05d}}-of-{count:05d}.gguf"
    return [model.path.with_name(name.format(i)).resolve() for i in range(1, count + 1)]


def _shard_name(number: int, total: int) -> str:
    """A shard's file name as llama.cpp makes it (src/llama.cpp `llama_split_path`)."""
    return f"search-{number:05d}-of-{total:05d}.gguf"


def _shard(
    names: Sequence[str], pairs: int, *, number: int, order: ByteOrder
) -> tuple[bytes, tuple[int, ...]]:
    """A GGUF file of F32 tensors that are all ones, and the offset of each in it."""
    ones = float_tensor((1.0,) * pairs, order)
    step = -(-len(ones.data) // _ALIGNMENT) * _ALIGNMENT
    part = TypedValue(type=ValueType.UINT16, value=number)
    head = b"GGUF" + struct.pack(f"{order}IQQ", _VERSION, len(names), 1)
    head += encode_key_value(_SPLIT_NO, part, order)
    for index, name in enumerate(names):
        head += encode_tensor_info(name, ones.shape, ones.type, index * step, order)
    start = -(-len(head) // _ALIGNMENT) * _ALIGNMENT
    data = head.ljust(start, b"\0") + ones.data.ljust(step, b"\0") * len(names)
    return data, tuple(start + index * step for index in range(len(names)))


def _link(links: Sequence[Path], files: Sequence[Path]) -> None:
    """Symbolic links; NotImplementedError where there is no such thing here."""
    for link, file in zip(links, files, strict=True):
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.name == "nt":
                raise NotImplementedError("symbolic links cannot be made here") from error
            raise StorageError(f"cannot link {link}: {error.strerror or error}") from error
