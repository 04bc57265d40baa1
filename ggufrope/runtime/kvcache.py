"""K/V cache types: what a token costs in each, and which pairs llama.cpp can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container import ggml
from ggufrope.errors import CacheTypeError

if TYPE_CHECKING:
    from ggufrope.runtime.library import Log
    from ggufrope.runtime.model import Model
    from ggufrope.runtime.settings import ContextSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheType:
    """How cache rows are stored: `block_bytes` for every `block_size` values.

    `number` is the ggml type, ggml/include/ggml.h.
    """

    name: str
    number: int
    block_size: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        return self.block_size > 1

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` values; `width` is a multiple of the block size."""
        return width // self.block_size * self.block_bytes


CACHE_TYPES = {
    name: CacheType(
        name=name,
        number=number,
        block_size=ggml.TYPES[number].block_size,
        block_bytes=ggml.TYPES[number].block_bytes,
    )
    for name, number in ggml.CACHE_TYPES.items()
}
"""The types a cache can have, by name."""


def cache_type(name: str) -> CacheType:
    """The type called `name`; CacheTypeError where there is none."""
    try:
        return CACHE_TYPES[name]
    except KeyError:
        raise CacheTypeError(
            f"unknown cache type {name!r}; there are {', '.join(CACHE_TYPES)}"
        ) from None


def why_not(
    model: Model, type_k: str, type_v: str, *, flash_attention: bool | None = None
) -> str | None:
    """Why this model cannot run the pair, by llama.cpp's rules; None where nothing forbids it.

    The rules are those of `llama_init_from_model` (src/llama-context.cpp): a quantized V needs
    flash attention, and the block must divide the head (without flash attention nobody checks,
    and ggml aborts).
    """
    k, v = cache_type(type_k), cache_type(type_v)
    if v.quantized and flash_attention is False:
        return f"V cache {v.name} is quantized, which needs flash attention, and that is off"
    for letter, kind, head in (("K", k, model.head_size), ("V", v, model.value_head_size)):
        if kind.quantized and head % kind.block_size:
            return (
                f"{letter} cache {kind.name} has blocks of {kind.block_size} values, which do not "
                f"divide the head size {head}"
            )
    return None


def estimate(model: Model, settings: ContextSettings) -> int:
    """Bytes of a context's cache, as if every layer had the heads of the first."""
    heads = model.n_head_kv or model.n_head
    k = cache_type(settings.type_k).row_bytes(heads * model.head_size)
    v = cache_type(settings.type_v).row_bytes(heads * model.value_head_size)
    return (settings.n_ctx + settings.spare) * model.n_layer * (k + v)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The K/V cache of a context as llama.cpp allocated it, to 0.01 MiB.

    `rotated_k` and `rotated_v` say whether values are rotated by a Hadamard matrix before they
    are quantized, which spreads outliers and so changes what quantization costs.
    `flash_attention` is what llama.cpp settled on.
    """

    cells: int
    size_bytes: int
    rotated_k: bool
    rotated_v: bool
    flash_attention: bool

    @property
    def bytes_per_token(self) -> float:
        return self.size_bytes / self.cells


def allocated(log: Log) -> Cache | None:
    """What a context's log says of its cache; None for a model without one."""
    sizes = log.search(r"size = +([\d.]+) MiB \( *(\d+) cells, +\d+ layers")
    if not sizes:
        return None
    return Cache(
        cells=max(int(line[2]) for line in sizes),
        size_bytes=round(sum(float(line[1]) for line in sizes) * 1024 * 1024),
        rotated_k=bool(log.search("attn_rot_k = 1")),
        rotated_v=bool(log.search("attn_rot_v = 1")),
        flash_attention=bool(log.search("Flash Attention enabled|flash_attn += enabled")),
    )
