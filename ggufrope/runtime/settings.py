"""The settings of a context, and llama.cpp's parameters made from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ggufrope.container.ggml import cache_type
from ggufrope.errors import RequestError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.keys import SCALING_TYPES
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, allocated_context

_MOST_TOKENS = 2**31 - CONTEXT_GRANULE  # positions are int32
_MOST_THREADS = 512  # GGML_MAX_N_THREADS, ggml/include/ggml.h
_NOTHING_OVERRIDDEN = RopeOverrides()

SEQUENCES = 64
"""Sequences of a context: the trunk, and the branches that are evaluated together."""
SEQUENCES_WITH_STATE = 2
"""The same where each sequence has a recurrent state in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """The settings that a context is made with.

    None, also inside `rope`, leaves the choice to llama.cpp and the file.

    `n_ctx` counts tokens. `spare` counts further KV cells, so that questions to a full context are
    evaluated together and not one by one. llama.cpp rounds the sum up to a multiple of 256.
    `flash_attention` None is llama.cpp's auto. `n_threads` None is every CPU that this process may
    use. `swa_full` keeps the whole history in the cache of sliding-window layers; without it
    nothing can be branched or rewound.
    """

    n_ctx: int
    spare: int = 0
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
    """Return a `llama_context_params`: llama.cpp's defaults, changed only where `settings` says.

    There are `n_seq_max` sequences, or fewer where batches are small: llama.cpp requires that a
    batch has room for one token of every sequence. Raises RequestError for a number out of range.
    """
    n_threads = settings.n_threads
    if n_threads is None:
        n_threads = min(usable_cpus(), _MOST_THREADS)
    spare = settings.spare
    cells = _within("n_ctx", settings.n_ctx, 1, _MOST_TOKENS - spare) + spare
    chosen: dict[str, int | float | bool | None] = {
        "n_ctx": allocated_context(cells),
        "n_batch": _if_given("n_batch", settings.n_batch, 2),
        "n_ubatch": _if_given("n_ubatch", settings.n_ubatch, 1),
        "n_threads": _within("n_threads", n_threads, 1, _MOST_THREADS),
        "n_threads_batch": n_threads,
        "kv_unified": True,
        "type_k": cache_type(settings.type_k).number,
        "type_v": cache_type(settings.type_v).number,
        "flash_attn_type": settings.flash_attention,  # -1 auto, 0 off, 1 on
        "swa_full": settings.swa_full,
        "offload_kqv": settings.offload_kqv,
        **_rope_parameters(settings.rope),
    }
    parameters = llama.llama_context_default_params()
    for name, value in chosen.items():
        if value is not None:
            setattr(parameters, name, value)
    parameters.n_seq_max = min(n_seq_max, parameters.n_batch)
    return parameters


def usable_cpus() -> int:
    """Return how many CPUs this process may run on."""
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


def _within(name: str, value: int, least: int, most: int = _MOST_TOKENS) -> int:
    if not least <= value <= most:
        raise RequestError(f"{name}={value}: must be from {least} to {most}")
    return value


def _if_given(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else _within(name, value, least)
