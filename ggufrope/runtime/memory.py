"""What a context would take on each device, against what is free there, before it is made.

Without this check a machine that promises more memory than it has (as Linux does) would kill the
process while the cache is cleared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._format import byte_size
from ggufrope.container.ggml import cache_type
from ggufrope.errors import InsufficientMemoryError
from ggufrope.runtime import library
from ggufrope.runtime.loading import Buffer
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.sizing import Cache, Rehearsal, rehearse_handle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.runtime.model import Model


# K/V cache types: what a token costs in each, and which pairs llama.cpp can run.


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


def estimated_cache_bytes(model: Model, settings: ContextSettings) -> int:
    """Bytes of a context's cache, as if every layer had the heads of the first."""
    heads = model.n_head_kv or model.n_head
    k = cache_type(settings.type_k).row_bytes(heads * model.head_size)
    v = cache_type(settings.type_v).row_bytes(heads * model.value_head_size)
    return (settings.n_ctx + settings.spare) * model.n_layer * (k + v)


# Contexts that are sized but not made: what they would take, and whether they could run.
#
# llama.cpp itself is asked: contexts of a model without weights go through every size and every
# operation, and allocate nothing.

_SMALL = ContextSettings(n_ctx=256)


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


def cache_support(
    model: Model, type_k: str, type_v: str, *, flash_attention: bool | None = None
) -> CacheSupport:
    """Whether the pair runs on this model with this build; raises UnsupportedCacheError for a type
    that does not exist."""
    refusal = why_not(model, type_k, type_v, flash_attention=flash_attention)
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


_CPU = "CPU"
_SMALLEST = 256
_SMALLER_CACHES = ("q8_0", "q4_0")
_CHECKED_BYTES = 512 * 1024 * 1024
"""Caches below this are not worth the time the check takes."""
_BEYOND_DOUBT = 16
"""An estimate so many times what is free is believed: asking would itself take too much."""


def free_memory() -> dict[str, int]:
    """Bytes free by device name; "CPU" is what this process may still take."""
    free = {device.name: device.memory_free for device in library.devices()}
    limits = [free.get(_CPU), _available(), _left_in_control_group()]
    free[_CPU] = min(limit for limit in limits if limit is not None)
    return free


def context_need(model: Model, settings: ContextSettings) -> tuple[Buffer, ...]:
    """Cache, compute and output buffers a context would take, one total a device.

    Raises InsufficientMemoryError where llama.cpp cannot even size it.
    """
    rehearsal = rehearse(model, settings)
    if rehearsal.refusal is not None:
        raise InsufficientMemoryError(
            f"{model.path.name}: llama.cpp cannot size a context of {settings.n_ctx} tokens: "
            f"{rehearsal.refusal}"
        )
    return rehearsal.buffers


def require_fit(
    model: Model, settings: ContextSettings, free: Mapping[str, int] | None = None
) -> None:
    """InsufficientMemoryError where a context does not fit into `free` (None: what is free now),
    with the largest that would and the cache types that would make it fit."""
    estimate = estimated_cache_bytes(model, settings)
    if free is None:
        if estimate < _CHECKED_BYTES:
            return
        free = free_memory()
    if estimate > _BEYOND_DOUBT * sum(free.values()):
        lacking: Buffer | None = Buffer(device=_CPU, size_bytes=estimate)
    else:
        lacking = _lacking(context_need(model, settings), free)
    if lacking is None:
        return
    remedies = []
    largest = largest_context(model, settings, free)
    if largest:
        remedies.append(f"{largest} tokens would fit")
    for kind in _SMALLER_CACHES:
        smaller = replace(settings, type_k=kind, type_v=kind)
        if estimated_cache_bytes(model, smaller) > _BEYOND_DOUBT * sum(free.values()):
            continue
        runs = why_not(model, kind, kind, flash_attention=settings.flash_attention) is None
        if runs and _lacking(context_need(model, smaller), free) is None:
            remedies.append(f"K and V in {kind} would make it fit")
            break
    raise InsufficientMemoryError(
        f"{model.path.name}: a context of {settings.n_ctx} tokens with K {settings.type_k} and V "
        f"{settings.type_v} needs {byte_size(lacking.size_bytes)} on {lacking.device}, where "
        f"{byte_size(free.get(lacking.device, 0))} are free; "
        + (", or ".join(remedies) or "no length would fit")
    )


def largest_context(model: Model, settings: ContextSettings, free: Mapping[str, int]) -> int:
    """The most tokens, a multiple of 256, that fit into `free` up to `settings.n_ctx`; 0 where
    none do."""
    most = (
        _BEYOND_DOUBT
        * sum(free.values())
        // estimated_cache_bytes(model, replace(settings, n_ctx=1))
    )
    low, high = 0, min(-(-settings.n_ctx // _SMALLEST), most // _SMALLEST)
    while low < high:
        middle = (low + high + 1) // 2
        need = context_need(model, replace(settings, n_ctx=middle * _SMALLEST))
        low, high = (middle, high) if _lacking(need, free) is None else (low, middle - 1)
    return low * _SMALLEST


def _lacking(need: tuple[Buffer, ...], free: Mapping[str, int]) -> Buffer | None:
    """The first device that has too little."""
    return next((b for b in need if b.size_bytes > free.get(b.device, free[_CPU])), None)


def _available() -> int | None:
    """Linux's own estimate of what can be taken without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _left_in_control_group() -> int | None:
    """What a container's limit leaves, where there is one (cgroup v2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        current = int((group / "memory.current").read_text(encoding="ascii"))
        return int(limit) - current
    except (OSError, ValueError):
        return None
