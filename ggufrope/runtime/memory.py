"""Whether a model can have a context: cache types that run, and memory that is free on each device.

Both are checked before the context is made. Where a machine promises more memory than it has, as
Linux does, the kernel would otherwise kill the process while llama.cpp clears the cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._bisect import largest
from ggufrope._format import byte_size
from ggufrope.container.ggml import cache_type
from ggufrope.errors import InsufficientMemoryError
from ggufrope.rope.cache import CacheRules, rules_of
from ggufrope.rope.llamacpp import CONTEXT_GRANULE
from ggufrope.runtime import library
from ggufrope.runtime.library import CPU
from ggufrope.runtime.loading import Buffer
from ggufrope.runtime.settings import ContextSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ggufrope.runtime.model import Model
    from ggufrope.runtime.sizing import Cache, ContextSize

_SMALL = ContextSettings(n_ctx=CONTEXT_GRANULE)
_SMALLER_CACHES = ("q8_0", "q4_0")
_CHECKED_BYTES = 512 * 1024 * 1024
"""Caches below this are not checked: the check would take longer than it is worth."""
_BEYOND_DOUBT = 16
"""An estimate this many times the free memory is believed: sizing it would itself take too much."""


# Cache types --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSupport:
    """Whether a pair of cache types runs on a model; `refusal` is the reason where it does not.

    `falls_back` is True where operations leave the GPU that stay on it with f16, which runs but is
    slow; None where llama.cpp's log does not say.
    """

    type_k: str
    type_v: str
    refusal: str | None
    falls_back: bool | None
    cache: Cache | None


def cache_support(
    model: Model, type_k: str, type_v: str, *, flash_attention: bool | None = None
) -> CacheSupport:
    """Return whether this build runs the pair on this model.

    Raises UnsupportedCacheError for a type that does not exist.
    """
    refusal = cache_refusal(model, type_k, type_v, flash_attention=flash_attention)
    plain = replace(_SMALL, flash_attention=flash_attention)
    size = None
    if refusal is None:
        size = model.size_context(replace(plain, type_k=type_k, type_v=type_v))
        refusal = size.refusal
    return CacheSupport(
        type_k=type_k,
        type_v=type_v,
        refusal=refusal,
        falls_back=_falls_back(size, model.size_context(plain)) if size and not refusal else False,
        cache=None if size is None else size.cache,
    )


def _falls_back(size: ContextSize, plain: ContextSize) -> bool | None:
    """Return whether a computation changes device more often than that of the plain context."""
    if size.graph_splits is None or plain.graph_splits is None:
        return None
    return size.graph_splits > plain.graph_splits


def cache_refusal(
    model: Model, type_k: str, type_v: str, *, flash_attention: bool | None = None
) -> str | None:
    """Return why llama.cpp's rules forbid the pair on this model; None where they allow it.

    Raises UnsupportedCacheError for a type that does not exist.
    """
    return _rules(model).refusal(type_k, type_v, flash_attention=flash_attention)


def _rules(model: Model) -> CacheRules:
    declared = model.attention_size
    keys, values = [model.head_size], [model.value_head_size]
    if model.n_swa:
        keys.append(declared("key_length_swa") or model.head_size)
        values.append(declared("value_length_swa") or model.value_head_size)
    return rules_of(
        model.architecture,
        keys,
        values,
        latent=bool(declared("key_length_mla") and declared("value_length_mla")),
        kv_lora_rank=declared("kv_lora_rank"),
    )


# Memory -------------------------------------------------------------------------------------------


def free_memory(servers: Collection[str] = ()) -> dict[str, int]:
    """Return the bytes free by device name, those of these RPC servers included; "CPU" is what this
    process may still take. A device that does not say what it has is left out."""
    free = {each.name: each.memory_free for each in library.devices(servers) if each.memory_total}
    limits = [free.get(CPU), _available(), _left_in_control_group()]
    free[CPU] = min(limit for limit in limits if limit is not None)
    return free


def context_need(model: Model, settings: ContextSettings) -> tuple[Buffer, ...]:
    """Return the cache, compute and output buffers of a context, one total per device.

    Where the log names no cache, and all there is to hold one is the CPU, it is estimated. Raises
    InsufficientMemoryError where llama.cpp cannot even size the context.
    """
    size = model.size_context(settings)
    if size.refusal is not None:
        raise InsufficientMemoryError(
            f"{model.path.name}: llama.cpp cannot size a context of {settings.n_ctx} tokens: "
            f"{size.refusal}"
        )
    unnamed = size.cache is None and model.purpose.keeps_cache and not model.has_state
    if unnamed and not library.can_offload():
        return (
            *size.buffers,
            Buffer(device=CPU, size_bytes=estimated_cache_bytes(model, settings)),
        )
    return size.buffers


def estimated_cache_bytes(model: Model, settings: ContextSettings) -> int:
    """Return the bytes of a context's cache, as if every layer had the heads of the first."""
    heads = model.n_head_kv or model.n_head
    k = cache_type(settings.type_k).row_bytes(heads * model.head_size)
    v = cache_type(settings.type_v).row_bytes(heads * model.value_head_size)
    return (settings.n_ctx + settings.spare) * model.n_layer * (k + v)


def require_fit(
    model: Model, settings: ContextSettings, free: Mapping[str, int] | None = None
) -> None:
    """Raise InsufficientMemoryError where a context does not fit into `free`.

    `free` is bytes by device; None is what is free now. The message names the largest context
    that would fit, and cache types with which this one would.
    """
    estimate = estimated_cache_bytes(model, settings)
    if free is None:
        if estimate < _CHECKED_BYTES:
            return
        free = free_memory(model.servers)
    if _is_beyond_doubt(model, settings, free):
        device, need_bytes = CPU, estimate
    else:
        lacking = _lacking(context_need(model, settings), free)
        if lacking is None:
            return
        device, need_bytes = lacking.device, lacking.size_bytes
    raise InsufficientMemoryError(
        f"{model.path.name}: a context of {settings.n_ctx} tokens with K {settings.type_k} and V "
        f"{settings.type_v} needs {byte_size(need_bytes)} on {device}, but "
        f"{byte_size(free.get(device, 0))} are free; "
        + (", or ".join(_remedies(model, settings, free)) or "no length would fit")
    )


def largest_context(model: Model, settings: ContextSettings, free: Mapping[str, int]) -> int:
    """Return the most tokens, up to `settings.n_ctx`, that fit into `free`; 0 where none do.

    The number is a multiple of 256.
    """
    token_bytes = estimated_cache_bytes(model, replace(settings, n_ctx=1))
    most = _BEYOND_DOUBT * sum(free.values()) // token_bytes

    def fits(granules: int) -> bool:
        tokens = granules * CONTEXT_GRANULE
        return _lacking(context_need(model, replace(settings, n_ctx=tokens)), free) is None

    needed = -(-settings.n_ctx // CONTEXT_GRANULE)
    return largest(fits, 0, min(needed, most // CONTEXT_GRANULE)) * CONTEXT_GRANULE


def _remedies(model: Model, settings: ContextSettings, free: Mapping[str, int]) -> Iterator[str]:
    """Yield what would make a context fit: a shorter one, then the first smaller cache type."""
    tokens = largest_context(model, settings, free)
    if tokens:
        yield f"{tokens} tokens would fit"
    for kind in _SMALLER_CACHES:
        smaller = replace(settings, type_k=kind, type_v=kind)
        if _is_beyond_doubt(model, smaller, free):
            continue
        runs = cache_refusal(model, kind, kind, flash_attention=settings.flash_attention) is None
        if runs and _lacking(context_need(model, smaller), free) is None:
            yield f"K and V in {kind} would make it fit"
            return


def _is_beyond_doubt(model: Model, settings: ContextSettings, free: Mapping[str, int]) -> bool:
    return estimated_cache_bytes(model, settings) > _BEYOND_DOUBT * sum(free.values())


def _lacking(need: tuple[Buffer, ...], free: Mapping[str, int]) -> Buffer | None:
    """Return the first buffer that is larger than the memory free on its device."""
    return next((b for b in need if b.size_bytes > free.get(b.device, free[CPU])), None)


def _available() -> int | None:
    """Return Linux's own estimate of the bytes that can be taken without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    line = re.search(r"^MemAvailable: +(\d+) kB", text, re.MULTILINE)
    return int(line[1]) * 1024 if line else None


def _left_in_control_group() -> int | None:
    """Return the bytes that a container's limit leaves, where there is a limit (cgroup v2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        current = int((group / "memory.current").read_text(encoding="ascii"))
        return int(limit) - current
    except (OSError, ValueError):
        return None
