"""What a context is made with, and how that becomes llama.cpp's parameters."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import Any

from ggufrope.errors import WishError
from ggufrope.rope.llamacpp import RopeOverrides
from ggufrope.runtime.kvcache import cache_type

SCALING_TYPES = ("none", "linear", "yarn", "longrope")
"""The words of `rope.scaling.type` by their number in `enum llama_rope_scaling_type`
(include/llama.h); llama.cpp aborts the process on any other."""

_UINT32_MAX = 2**32 - 1
_NOTHING_OVERRIDDEN = RopeOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """What a context is made with. None, and the None of `rope`, leave the choice to llama.cpp
    and the file.

    `n_ctx` counts tokens; llama.cpp rounds it up to a multiple of 256. `flash_attention` None is
    llama.cpp's auto. `n_threads` None is every CPU this process may use. `swa_full` keeps the
    whole history in the cache of sliding-window layers, without which nothing can be branched or
    rewound.
    """

    n_ctx: int
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: bool | None = None
    rope: RopeOverrides = _NOTHING_OVERRIDDEN
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_threads: int | None = None
    swa_full: bool = True
    offload_kqv: bool = True


def context_parameters(llama: Any, settings: ContextSettings, *, n_seq_max: int) -> Any:
    """A `llama_context_params`: llama.cpp's defaults, changed only in what was asked for.

    Raises WishError for a number llama.cpp cannot take.
    """
    n_threads = settings.n_threads or usable_cpus()
    asked: dict[str, int | float | bool | None] = {
        "n_ctx": _count("n_ctx", settings.n_ctx),
        "n_batch": _count("n_batch", settings.n_batch),
        "n_ubatch": _count("n_ubatch", settings.n_ubatch),
        "n_threads": n_threads,
        "n_threads_batch": n_threads,
        "n_seq_max": n_seq_max,
        "kv_unified": True,
        "type_k": cache_type(settings.type_k).number,
        "type_v": cache_type(settings.type_v).number,
        "flash_attn_type": settings.flash_attention,  # -1 auto, 0 off, 1 on
        "swa_full": settings.swa_full,
        "offload_kqv": settings.offload_kqv,
        **_rope_parameters(settings.rope),
    }
    parameters = llama.llama_context_default_params()
    for name, value in asked.items():
        if value is not None:
            setattr(parameters, name, value)
    return parameters


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rope_parameters(rope: RopeOverrides) -> dict[str, int | float | None]:
    """llama.cpp reads zero or below in these as "unset", so such a wish must not get through."""
    parameters: dict[str, int | float | None] = {}
    for item in fields(rope):
        value = getattr(rope, item.name)
        if item.name == "scaling_type":
            parameters["rope_scaling_type"] = _scaling_number(value)
            continue
        may_be_zero = item.name.startswith("yarn_") and item.name != "yarn_orig_ctx"
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise WishError(f"{item.name}={value}: must be a finite number, not negative")
        if value == 0 and not may_be_zero:
            raise WishError(f"{item.name}=0: must be above zero (llama.cpp takes 0 for unset)")
        name = item.name if item.name.startswith("yarn_") else f"rope_{item.name}"
        parameters[name] = value
    return parameters


def _scaling_number(word: str | None) -> int | None:
    if word is None:
        return None
    if word not in SCALING_TYPES:
        raise WishError(f"scaling type {word!r}: llama.cpp knows {', '.join(SCALING_TYPES)}")
    return SCALING_TYPES.index(word)


def _count(name: str, value: int | None) -> int | None:
    if value is not None and not 0 < value <= _UINT32_MAX - 255:
        raise WishError(f"{name}={value}: must be a positive number of tokens below 2^32")
    return value
