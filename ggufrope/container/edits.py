"""What to change in a GGUF file: values to set and tensors to put, as plain data."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.container import ggml
from ggufrope.container.types import ValueType
from ggufrope.errors import WishError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.container.types import ByteOrder, Scalar

PADDING_KEY = "ggufrope.padding"
"""Holds reserved header space: an array of UINT8 zeros that later edits shrink instead of moving
the tensor data. Nothing reads it; any program may drop it. It is laid out by this package alone."""

Content: TypeAlias = "Scalar | tuple[Scalar, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedValue:
    """A metadata value to write: a scalar, or with `type` ARRAY a tuple of `item_type`."""

    type: ValueType
    value: Content
    item_type: ValueType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorData:
    """A tensor to write. `shape` is innermost first; `data` is in the file's byte order."""

    shape: tuple[int, ...]
    data: bytes
    type: int = ggml.F32


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Changes to one file.

    Keys that exist keep their place, new ones follow the last. `rename_tensors` maps old names to
    new ones; `put_tensors` replaces the tensor of that (new) name in its place, or appends it.
    """

    set: Mapping[str, TypedValue] = field(default_factory=dict)
    remove: frozenset[str] = frozenset()
    put_tensors: Mapping[str, TensorData] = field(default_factory=dict)
    remove_tensors: frozenset[str] = frozenset()
    rename_tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def touches_tensors(self) -> bool:
        return bool(self.put_tensors or self.remove_tensors or self.rename_tensors)


def float_tensor(values: Sequence[float], byte_order: ByteOrder) -> TensorData:
    """A one-dimensional F32 tensor, such as RoPE factors. Raises WishError beyond F32's range."""
    try:
        data = struct.pack(f"{byte_order}{len(values)}f", *values)
    except (struct.error, OverflowError) as error:
        raise WishError(f"tensor values do not fit F32: {error}") from error
    return TensorData(shape=(len(values),), data=data)
