"""K/V cache types: what a token costs in each, and which pairs llama.cpp can run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufrope.runtime import library
from ggufrope.runtime.loading import Buffer, buffers
from ggufrope.runtime.settings import ContextSettings, context_parameters

if TYPE_CHECKING:
    from ggufrope.runtime.library import Log


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


# Contexts that are sized but not made: what they would take, and whether they could run.
#
# llama.cpp itself is asked: contexts of a model without weights go through every size and every
# operation, and allocate nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a context would be. `refusal` is llama.cpp's reason where it cannot be made.

    `buffers` has one total of cache, compute and output a device; the cache is shared out by the
    layers of each device, which is exact where layers are alike. `graph_splits` counts the parts
    of the computation between which it changes device.
    """

    refusal: str | None
    cache: Cache | None
    buffers: tuple[Buffer, ...]
    graph_splits: int


def rehearse_handle(model_handle: Any, settings: ContextSettings, *, n_seq_max: int) -> Rehearsal:
    """As `rehearse`, of a `llama_model *` loaded without weights."""
    llama = library.load()
    parameters = context_parameters(llama, settings, n_seq_max=n_seq_max)
    with library.capture(debug=True) as log:
        handle = llama.llama_init_from_model(model_handle, parameters)
        if handle:
            llama.llama_free(handle)
    splits = log.search(r"splits = (\d+)")
    cache = allocated(log)
    return Rehearsal(
        refusal=None if handle else log.reason or "llama.cpp gave no reason",
        cache=cache,
        buffers=_totals((*_shares(cache, log), *buffers(log, "compute"), *buffers(log, "output"))),
        graph_splits=int(splits[-1][1]) if splits else 0,
    )


def _shares(cache: Cache | None, log: Log) -> tuple[Buffer, ...]:
    layers = Counter(line[1] for line in log.search(r"^llama_kv_cache: layer +\d+: dev = (\S+)"))
    if cache is None:
        return ()
    return tuple(
        Buffer(device=device, size_bytes=cache.size_bytes * count // sum(layers.values()))
        for device, count in layers.items()
    )


def _totals(parts: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    total = Counter[str]()
    for part in parts:
        total[part.device] += part.size_bytes
    return tuple(Buffer(device=device, size_bytes=size) for device, size in total.items())
