"""The RoPE sections of published models, as their config.json or params.json has them.

Factor arrays are shortened: their values belong to their authors, and say nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ggufrope.rope.frequencies import yarn_magnitude
from ggufrope.rope.huggingface import from_config
from ggufrope.rope.scaling import (
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Proportional,
    RopeScaling,
    Unscaled,
    Yarn,
)


@dataclass(frozen=True)
class Case:
    """A published section, and what it means; `window` is the base of sliding-window layers where
    they have one of their own."""

    model: str
    config: dict[str, Any]
    scaling: RopeScaling
    base: float | None
    context: int | None
    n_rot: int | None
    window: float | None


def case(
    model: str,
    config: dict[str, Any],
    scaling: RopeScaling,
    *,
    base: float | None,
    context: int | None,
    n_rot: int | None = None,
    window: float | None = None,
) -> Case:
    return Case(model, config, scaling, base, context, n_rot, window)


CASES = [
    case(
        "Qwen2.5-7B-Instruct",
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_sliding_window": False,
        },
        Unscaled(),
        base=1000000.0,
        context=32768,
        n_rot=None,
        window=None,
    ),
    case(
        "Qwen2.5-7B + README YaRN",
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "type": "yarn",
            },
        },
        Yarn(factor=4.0, original_context=32768),
        base=1000000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "Qwen3-8B + README YaRN",
        {
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
        Yarn(factor=4.0, original_context=32768),
        base=1000000.0,
        context=131072,
        n_rot=128,
        window=None,
    ),
    case(
        "Qwen3-Next-80B",
        {
            "head_dim": 256,
            "max_position_embeddings": 262144,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_scaling": None,
        },
        Unscaled(),
        base=10000000.0,
        context=262144,
        n_rot=64,
        window=None,
    ),
    case(
        "Qwen3-VL-8B",
        {
            "text_config": {
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rope_theta": 5000000,
                "rope_scaling": {
                    "mrope_interleaved": True,
                    "mrope_section": [24, 20, 20],
                    "rope_type": "default",
                },
            }
        },
        Unscaled(),
        base=5000000.0,
        context=262144,
        n_rot=128,
        window=None,
    ),
    case(
        "Qwen3.5/3.6 text_config",
        {
            "text_config": {
                "head_dim": 256,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [11, 11, 10],
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10000000,
                    "rope_type": "default",
                },
            }
        },
        Unscaled(),
        base=10000000.0,
        context=262144,
        n_rot=64,
        window=None,
    ),
    case(
        "Qwen3.6 README YaRN",
        {
            "text_config": {
                "head_dim": 256,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [11, 11, 10],
                    "rope_type": "yarn",
                    "rope_theta": 10000000,
                    "partial_rotary_factor": 0.25,
                    "factor": 4.0,
                    "original_max_position_embeddings": 262144,
                },
            }
        },
        Yarn(factor=4.0, original_context=262144),
        base=10000000.0,
        context=1048576,
        n_rot=64,
        window=None,
    ),
    case(
        "Llama-3.1-8B",
        {
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        Llama3(factor=8.0, original_context=8192),
        base=500000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "Llama-3.2-1B",
        {
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        Llama3(factor=32.0, original_context=8192),
        base=500000.0,
        context=131072,
        n_rot=64,
        window=None,
    ),
    case(
        "Llama-4-Scout",
        {
            "text_config": {
                "head_dim": 128,
                "max_position_embeddings": 10485760,
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "factor": 16.0,
                    "high_freq_factor": 1.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                    "rope_type": "llama3",
                },
                "no_rope_layers": [],
            }
        },
        Llama3(factor=16.0, original_context=8192, high_freq_factor=1.0),
        base=500000.0,
        context=10485760,
        n_rot=128,
        window=None,
    ),
    case(
        "Phi-3-mini-128k (su)",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]},
        },
        LongRope(
            long_factors=(1.0, 2.0), short_factors=(1.0, 2.0), original_context=4096, factor=32.0
        ),
        base=10000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "Phi-3.5-MoE",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "long_mscale": 1.243163121016122,
                "short_mscale": 1.243163121016122,
                "original_max_position_embeddings": 4096,
                "short_factor": [1.0, 2.0],
                "long_factor": [1.0, 2.0],
            },
        },
        LongRope(
            long_factors=(1.0, 2.0),
            short_factors=(1.0, 2.0),
            original_context=4096,
            attention_factor=1.243163121016122,
        ),
        base=10000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "Phi-4-mini",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 2.0],
                "long_factor": [1.0, 2.0],
            },
        },
        LongRope(
            long_factors=(1.0, 2.0), short_factors=(1.0, 2.0), original_context=4096, factor=32.0
        ),
        base=10000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "DeepSeek-V2-Lite",
        {
            "max_position_embeddings": 163840,
            "qk_rope_head_dim": 64,
            "rope_theta": 10000,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        },
        Yarn(factor=40.0, original_context=4096, mscale=0.707, mscale_all_dim=0.707),
        base=10000.0,
        context=163840,
        n_rot=64,
        window=None,
    ),
    case(
        "DeepSeek-V3/R1/V3.1",
        {
            "max_position_embeddings": 163840,
            "qk_rope_head_dim": 64,
            "rope_theta": 10000,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        },
        Yarn(factor=40.0, original_context=4096, mscale=1.0, mscale_all_dim=1.0),
        base=10000.0,
        context=163840,
        n_rot=64,
        window=None,
    ),
    case(
        "DeepSeek-V4 (hub form)",
        {
            "head_dim": 512,
            "qk_rope_head_dim": 64,
            "max_position_embeddings": 1048576,
            "rope_theta": 10000,
            "compress_rope_theta": 160000,
            "compress_ratios": [0, 0, 4, 128],
            "rope_scaling": {
                "type": "yarn",
                "factor": 16,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 65536,
            },
        },
        Yarn(factor=16.0, original_context=65536, attention_factor=1.0),
        base=10000.0,
        context=1048576,
        n_rot=64,
        window=None,
    ),
    case(
        "Kimi-K2",
        {
            "max_position_embeddings": 131072,
            "qk_rope_head_dim": 64,
            "rope_theta": 50000.0,
            "rope_scaling": {
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        },
        Yarn(factor=32.0, original_context=4096, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0),
        base=50000.0,
        context=131072,
        n_rot=64,
        window=None,
    ),
    case(
        "GLM-4.5-Air",
        {
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "partial_rotary_factor": 0.5,
            "rope_theta": 1000000,
            "rope_scaling": None,
        },
        Unscaled(),
        base=1000000.0,
        context=131072,
        n_rot=64,
        window=None,
    ),
    case(
        "gpt-oss-20b",
        {
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "initial_context_length": 4096,
            "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
        },
        Yarn(factor=32.0, original_context=4096, truncate=False),
        base=150000.0,
        context=131072,
        n_rot=64,
        window=None,
    ),
    case(
        "Gemma-2-9b",
        {"head_dim": 256, "max_position_embeddings": 8192, "rope_theta": 10000.0},
        Unscaled(),
        base=10000.0,
        context=8192,
        n_rot=256,
        window=None,
    ),
    case(
        "Gemma-3-4b (v4 hub)",
        {
            "text_config": {
                "head_dim": 256,
                "max_position_embeddings": 131072,
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            }
        },
        Linear(factor=8.0),
        base=1000000.0,
        context=131072,
        n_rot=256,
        window=10000.0,
    ),
    case(
        "Gemma-3-4b-it hub as published (text_config lacks most)",
        {
            "model_type": "gemma3",
            "text_config": {
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        },
        Linear(factor=8.0),
        base=1000000.0,
        context=131072,
        n_rot=256,
        window=10000.0,
    ),
    case(
        "Gemma-3n E4B",
        {
            "text_config": {
                "head_dim": 256,
                "max_position_embeddings": 32768,
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": None,
            }
        },
        Unscaled(),
        base=1000000.0,
        context=32768,
        n_rot=256,
        window=10000.0,
    ),
    case(
        "Gemma-4-12B",
        {
            "text_config": {
                "head_dim": 256,
                "global_head_dim": 512,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "full_attention": {
                        "partial_rotary_factor": 0.25,
                        "rope_theta": 1000000.0,
                        "rope_type": "proportional",
                    },
                    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
                },
            }
        },
        Proportional(fraction=0.25),
        base=1000000.0,
        context=262144,
        n_rot=512,
        window=10000.0,
    ),
    case(
        "Ministral-3-8B",
        {
            "text_config": {
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "type": "yarn",
                    "rope_theta": 1000000,
                    "factor": 16.0,
                    "original_max_position_embeddings": 16384,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "llama_4_scaling_beta": 0.1,
                },
            }
        },
        Yarn(factor=16.0, original_context=16384, mscale=1.0, mscale_all_dim=1.0),
        base=1000000.0,
        context=262144,
        n_rot=128,
        window=None,
    ),
    case(
        "Mistral-Large-3 params.json",
        {
            "rope_theta": 10000.0,
            "max_position_embeddings": 294912,
            "yarn": {
                "apply_scale": False,
                "factor": 36,
                "original_max_position_embeddings": 8192,
                "alpha": 1,
                "beta": 32,
            },
            "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 8192},
        },
        Yarn(factor=36.0, original_context=8192, mscale=1.0, mscale_all_dim=1.0),
        base=10000.0,
        context=294912,
        n_rot=None,
        window=None,
    ),
    case(
        "Granite-4.0-H (nope)",
        {
            "max_position_embeddings": 131072,
            "position_embedding_type": "nope",
            "rope_theta": 10000,
            "rope_scaling": None,
        },
        Unscaled(),
        base=None,
        context=131072,
        n_rot=0,
        window=None,
    ),
    case(
        "Granite-3.3-8B",
        {"max_position_embeddings": 131072, "rope_theta": 10000000.0, "rope_scaling": None},
        Unscaled(),
        base=10000000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "ERNIE-4.5-21B",
        {"max_position_embeddings": 131072, "rope_theta": 500000.0},
        Unscaled(),
        base=500000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "MiniMax-M2",
        {
            "head_dim": 128,
            "max_position_embeddings": 196608,
            "rope_theta": 5000000,
            "rotary_dim": 64,
        },
        Unscaled(),
        base=5000000.0,
        context=196608,
        n_rot=64,
        window=None,
    ),
    case(
        "SmolLM3-3B",
        {
            "max_position_embeddings": 65536,
            "rope_theta": 5000000.0,
            "rope_scaling": None,
            "no_rope_layers": [1.0, 2.0],
        },
        Unscaled(),
        base=5000000.0,
        context=65536,
        n_rot=None,
        window=None,
    ),
    case(
        "SmolLM3 + README YaRN",
        {
            "max_position_embeddings": 65536,
            "rope_theta": 5000000.0,
            "rope_scaling": {
                "factor": 2.0,
                "original_max_position_embeddings": 65536,
                "type": "yarn",
            },
        },
        Yarn(factor=2.0, original_context=65536),
        base=5000000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "Nemotron-Ultra/Super 49B (deci)",
        {
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        Llama3(factor=8.0, original_context=8192),
        base=500000.0,
        context=131072,
        n_rot=None,
        window=None,
    ),
    case(
        "InternLM2.5-7B",
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        DynamicNtk(factor=2.0, original_context=32768),
        base=1000000.0,
        context=32768,
        n_rot=None,
        window=None,
    ),
    case(
        "InternLM2-chat (v1) rope_scaling factor 1",
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 1.0},
        },
        DynamicNtk(factor=1.0, original_context=32768),
        base=1000000.0,
        context=32768,
        n_rot=None,
        window=None,
    ),
    case(
        "Yi-34B-200K",
        {"max_position_embeddings": 200000, "rope_theta": 5000000.0, "rope_scaling": None},
        Unscaled(),
        base=5000000.0,
        context=200000,
        n_rot=None,
        window=None,
    ),
    case(
        "glm-4-9b-chat (ChatGLM)",
        {"kv_channels": 128, "seq_length": 131072, "rope_ratio": 500, "original_rope": True},
        Unscaled(),
        base=5000000.0,
        context=131072,
        n_rot=64,
        window=None,
    ),
    case(
        "Command-R7B (cohere2)",
        {
            "head_dim": 128,
            "max_position_embeddings": 132096,
            "rope_theta": 50000,
            "rope_scaling": None,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        Unscaled(),
        base=50000.0,
        context=132096,
        n_rot=128,
        window=None,
    ),
    case(
        "OLMo-3-7B (hub v4)",
        {
            "model_type": "olmo3",
            "max_position_embeddings": 65536,
            "rope_theta": 500000,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            "sliding_window": 4096,
        },
        Yarn(factor=8.0, original_context=8192, attention_factor=1.2079441541679836),
        base=500000.0,
        context=65536,
        n_rot=128,
        window=500000.0,
    ),
    case(
        "OLMo-3 v5 saved",
        {
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                    "attention_factor": 1.2079,
                    "beta_fast": 32,
                    "beta_slow": 1,
                    "rope_theta": 500000.0,
                },
            },
        },
        Yarn(factor=8.0, original_context=8192, attention_factor=1.2079),
        base=500000.0,
        context=65536,
        n_rot=None,
        window=500000.0,
    ),
    case(
        "MiniCPM4-8B longrope",
        {
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "longrope",
                "long_factor": [1.0, 2.0],
                "short_factor": [1.0, 2.0],
                "original_max_position_embeddings": 32768,
            },
        },
        LongRope(
            long_factors=(1.0, 2.0), short_factors=(1.0, 2.0), original_context=32768, factor=1.0
        ),
        base=10000.0,
        context=32768,
        n_rot=None,
        window=None,
    ),
    case(
        "Falcon-H1-7B",
        {
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_theta": 100000000000.0,
            "rope_scaling": None,
        },
        Unscaled(),
        base=100000000000.0,
        context=262144,
        n_rot=128,
        window=None,
    ),
    case(
        "Seed-OSS-36B",
        {
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "rope_theta": 10000000.0,
            "rope_scaling": {"rope_type": "default"},
        },
        Unscaled(),
        base=10000000.0,
        context=524288,
        n_rot=128,
        window=None,
    ),
    case(
        "Step-3.5-Flash",
        {
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_theta": [5000000.0, 10000.0, 10000.0, 10000.0],
            "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0],
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 131072,
                "low_freq_factor": 1.0,
                "high_freq_factor": 32.0,
            },
        },
        Llama3(factor=2.0, original_context=131072, high_freq_factor=32.0),
        base=5000000.0,
        context=262144,
        n_rot=64,
        window=10000.0,
    ),
    case(
        "Laguna-XS.2 style (nested yarn)",
        {
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 500000.0,
                    "factor": 32.0,
                    "original_max_position_embeddings": 4096,
                    "beta_fast": 64.0,
                    "beta_slow": 1.0,
                    "attention_factor": 1.0,
                    "partial_rotary_factor": 0.5,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                },
            },
        },
        Yarn(factor=32.0, original_context=4096, beta_fast=64.0, attention_factor=1.0),
        base=500000.0,
        context=131072,
        n_rot=64,
        window=10000.0,
    ),
    case(
        "ModernBERT",
        {
            "max_position_embeddings": 8192,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
        },
        Unscaled(),
        base=160000.0,
        context=8192,
        n_rot=None,
        window=10000.0,
    ),
    case(
        "GPT-NeoX/Pythia",
        {"max_position_embeddings": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25},
        Unscaled(),
        base=10000.0,
        context=2048,
        n_rot=None,
        window=None,
    ),
    case(
        "dots3-note",
        {
            "qk_rope_head_dim": 64,
            "max_position_embeddings": 524288,
            "rope_parameters": {
                "indexed_attention": {
                    "rope_type": "default",
                    "rope_theta": 80000000.0,
                    "partial_rotary_factor": 0.25,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 50000.0,
                    "partial_rotary_factor": 0.25,
                },
            },
        },
        Unscaled(),
        base=80000000.0,
        context=524288,
        n_rot=64,
        window=50000.0,
    ),
]


@pytest.mark.parametrize("published", CASES, ids=lambda item: item.model)
def test_a_published_config_means_this(published: Case) -> None:
    found = from_config(published.config)
    assert found.scaling == published.scaling
    assert (found.base, found.context_length) == (published.base, published.context)
    assert found.n_rot == published.n_rot
    window = None if found.sliding is None else found.sliding.base
    assert window == published.window
    if found.sliding is not None:
        assert found.sliding.scaling == Unscaled()


def test_all_are_there() -> None:
    assert len(CASES) == 48
    assert len({published.model for published in CASES}) == 48


def test_the_attention_factor_of_mistral_large_is_one() -> None:
    found = [item for item in CASES if "params.json" in item.model]
    assert len(found) == 1
    scaling = from_config(found[0].config).scaling
    assert isinstance(scaling, Yarn)
    assert yarn_magnitude(scaling) == 1.0


def test_compressed_layers_have_a_base_of_their_own() -> None:
    found = [item for item in CASES if "compress_rope_theta" in item.config]
    assert len(found) == 1
    rope = from_config(found[0].config)
    assert rope.compress_base == 160000.0
    layers = rope.layers
    assert set(layers) == {"main", "compress"}
    assert layers["main"] is not None
    assert layers["main"].scaling == Unscaled()


def test_a_model_without_rotation() -> None:
    found = [item for item in CASES if "position_embedding_type" in item.config]
    assert len(found) == 1
    assert not from_config(found[0].config).rotates


def test_class_defaults_are_marked_as_assumed() -> None:
    found = [item for item in CASES if item.config.get("model_type") == "gemma3"]
    assert len(found) == 1
    rope = from_config(found[0].config)
    assert {"base", "head_size", "n_rot", "context_length"} <= rope.assumed
    assert "scaling" not in rope.assumed
    assert (rope.base, rope.head_size) == (1e6, 256)
