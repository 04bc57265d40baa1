"""How llama.cpp arrives at each setting: an override, else the file, else a default.

Follows `load_hparams` in src/llama-model.cpp and the constructor in src/llama-context.cpp at the
commit that `architectures.source()` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.errors import FileError
from ggufrope.rope.effective import EffectiveValue, RopeOverrides
from ggufrope.rope.frequencies import ntk_base, yarn_mscale
from ggufrope.rope.keys import SCALING_TYPES

if TYPE_CHECKING:
    from ggufrope.rope.architectures import Architecture
    from ggufrope.rope.metadata import RopeMetadata

_FLAGS = {
    "yarn_ext_factor": "--yarn-ext-factor",
    "yarn_attn_factor": "--yarn-attn-factor",
    "yarn_beta_fast": "--yarn-beta-fast",
    "yarn_beta_slow": "--yarn-beta-slow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The scalar settings of a context, each with its source."""

    scaling_type: EffectiveValue
    freq_base: EffectiveValue
    freq_scale: EffectiveValue
    original_context: EffectiveValue
    yarn_ext_factor: EffectiveValue
    yarn_attn_factor: EffectiveValue
    yarn_beta_fast: EffectiveValue
    yarn_beta_slow: EffectiveValue
    attn_factor: EffectiveValue


def resolve(metadata: RopeMetadata, arch: Architecture, overrides: RopeOverrides) -> Resolution:
    """Resolve every scalar setting; FileError where the file's value would not load or compute."""
    scaling_type = _scaling_type(metadata, overrides)
    freq_scale = _freq_scale(metadata, overrides, scaling_type)
    ext_factor = _ext_factor(metadata, arch, overrides, scaling_type)
    blends = number(ext_factor) != 0
    return Resolution(
        scaling_type=scaling_type,
        freq_base=_freq_base(metadata, arch, overrides),
        freq_scale=freq_scale,
        original_context=_original_context(metadata, overrides),
        yarn_ext_factor=ext_factor,
        yarn_attn_factor=_yarn_attn_factor(metadata, arch, overrides, blends, number(freq_scale)),
        yarn_beta_fast=_beta("yarn_beta_fast", arch.beta_fast, metadata, arch, overrides, blends),
        yarn_beta_slow=_beta("yarn_beta_slow", 1.0, metadata, arch, overrides, blends),
        attn_factor=_attn_factor(metadata),
    )


def number(value: EffectiveValue) -> float:
    """The value as a number, for settings that are numbers."""
    return float(value.value or 0.0)


def file_base(
    metadata: RopeMetadata, arch: Architecture, *, field: str = "freq_base"
) -> EffectiveValue:
    """The base the file asks for in `field`: 10000 where it does not say."""
    declared = getattr(metadata, field)
    key = metadata.key(field)
    if declared is not None and not (math.isfinite(declared) and declared > 1):
        raise FileError(f"{key} is {declared:g}: expected a finite number above 1")
    base = 10000.0 if declared is None else declared
    reason = f"without {key} the base is 10000" if declared is None else key
    dimensions = metadata.head_size
    if "alpha" in arch.reads and metadata.alpha and dimensions:
        base = ntk_base(base, metadata.alpha, dimensions)
        reason += f", stretched by {metadata.key('alpha')}"
    return _default(base, reason) if declared is None else _file(base, reason)


def file_scale(metadata: RopeMetadata) -> EffectiveValue:
    """The frequency scale the file asks for: 1 over `factor`, else over the old `scale_linear`."""
    for field in ("factor", "scale_linear"):
        factor = getattr(metadata, field)
        if factor is None:
            continue
        key = metadata.key(field)
        if factor == 0:
            return _default(1.0, f"{key} is 0, which means no scaling")
        if not (math.isfinite(factor) and factor > 0):
            raise FileError(f"{key} is {factor:g}: expected a finite number above 0")
        return _file(1.0 / factor, f"1 / {key}")
    return _default(1.0, "the file has no scaling factor")


def yarn_file_magnitude(metadata: RopeMetadata, arch: Architecture, factor: float) -> float:
    """The magnitude llama.cpp gives YaRN of `factor`, before `rope.scaling.attn_factor`."""
    multiplier = metadata.yarn_log_multiplier if "yarn_log_multiplier" in arch.reads else None
    if not multiplier:
        return yarn_mscale(factor)
    whole = multiplier * arch.log_multiplier_unit
    part = whole if arch.mscale_pair and whole != 1 else 1.0
    return yarn_mscale(factor, part) / yarn_mscale(factor, whole)


def _scaling_type(metadata: RopeMetadata, overrides: RopeOverrides) -> EffectiveValue:
    declared = metadata.scaling_type
    if declared is not None and declared not in SCALING_TYPES:
        raise FileError(
            f"{metadata.key('scaling_type')} is {declared!r}, on which llama.cpp aborts: "
            f"expected one of {', '.join(SCALING_TYPES)}"
        )
    if overrides.scaling_type is not None:
        return _override(overrides.scaling_type)
    if declared is not None:
        return _file(declared, metadata.key("scaling_type"))
    return _default("linear", f"without {metadata.key('scaling_type')} llama.cpp scales linearly")


def _freq_base(
    metadata: RopeMetadata, arch: Architecture, overrides: RopeOverrides
) -> EffectiveValue:
    if overrides.freq_base is not None:
        return _override(overrides.freq_base)
    return file_base(metadata, arch)


def _freq_scale(
    metadata: RopeMetadata, overrides: RopeOverrides, scaling_type: EffectiveValue
) -> EffectiveValue:
    declared = file_scale(metadata)
    if scaling_type.value == "none":
        if overrides.freq_scale is not None or declared.source == "file":
            return _ignored(1.0, "scaling type none: no factor is applied")
        return _default(1.0, "scaling type none")
    if overrides.freq_scale is not None:
        return _override(overrides.freq_scale)
    return declared


def _original_context(metadata: RopeMetadata, overrides: RopeOverrides) -> EffectiveValue:
    if overrides.yarn_orig_ctx is not None:
        return _override(overrides.yarn_orig_ctx)
    if metadata.original_context:
        return _file(metadata.original_context, metadata.key("original_context"))
    if not metadata.context_length:
        raise FileError(
            f"{metadata.key('context_length')} is {metadata.context_length}: "
            "expected a number of tokens above 0"
        )
    return _default(
        metadata.context_length,
        f"without {metadata.key('original_context')} it is {metadata.key('context_length')}",
    )


def _ext_factor(
    metadata: RopeMetadata,
    arch: Architecture,
    overrides: RopeOverrides,
    scaling_type: EffectiveValue,
) -> EffectiveValue:
    by_type = 1.0 if scaling_type.value == "yarn" else 0.0
    fallback = _default(by_type, f"{by_type:g} for scaling type {scaling_type.value}")
    value = _yarn_setting("yarn_ext_factor", metadata, arch, overrides, fallback)
    return fallback if number(value) < 0 else value


def _yarn_attn_factor(
    metadata: RopeMetadata,
    arch: Architecture,
    overrides: RopeOverrides,
    blends: bool,
    freq_scale: float,
) -> EffectiveValue:
    fallback = _default(1.0, "1 unless set")
    given = _yarn_setting("yarn_attn_factor", metadata, arch, overrides, fallback)
    if not blends:
        return given
    factor = 1.0 / freq_scale
    value = yarn_file_magnitude(metadata, arch, factor) / (1.0 + 0.1 * math.log(factor))
    if given.source in ("file", "override"):
        return _ignored(value, f"YaRN computes its own: {given.value:g} is overwritten")
    return _default(value, "computed for YaRN, before rope_yarn's 1 + 0.1 ln factor")


def _beta(
    field: str,
    default: float,
    metadata: RopeMetadata,
    arch: Architecture,
    overrides: RopeOverrides,
    blends: bool,
) -> EffectiveValue:
    fallback = _default(default, "llama.cpp's default")
    value = _yarn_setting(field, metadata, arch, overrides, fallback)
    if not blends and value.source in ("file", "override"):
        return _ignored(value.value, "only YaRN's blend uses it, and the extension factor is 0")
    return value


def _yarn_setting(
    field: str,
    metadata: RopeMetadata,
    arch: Architecture,
    overrides: RopeOverrides,
    fallback: EffectiveValue,
) -> EffectiveValue:
    override = getattr(overrides, field)
    declared = getattr(metadata, field)
    if override is not None:
        return _override(override)
    if declared is None:
        return fallback
    if field in arch.reads:
        return _file(declared, metadata.key(field))
    return _ignored(
        fallback.value,
        f"llama.cpp does not read {metadata.key(field)} ({declared:g} in the file): "
        f"give {_FLAGS[field]} at run time, or bake it into factors",
    )


def _attn_factor(metadata: RopeMetadata) -> EffectiveValue:
    if metadata.attn_factor is None:
        return _default(1.0, "1 unless set")
    if not math.isfinite(metadata.attn_factor):
        raise FileError(f"{metadata.key('attn_factor')} is {metadata.attn_factor}: not a number")
    return _file(metadata.attn_factor, metadata.key("attn_factor"))


def _file(value: float | int | str, key: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="file", reason=key)


def _override(value: float | int | str) -> EffectiveValue:
    return EffectiveValue(value=value, source="override", reason="a context parameter")


def _default(value: float | int | str | None, reason: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="default", reason=reason)


def _ignored(value: float | int | str | None, reason: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="ignored", reason=reason)
