"""Contexts that are sized but not made: what they would take, and whether they could run.

llama.cpp itself is asked: contexts of a model without weights go through every size and every
operation, and allocate nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggufrope.runtime import kvcache, library
from ggufrope.runtime.kvcache import Cache
from ggufrope.runtime.loading import Buffer, buffers
from ggufrope.runtime.settings import ContextSettings, context_parameters

if TYPE_CHECKING:
    from ggufrope.runtime.library import Log
    from ggufrope.runtime.model import Model

_SMALL = ContextSettings(n_ctx=256)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSupport:
    """Whether a pair of cache types runs on a model; `refusal` says why not.

    `falls_back` is True where the pair makes operations leave the GPU that f16 leaves there,
    which runs but is slow.
    """

    type_k: str
    type_v: str
    refusal: str | None
    falls_back: bool
    cache: Cache | None


def rehearse(model: Model, settings: ContextSettings) -> Rehearsal:
    """Size a context of `settings`, and free it again. Raises what making one would for numbers
    that cannot be."""
    return rehearse_handle(model.unallocated, settings, n_seq_max=model.n_sequences)


def rehearse_handle(model_handle: Any, settings: ContextSettings, *, n_seq_max: int) -> Rehearsal:
    """As `rehearse`, of a `llama_model *` loaded without weights."""
    llama = library.load()
    parameters = context_parameters(llama, settings, n_seq_max=n_seq_max)
    with library.capture(debug=True) as log:
        handle = llama.llama_init_from_model(model_handle, parameters)
        if handle:
            llama.llama_free(handle)
    splits = log.search(r"splits = (\d+)")
    cache = kvcache.allocated(log)
    return Rehearsal(
        refusal=None if handle else log.reason or "llama.cpp gave no reason",
        cache=cache,
        buffers=_totals((*_shares(cache, log), *buffers(log, "compute"), *buffers(log, "output"))),
        graph_splits=int(splits[-1][1]) if splits else 0,
    )


def cache_support(
    model: Model, type_k: str, type_v: str, *, flash_attention: bool | None = None
) -> CacheSupport:
    """Whether the pair runs on this model with this build; raises CacheTypeError for a type that
    does not exist."""
    refusal = kvcache.why_not(model, type_k, type_v, flash_attention=flash_attention)
    plain = replace(_SMALL, flash_attention=flash_attention)
    found = None
    if refusal is None:
        found = rehearse(model, replace(plain, type_k=type_k, type_v=type_v))
        refusal = found.refusal
    return CacheSupport(
        type_k=type_k,
        type_v=type_v,
        refusal=refusal,
        falls_back=found is not None
        and refusal is None
        and found.graph_splits > rehearse(model, plain).graph_splits,
        cache=None if found is None else found.cache,
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
