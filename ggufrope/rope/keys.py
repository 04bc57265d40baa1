"""The GGUF keys and tensors that define how a model's positions work.

Key names are `ARCHITECTURE.SUFFIX`. Suffixes and types are those of llama.cpp's src/llama-arch.cpp
and of the `get_key` calls that read them. llama.cpp does not load a key of another type.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufrope.container.types import ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """One key: its suffix, the type llama.cpp reads, and whether it may be an array per layer."""

    suffix: str
    type: ValueType
    per_layer: bool = False


def _u32(suffix: str, *, per_layer: bool = False) -> KeySpec:
    return KeySpec(suffix=suffix, type=ValueType.UINT32, per_layer=per_layer)


def _f32(suffix: str) -> KeySpec:
    return KeySpec(suffix=suffix, type=ValueType.FLOAT32)


KEYS: Mapping[str, KeySpec] = MappingProxyType(
    {
        "context_length": _u32("context_length"),
        "block_count": _u32("block_count"),
        "nextn_predict_layers": _u32("nextn_predict_layers"),
        "embedding_length": _u32("embedding_length"),
        "head_count": _u32("attention.head_count", per_layer=True),
        "head_count_kv": _u32("attention.head_count_kv", per_layer=True),
        "key_length": _u32("attention.key_length"),
        "value_length": _u32("attention.value_length"),
        "key_length_mla": _u32("attention.key_length_mla"),
        "value_length_mla": _u32("attention.value_length_mla"),
        "key_length_swa": _u32("attention.key_length_swa"),
        "value_length_swa": _u32("attention.value_length_swa"),
        "kv_lora_rank": _u32("attention.kv_lora_rank"),
        "expert_count": _u32("expert_count"),
        "leading_dense_blocks": _u32("leading_dense_block_count"),
        "temperature_scale": _f32("attention.temperature_scale"),
        "temperature_length": _u32("attention.temperature_length"),
        "compress_ratios": _u32("attention.compress_ratios", per_layer=True),
        "compress_freq_base": _f32("attention.compress_rope_freq_base"),
        "sliding_window": _u32("attention.sliding_window"),
        "sliding_window_pattern": _u32("attention.sliding_window_pattern", per_layer=True),
        "shared_kv_layers": _u32("attention.shared_kv_layers"),
        "full_attention_interval": _u32("full_attention_interval"),
        "recurrent_layers": _u32("attention.recurrent_layers", per_layer=True),
        "causal": KeySpec(suffix="attention.causal", type=ValueType.BOOL),
        "pooling_type": _u32("pooling_type"),
        "rope_pattern": _u32("attention.rope_pattern", per_layer=True),
        "dimension_count": _u32("rope.dimension_count"),
        "dimension_count_swa": _u32("rope.dimension_count_swa"),
        "dimension_sections": _u32("rope.dimension_sections", per_layer=True),
        "freq_base": _f32("rope.freq_base"),
        "freq_base_swa": _f32("rope.freq_base_swa"),
        "scaling_type": KeySpec(suffix="rope.scaling.type", type=ValueType.STRING),
        "factor": _f32("rope.scaling.factor"),
        "scale_linear": _f32("rope.scale_linear"),
        "original_context": _u32("rope.scaling.original_context_length"),
        "attn_factor": _f32("rope.scaling.attn_factor"),
        "finetuned": KeySpec(suffix="rope.scaling.finetuned", type=ValueType.BOOL),
        "alpha": _f32("rope.scaling.alpha"),
        "yarn_ext_factor": _f32("rope.scaling.yarn_ext_factor"),
        "yarn_attn_factor": _f32("rope.scaling.yarn_attn_factor"),
        "yarn_beta_fast": _f32("rope.scaling.yarn_beta_fast"),
        "yarn_beta_slow": _f32("rope.scaling.yarn_beta_slow"),
        "yarn_log_multiplier": _f32("rope.scaling.yarn_log_multiplier"),
    }
)
"""Field of RopeMetadata -> its key."""

SCALING_TYPES = ("none", "linear", "yarn", "longrope")
"""The values of `rope.scaling.type`; any other word aborts llama.cpp on an assertion."""

SCALING_FIELDS = (
    "scaling_type",
    "factor",
    "scale_linear",
    "original_context",
    "attn_factor",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)
"""The fields that together say how positions are scaled: setting a scheme settles them all."""

ONE_IN_FLOAT32 = 1 + 2**-24
"""Up to here a base above 1 is 1 once it is stored as float32."""

ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS_LONG = "rope_factors_long.weight"
ROPE_FACTORS_SHORT = "rope_factors_short.weight"
FACTOR_TENSORS = (ROPE_FREQS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT)
"""F32 tensors of n_rot/2 values that divide the angle of each pair."""


def key_name(architecture: str, field: str) -> str:
    """Return the full GGUF key of a RopeMetadata field, as for ("llama", "freq_base")."""
    return f"{architecture}.{KEYS[field].suffix}"
