"""The size of a context that is not made: its cache, its buffers, and whether it could run.

llama.cpp itself is asked. A context of a model without weights goes through every size and every
operation, and allocates nothing. What comes back is read from the log.
"""

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

    `cells` counts KV cells. `rotated_k` and `rotated_v` are True where llama.cpp rotates values by
    a Hadamard matrix before it quantizes them, which spreads outliers and so changes what
    quantization costs. `flash_attention` is what llama.cpp chose. Each is None where the log does
    not say.
    """

    cells: int
    size_bytes: int
    rotated_k: bool | None
    rotated_v: bool | None
    flash_attention: bool | None

    @property
    def bytes_per_token(self) -> float:
        return self.size_bytes / self.cells


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSize:
    """The size of a context, or in `refusal` llama.cpp's reason why it cannot be made.

    `buffers` has one total of cache, compute and output per device. The cache is divided by the
    number of layers on each device, which is exact where layers are alike. `graph_splits` counts
    the parts of the computation between which it changes device, None where the log does not say.
    """

    refusal: str | None
    cache: Cache | None
    buffers: tuple[Buffer, ...]
    graph_splits: int | None


def size_context(model_handle: Any, settings: ContextSettings, *, n_seq_max: int) -> ContextSize:
    """Return the size of a context of a `llama_model *` that was loaded without weights.

    Raises RequestError for settings out of range.
    """
    llama = library.load()
    parameters = context_parameters(llama, settings, n_seq_max=n_seq_max)
    with library.capture(debug=True) as log:
        handle = llama.llama_init_from_model(model_handle, parameters)
        if handle:
            llama.llama_free(handle)
    splits = log.search(r"splits = (\d+)")
    cache = allocated(log)
    return ContextSize(
        refusal=None if handle else log.reason or "llama.cpp gave no reason",
        cache=cache,
        buffers=_totals((*_shares(cache, log), *buffers(log, "compute"), *buffers(log, "output"))),
        graph_splits=int(splits[-1][1]) if splits else None,
    )


def allocated(log: Log) -> Cache | None:
    """Return the cache that the log of a context describes; None where it describes none."""
    sizes = log.search(r"size = +([\d.]+) MiB \( *(\d+) cells, +\d+ layers")
    if not sizes:
        return None
    return Cache(
        cells=max(int(line[2]) for line in sizes),
        size_bytes=round(sum(float(line[1]) for line in sizes) * 1024 * 1024),
        rotated_k=_rotated(log, "k"),
        rotated_v=_rotated(log, "v"),
        flash_attention=_flash_attention(log),
    )


def _rotated(log: Log, which: str) -> bool | None:
    """Return whether any cache has its K or V rotated.

    Version 0c1e570 says whether, b11434 the size of the matrix, 0 for none.
    """
    lines = log.search(rf"(?:attn_rot|n_rot)_{which} = (\d+)")
    return any(int(line[1]) for line in lines) if lines else None


def _flash_attention(log: Log) -> bool | None:
    """Return whether flash attention is on, by the last line that says so."""
    said = (
        "(?:Flash Attention|flash_attn +=) (?:was auto, set to )?"
        "(?:(enabled)|disabled|not supported)"
    )
    lines = log.search(said)
    return lines[-1][1] is not None if lines else None


def _shares(cache: Cache | None, log: Log) -> tuple[Buffer, ...]:
    """Divide the cache by the layers that each device has."""
    layers = Counter(line[1] for line in log.search(r"^llama_kv_cache: layer +\d+: dev = (\S+)"))
    if cache is None:
        return ()
    if not layers and not library.can_offload():  # a log without these lines
        layers[library.CPU] = 1
    return tuple(
        Buffer(device=device, size_bytes=cache.size_bytes * count // sum(layers.values()))
        for device, count in layers.items()
    )


def _totals(parts: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    total = Counter[str]()
    for part in parts:
        total[part.device] += part.size_bytes
    return tuple(Buffer(device=device, size_bytes=size) for device, size in total.items())
