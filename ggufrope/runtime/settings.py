"""What a context is made with, and how that becomes llama.cpp's parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ggufrope.errors import WishError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.keys import SCALING_TYPES
from ggufrope.runtime.kvcache import cache_type

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
    # SCALING_TYPES is in the order of enum llama_rope_scaling_type, include/llama.h.
    scaling_type = None if rope.scaling_type is None else SCALING_TYPES.index(rope.scaling_type)
    return {
        "rope_scaling_type": scaling_type,
        "rope_freq_base": rope.freq_base,
        "rope_freq_scale": rope.freq_scale,
        "yarn_ext_factor": rope.yarn_ext_factor,
        "yarn_attn_factor": rope.yarn_attn_factor,
        "yarn_beta_fast": rope.yarn_beta_fast,
        "yarn_beta_slow": rope.yarn_beta_slow,
        "yarn_orig_ctx": rope.yarn_orig_ctx,
    }


def _count(name: str, value: int | None) -> int | None:
    if value is not None and not 0 < value <= _UINT32_MAX - 255:
        raise WishError(f"{name}={value}: must be a positive number of tokens below 2^32")
    return value
