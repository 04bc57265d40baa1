"""What llama.cpp multiplies attention scores by besides rotating queries and keys.

A key of the scaling may act on attention in three more ways: through the softmax scale of
multi-head latent attention, through an attention temperature whose floor is the original context,
and not at all, where the graph cancels the attention factor or normalizes keys after they rotate.
All at the commit that `architectures.source()` names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ggufrope.errors import FileError
from ggufrope.rope.effective import AttentionTemperature, EffectiveValue

if TYPE_CHECKING:
    from ggufrope.rope.architectures import Architecture
    from ggufrope.rope.layers import LayerKind
    from ggufrope.rope.metadata import RopeMetadata

_CHUNK = 8192
"""llama4.cpp: the floor of the attention temperature, and the window."""


def magnitude_acts(metadata: RopeMetadata, arch: Architecture) -> bool:
    """Return whether an attention factor changes anything in the graph of `arch`."""
    if not arch.settings_act:
        return False
    if arch.magnitude == "normalized-unless-128-experts":
        return metadata.expert_count == 128
    return arch.magnitude == "acts"


def idle_magnitude_reason(arch: Architecture) -> str:
    """Return why an attention factor does nothing in the graph of `arch`."""
    if arch.magnitude == "cancelled":
        return f"the graph of {arch.name} cancels any attention factor"
    if not arch.settings_act:
        return f"the graph of {arch.name} uses no such setting"
    return f"{arch.name} normalizes keys after they rotate, which undoes any attention factor"


def attention_scale(
    metadata: RopeMetadata, arch: Architecture, *, attn_factor: float, freq_scale: float
) -> float | None:
    """Return what the scores of every layer are multiplied by, None where the graph has no such
    scale.

    deepseek2.cpp 433-443, deepseek32.cpp and glm-dsa.cpp: (attn_factor_org · (1 + 0.1 ·
    log_multiplier · ln factor))², with attn_factor_org the magnitude of YaRN; also where the
    scaling type is not YaRN. `attn_factor` is what the graph gets, `freq_scale` 1/factor.
    """
    if not arch.scores_by_factor:
        return None
    growth = 0.1 * math.log(1 / freq_scale)
    original = attn_factor * (1 + growth)
    scale = original * (1 + log_multiplier(metadata, arch) * growth)
    return scale * scale  # infinite where a power would raise OverflowError


def log_multiplier(metadata: RopeMetadata, arch: Architecture) -> float:
    """Return yarn_log_multiplier as the graph uses it, 0 where the file has none that is read."""
    if "yarn_log_multiplier" not in arch.reads:
        return 0.0
    return (metadata.yarn_log_multiplier or 0.0) * arch.log_multiplier_unit


def temperature(
    metadata: RopeMetadata, arch: Architecture, kind: LayerKind
) -> AttentionTemperature | None:
    """Return the attention temperature of the layers of `kind`, None without one.

    Raises FileError where llama.cpp would abort on the numbers of the file.
    """
    if arch.temperature == "none" or kind == "recurrent":
        return None
    if arch.temperature == "fixed":
        # llama4.cpp: only where a layer does not rotate, and not in models without chunks
        if kind != "no-rope" or metadata.sliding_window == 0:
            return None
        return AttentionTemperature(scale=0.1, floor_tokens=_CHUNK, offset=1.0)
    scale = metadata.temperature_scale
    if not scale:
        return None
    if not math.isfinite(scale):
        raise FileError(
            f"{metadata.key('temperature_scale')} is {scale:g}: expected a finite number"
        )
    field, floor = temperature_floor(metadata, arch)
    if not floor:
        raise FileError(
            f"{metadata.key(field)} is {floor}: the attention temperature needs its length in "
            "tokens, and llama.cpp does not run without it"
        )
    return AttentionTemperature(scale=scale, floor_tokens=floor)


def temperature_floor(metadata: RopeMetadata, arch: Architecture) -> tuple[str, int | None]:
    """Return the field that the floor of the attention temperature is read from, and its value.

    mistral3.cpp 14: the original context of the file; no flag changes it. deepseek2.cpp 42: a key
    of its own.
    """
    if arch.temperature == "temperature-length":
        return "temperature_length", metadata.temperature_length
    if metadata.original_context is not None:
        return "original_context", metadata.original_context
    return "context_length", metadata.context_length


def attention_values(
    metadata: RopeMetadata,
    arch: Architecture,
    *,
    scale: float | None,
    found: AttentionTemperature | None,
) -> dict[str, EffectiveValue]:
    """Return the settings that multiply attention scores, each with its source, none without."""
    values: dict[str, EffectiveValue] = {}
    if scale is not None:
        read = log_multiplier(metadata, arch) != 0
        values["attention_scale"] = EffectiveValue(
            value=scale,
            source="file" if read else "default",
            reason=f"{arch.name} multiplies attention scores by a function of the factor, whatever "
            "the scaling type"
            + (f", and of {metadata.key('yarn_log_multiplier')}" if read else ""),
        )
    if found is not None:
        fixed = arch.temperature == "fixed"
        field, _ = temperature_floor(metadata, arch)
        values["temperature_floor"] = EffectiveValue(
            value=found.floor_tokens,
            source="default" if fixed else "file",
            reason=f"attention scores rise by {found.scale:g} · ln(1 + ⌊position / floor⌋)"
            + (f" where {arch.name} does not rotate" if fixed else f": {metadata.key(field)}"),
        )
    return values
