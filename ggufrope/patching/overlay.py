"""A model under other keys and factor tensors, without copying its weights.

llama.cpp reads a split model from several files, and takes the number of its shards from metadata
that a load may override. So an overlay is the model's own files, linked in a working folder as the
first shards, and one more file of a few hundred bytes that holds factor tensors. Keys are metadata
overrides of the load. `overlay` makes one of a patch; `factor_file` one whose factors can be
written again and again, under a model that is loaded.
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
from ggufrope.container.types import (
    ByteOrder,
    Edits,
    TensorData,
    TypedValue,
    ValueType,
    float_tensor,
)
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import RequestError, StorageError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.keys import FACTOR_TENSORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.trained import is_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.patching.inspection import StoredModel
    from ggufrope.rope.encode import Expression

_ALIGNMENT = 32
_VERSION = 3
_OVERRIDE_BYTES = 127
"""llama.cpp keeps the key and the text of an override in char[128]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """`path` is what to load, with `kv_overrides`; `files` are the working files."""

    path: Path
    kv_overrides: Mapping[str, int | float | bool | str]
    files: tuple[Path, ...]

    def remove(self) -> None:
        """Remove the working files."""
        for file in self.files:
            with suppress(OSError):
                file.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorFile(Overlay):
    """An overlay whose factors can be written. `places` are the file and the offset of each factor
    tensor, which has `pairs` values."""

    places: tuple[tuple[Path, int], ...]
    pairs: int
    byte_order: ByteOrder

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


def overlay(model: StoredModel, expression: Expression, folder: Path) -> Overlay | None:
    """Return what to load so that llama.cpp sees `model` with `expression` written into it.

    None where only a copy can say it: a key or tensor of the file goes, a tensor of it changes, or
    symbolic links cannot be made in `folder`. Raises StorageError where the folder cannot be used.
    """
    written = {key: new for key, new in expression.keys.items() if not is_record(key)}
    goes = any(new is None and model.header.find(key) for key, new in written.items())
    if goes or any(map(model.files.shard_of, expression.tensors)):
        return None
    keys: dict[str, int | float | bool | str] = {}
    for key, new in written.items():
        if new is not None:
            if not isinstance(new.value, bool | int | float | str) or _too_long(key, new.value):
                return None
            decimal = new.type in (ValueType.FLOAT32, ValueType.FLOAT64)
            keys[key] = float(new.value) if decimal else new.value
    order = model.header.byte_order
    tensors = {
        name: float_tensor(tuple(map(float, factors)), order)
        for name, factors in expression.tensors.items()
        if factors is not None
    }
    if not tensors:
        return Overlay(path=model.path, kv_overrides=keys, files=())
    if not _can_link(folder):
        return None
    files, _ = _linked(model, tensors, folder)
    return Overlay(
        path=files[0], kv_overrides={**_split_keys(model, len(tensors)), **keys}, files=files
    )


def factor_file(model: StoredModel, folder: Path, *, linking: bool | None = None) -> FactorFile:
    """Prepare `model` in `folder`; the first `write` sets its factors.

    Where the file has factor tensors of its own, or links cannot be made, the first shard is copied
    (cloned where the file system can) and its tensors are changed there. `linking` is whether
    symbolic links may be made, None for where they can. Raises StorageError where the folder cannot
    be written to or has no room, or a split model would need links.
    """
    linking = _can_link(folder) if linking is None else linking
    if len(model.files.shards) > 1 and not linking:
        raise StorageError(
            f"{folder}: a split model needs symbolic links here, which cannot be made"
        )
    if any(map(model.files.shard_of, FACTOR_TENSORS)):
        return _copied(model, folder, Edits())
    return _overlaid(model, folder) if linking else _copied(model, folder, _added_factors(model))


def _overlaid(model: StoredModel, folder: Path) -> FactorFile:
    """The model's own files linked, and one more that holds the factors."""
    names = _tensors_to_add(model)
    files, offsets = _linked(model, dict.fromkeys(names, _ones(model)), folder)
    return FactorFile(
        path=files[0],
        kv_overrides={
            **_split_keys(model, len(names)),
            model.metadata.key("scaling_type"): _scaling_type(names),
        },
        files=files,
        places=tuple((files[-1], offset) for offset in offsets),
        pairs=_pairs(model),
        byte_order=model.header.byte_order,
    )


def _linked(
    model: StoredModel, tensors: Mapping[str, TensorData], folder: Path
) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """Link the model's files in `folder` and add one with these tensors, the last of the files
    returned. Beside them the offset of each tensor in it."""
    total = len(model.files.shards) + 1
    *links, holder = (folder / _shard_name(number, total) for number in range(1, total + 1))
    data, offsets = _shard(tensors, number=total - 1, order=model.header.byte_order)
    for link, shard in zip(links, model.files.shards, strict=True):
        _link(link, shard.path)
    with storage("write", holder):
        holder.write_bytes(data)
    return (*links, holder), offsets


def _split_keys(model: StoredModel, added: int) -> dict[str, int | float | bool | str]:
    """The metadata of a split model of one shard more, with `added` tensors."""
    return {
        SPLIT_NO: 0,
        SPLIT_COUNT: len(model.files.shards) + 1,
        SPLIT_TENSORS: len(model.files.tensors) + added,
    }


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
        files=tuple(files),
        places=tuple(places),
        pairs=_pairs(model),
        byte_order=model.header.byte_order,
    )


def _added_factors(model: StoredModel) -> Edits:
    """Factor tensors for a file that has none, which are all ones."""
    names = _tensors_to_add(model)
    kind = TypedValue(type=ValueType.STRING, value=_scaling_type(names))
    return Edits(
        set={model.metadata.key("scaling_type"): kind},
        put_tensors=dict.fromkeys(names, _ones(model)),
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


def _ones(model: StoredModel) -> TensorData:
    return float_tensor((1.0,) * _pairs(model), model.header.byte_order)


def _shard_name(number: int, total: int) -> str:
    """A shard's file name as llama.cpp makes it (src/llama.cpp `llama_split_path`)."""
    return f"overlay-{number:05d}-of-{total:05d}.gguf"


def _shard(
    tensors: Mapping[str, TensorData], *, number: int, order: ByteOrder
) -> tuple[bytes, tuple[int, ...]]:
    """A GGUF file of these tensors, and the offset of each in it."""
    head = b"GGUF" + struct.pack(f"{order}IQQ", _VERSION, len(tensors), 1)
    head += encode_key_value(SPLIT_NO, TypedValue(type=ValueType.UINT16, value=number), order)
    body, places = b"", []
    for name, tensor in tensors.items():
        head += encode_tensor_info(name, tensor.shape, tensor.type, len(body), order)
        places.append(len(body))
        body += _padded(tensor.data)
    head = _padded(head)
    return head + body, tuple(len(head) + place for place in places)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _ALIGNMENT) * _ALIGNMENT, b"\0")


def _too_long(key: str, value: object) -> bool:
    texts = (key, value) if isinstance(value, str) else (key,)
    return any(len(text.encode("utf-8", "surrogateescape")) > _OVERRIDE_BYTES for text in texts)


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
