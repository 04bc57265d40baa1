"""A model file whose factor tensors can be changed in place, without copying the model.

llama.cpp reads a split model from several files, and takes the number of its shards from metadata
that a load may override. So the file as it is becomes the first shards, by symbolic links in a
working folder, and a file of a few hundred bytes with nothing but factor tensors the last one.
Where the file has factor tensors of its own, or links cannot be made, the first shard is copied
(cloned where the file system can) and its tensors are changed there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._files import storage
from ggufrope.container.pieces import encode_key_value, encode_tensor_info
from ggufrope.container.shards import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import ByteOrder, Edits, TypedValue, ValueType, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import RequestError, StorageError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.keys import FACTOR_TENSORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import rotary_dimensions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.patching.inspection import StoredModel

_ALIGNMENT = 32
_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorFile:
    """`path` is what to load, with `kv_overrides`; `places` are the file and the offset of each
    factor tensor, which has `pairs` values. `files` are the working files."""

    path: Path
    kv_overrides: Mapping[str, int | float | bool | str]
    places: tuple[tuple[Path, int], ...]
    pairs: int
    byte_order: ByteOrder
    files: tuple[Path, ...]

    def write(self, factors: Sequence[float]) -> None:
        """Make these the values of every factor tensor. Raises StorageError, RequestError."""
        if len(factors) != self.pairs:
            raise RequestError(f"{len(factors)} factors for {self.pairs} rotary pairs")
        data = float_tensor(factors, self.byte_order).data
        for path, offset in self.places:
            with storage("write", path), path.open("r+b", buffering=0) as stream:
                stream.seek(offset)
                if stream.write(data) != len(data):
                    raise StorageError(f"{path}: the factors were not written whole")

    def remove(self) -> None:
        """Take the working files away."""
        for file in self.files:
            with suppress(OSError):
                file.unlink()


def factor_file(model: StoredModel, folder: Path, *, linking: bool | None = None) -> FactorFile:
    """Prepare `model` in `folder`; what its factors are is settled by the first `write`.

    `linking` is whether symbolic links may be made, None for where they can. Raises StorageError
    where the folder cannot be written to or has no room, or a split model would need links.
    """
    linking = _can_link(folder) if linking is None else linking
    if len(model.files.shards) > 1 and not linking:
        raise StorageError(
            f"{folder}: a split model is searched through symbolic links, which cannot be made here"
        )
    if any(model.files.shard_of(name) for name in FACTOR_TENSORS):
        return _copied(model, folder, Edits())
    return _overlaid(model, folder) if linking else _copied(model, folder, _added_factors(model))


def _overlaid(model: StoredModel, folder: Path) -> FactorFile:
    """The model's own files linked, and one more that holds the factors."""
    names = _tensors_to_add(model)
    total = len(model.files.shards) + 1
    links = tuple(folder / _shard_name(number, total) for number in range(1, total))
    holder = folder / _shard_name(total, total)
    data, offsets = _shard(names, _pairs(model), number=total - 1, order=model.header.byte_order)
    for link, shard in zip(links, model.files.shards, strict=True):
        _link(link, shard.path)
    with storage("write", holder):
        holder.write_bytes(data)
    return FactorFile(
        path=links[0],
        kv_overrides={
            SPLIT_NO: 0,
            SPLIT_COUNT: total,
            SPLIT_TENSORS: len(model.files.tensors) + len(names),
            model.metadata.key("scaling_type"): _scaling_type(names),
        },
        places=tuple((holder, offset) for offset in offsets),
        pairs=_pairs(model),
        byte_order=model.header.byte_order,
        files=(*links, holder),
    )


def _copied(model: StoredModel, folder: Path, edits: Edits) -> FactorFile:
    """The files that have factor tensors, or get them by `edits`, copied; the others linked."""
    places: list[tuple[Path, int]] = []
    files: list[Path] = []
    for shard in model.files.shards:
        file = folder / shard.path.name
        files.append(file)
        edited = edits if shard is model.files.shards[0] else Edits()
        if not (edited.put_tensors or any(map(shard.header.tensor, FACTOR_TENSORS))):
            _link(file, shard.path)
            continue
        rewrite = plan_rewrite(shard.header, edited)
        header = execute(plan_store(shard.path, rewrite, output=file, force={"exists"})).header
        places += [
            (file, header.data_offset + tensor.offset)
            for tensor in header.tensors
            if tensor.name in FACTOR_TENSORS
        ]
    return FactorFile(
        path=files[0],
        kv_overrides={},
        places=tuple(places),
        pairs=_pairs(model),
        byte_order=model.header.byte_order,
        files=tuple(files),
    )


def _added_factors(model: StoredModel) -> Edits:
    """Factor tensors for a file that has none, which are all ones."""
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
    head += encode_key_value(SPLIT_NO, part, order)
    for index, name in enumerate(names):
        head += encode_tensor_info(name, ones.shape, ones.type, index * step, order)
    start = -(-len(head) // _ALIGNMENT) * _ALIGNMENT
    data = head.ljust(start, b"\0") + ones.data.ljust(step, b"\0") * len(names)
    return data, tuple(start + index * step for index in range(len(names)))


def _can_link(folder: Path) -> bool:
    """Whether symbolic links can be made in `folder`."""
    link = folder / "link"
    try:
        link.symlink_to("nothing")
        link.unlink()
    except OSError:
        return False
    return True


def _link(link: Path, file: Path) -> None:
    with storage("link", link):
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
