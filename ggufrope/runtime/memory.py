"""What a context would take on each device, against what is free there, before it is made.

Without this check a machine that promises more memory than it has (as Linux does) would kill the
process while the cache is cleared.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.errors import MemoryNeedError
from ggufrope.runtime import kvcache, library
from ggufrope.runtime.loading import Buffer
from ggufrope.runtime.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.runtime.model import Model
    from ggufrope.runtime.settings import ContextSettings

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

    Raises MemoryNeedError where llama.cpp cannot even size it.
    """
    rehearsal = rehearse(model, settings)
    if rehearsal.refusal is not None:
        raise MemoryNeedError(
            f"{model.path.name}: llama.cpp cannot size a context of {settings.n_ctx} tokens: "
            f"{rehearsal.refusal}"
        )
    return rehearsal.buffers


def require_fit(
    model: Model, settings: ContextSettings, free: Mapping[str, int] | None = None
) -> None:
    """MemoryNeedError where a context does not fit into `free` (None: what is free now), with
    the largest that would and the cache types that would make it fit."""
    estimate = kvcache.estimate(model, settings)
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
        if kvcache.estimate(model, smaller) > _BEYOND_DOUBT * sum(free.values()):
            continue
        runs = kvcache.why_not(model, kind, kind, flash_attention=settings.flash_attention) is None
        if runs and _lacking(context_need(model, smaller), free) is None:
            remedies.append(f"K and V in {kind} would make it fit")
            break
    raise MemoryNeedError(
        f"{model.path.name}: a context of {settings.n_ctx} tokens with K {settings.type_k} and V "
        f"{settings.type_v} needs {_gib(lacking.size_bytes)} on {lacking.device}, where "
        f"{_gib(free.get(lacking.device, 0))} are free; "
        + (", or ".join(remedies) or "no length would fit")
    )


def largest_context(model: Model, settings: ContextSettings, free: Mapping[str, int]) -> int:
    """The most tokens, a multiple of 256, that fit into `free` up to `settings.n_ctx`; 0 where
    none do."""
    most = _BEYOND_DOUBT * sum(free.values()) // kvcache.estimate(model, replace(settings, n_ctx=1))
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


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
