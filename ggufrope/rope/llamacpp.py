"""What llama.cpp does with a file's settings and a context's parameters.

Follows `get_rope_factors` and `get_rope_freq_base` in src/llama-model.cpp, the graphs in
src/models and `rope_yarn` in ggml/src/ggml-cpu/ops.cpp at the commit that
`architectures.source()` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import Architecture, RopeType, architecture
from ggufrope.rope.effective import EffectiveRope, EffectiveValue, LayerGroup, RopeOverrides
from ggufrope.rope.frequencies import Array, ntk_base, plain_frequencies, yarn_kept, yarn_mscale
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, SCALING_TYPES
from ggufrope.rope.layers import LayerKind, layer_kinds

if TYPE_CHECKING:
    from ggufrope.rope.metadata import FactorTensor, RopeMetadata


# How llama.cpp arrives at each setting: an override, else the file, else a default.
#
# Follows `load_hparams` in src/llama-model.cpp and the constructor in src/llama-context.cpp at the
# commit that `architectures.source()` names.

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
    if "alpha" in arch.reads and dimensions and metadata.alpha and metadata.alpha > 0:
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
        # A negative extension factor is llama.cpp's way to leave it unset.
        if not math.isfinite(declared) or (declared < 0 and field != "yarn_ext_factor"):
            raise FileError(f"{metadata.key(field)} is {declared:g}: expected a number, 0 or more")
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


CONTEXT_GRANULE = 256
"""llama.cpp rounds the length of a context up to a multiple of this."""


def effective(
    metadata: RopeMetadata,
    *,
    context_tokens: int | None = None,
    overrides: RopeOverrides | None = None,
) -> EffectiveRope:
    """Predict the rotation llama.cpp applies to a file in a context of one sequence.

    `context_tokens` is the n_ctx asked for; None is the file's context length, as in llama.cpp.
    Raises FileError where llama.cpp would not load the file or its numbers give no rotation.
    """
    arch = architecture(metadata.architecture)
    settings = resolve(metadata, arch, overrides or RopeOverrides())
    tokens = _allocated(metadata, context_tokens)
    tensor, choice = choose_factors(metadata, arch, tokens)
    values = {field: getattr(settings, field) for field in Resolution.__slots__}
    values["frequency_factors"] = choice
    whole = _global_rope(metadata, arch, settings, tensor)
    kinds = layer_kinds(metadata, arch)
    groups = []
    for kind in dict.fromkeys(kinds):
        layers = tuple(layer for layer, found in enumerate(kinds) if found == kind)
        if kind == "sliding-window":
            values |= _sliding_values(metadata, arch, settings)
            groups.append(_group(kind, layers, _sliding_rope(metadata, arch, whole, values)))
        else:
            groups.append(_group(kind, layers, whole if kind == "global" else None))
    return EffectiveRope(
        rope_type=_rope_type(metadata, arch),
        context_tokens=tokens,
        groups=tuple(groups),
        values=MappingProxyType(values),
        caveat=arch.caveat,
    )


def choose_factors(
    metadata: RopeMetadata, arch: Architecture, context_tokens: int
) -> tuple[FactorTensor | None, EffectiveValue]:
    """The factor tensor a context of `context_tokens` uses, and why; FileError where the file's
    factor tensors would not load."""
    scaling_type = metadata.scaling_type or "linear"
    for tensor in metadata.factor_tensors:
        if not arch.loads(tensor.name, scaling_type):
            raise FileError(
                f"{arch.name} with scaling type {scaling_type} does not load {tensor.name}: "
                "llama.cpp refuses the file (wrong number of tensors)"
            )
    threshold = metadata.original_context or metadata.context_length or 0
    name = ROPE_FREQS
    reason = "rope_freqs is always preferred"
    if metadata.tensor(name) is None:
        long = context_tokens > threshold
        name = ROPE_FACTORS_LONG if long else ROPE_FACTORS_SHORT
        comparison = "above" if long else "within"
        reason = f"{context_tokens} tokens are {comparison} the original {threshold}"
    chosen = metadata.tensor(name)
    if chosen is None:
        return None, EffectiveValue(value=None, source="default", reason="no factor tensor")
    if arch.factors_on == "none":
        unused = f"loaded, but the graph of {arch.name} does not apply it"
        return None, EffectiveValue(value=None, source="ignored", reason=unused)
    return chosen, EffectiveValue(value=name, source="file", reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rope:
    """The arguments of one ggml_rope_ext call; `factors` is `[n_rot/2]` or None."""

    n_rot: int
    base: float
    scale: float
    original_context: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float
    factors: Array | None

    def rotate(self) -> tuple[Array, float]:
        """Inverse frequencies and magnitude (ggml-cpu/ops.cpp `rope_yarn`)."""
        extrapolated = plain_frequencies(self.n_rot, self.base)
        if self.factors is not None:
            extrapolated = extrapolated / self.factors
        interpolated = extrapolated * self.scale
        if self.ext_factor == 0:
            return interpolated, self.attn_factor
        kept = self.ext_factor * yarn_kept(
            self.n_rot, self.base, self.original_context, self.beta_fast, self.beta_slow
        )
        blended = interpolated * (1 - kept) + extrapolated * kept
        return blended, self.attn_factor * (1 + 0.1 * math.log(1 / self.scale))


def _global_rope(
    metadata: RopeMetadata,
    arch: Architecture,
    settings: Resolution,
    tensor: FactorTensor | None,
) -> _Rope:
    n_rot = rotary_dimensions(metadata, arch)
    if not arch.settings_act:
        return _Rope(
            n_rot=n_rot,
            base=10000.0,
            scale=1.0,
            original_context=1.0,
            ext_factor=0.0,
            attn_factor=1.0,
            beta_fast=0.0,
            beta_slow=0.0,
            factors=None,
        )
    return _Rope(
        n_rot=n_rot,
        base=number(settings.freq_base),
        scale=number(settings.freq_scale),
        original_context=number(settings.original_context),
        ext_factor=number(settings.yarn_ext_factor),
        attn_factor=number(settings.yarn_attn_factor) * number(settings.attn_factor),
        beta_fast=number(settings.yarn_beta_fast),
        beta_slow=number(settings.yarn_beta_slow),
        factors=None if tensor is None else _factor_values(tensor, n_rot),
    )


def _sliding_values(
    metadata: RopeMetadata, arch: Architecture, settings: Resolution
) -> dict[str, EffectiveValue]:
    """`freq_base_swa` and `freq_scale_swa`: what the sliding-window layers start from."""
    window = arch.sliding
    if window is None:
        return {}
    base, scale = settings.freq_base, settings.freq_scale
    if window.base == "file":
        base = file_base(metadata, arch)
    elif window.base == "10000":
        base = EffectiveValue(value=10000.0, source="default", reason="unless the file says")
    if window.reads_base and metadata.freq_base_swa is not None:
        base = file_base(metadata, arch, field="freq_base_swa")
    if window.scale == "file":
        scale = file_scale(metadata)
    elif window.scale == "1":
        plain = f"{arch.name} never scales its sliding-window layers"
        scaled = number(settings.freq_scale) != 1
        scale = EffectiveValue(value=1.0, source="ignored" if scaled else "default", reason=plain)
    return {"freq_base_swa": base, "freq_scale_swa": scale}


def _sliding_rope(
    metadata: RopeMetadata, arch: Architecture, whole: _Rope, values: dict[str, EffectiveValue]
) -> _Rope:
    yarn = arch.sliding is None or arch.sliding.yarn
    n_rot = metadata.dimension_count_swa or whole.n_rot * arch.global_rot_divisor
    return _Rope(
        n_rot=n_rot,
        base=number(values["freq_base_swa"]),
        scale=number(values["freq_scale_swa"]),
        original_context=whole.original_context,
        ext_factor=whole.ext_factor if yarn else 0.0,
        attn_factor=whole.attn_factor if yarn else 1.0,
        beta_fast=whole.beta_fast,
        beta_slow=whole.beta_slow,
        factors=whole.factors if arch.factors_on == "all" else None,
    )


def _group(kind: LayerKind, layers: tuple[int, ...], rope: _Rope | None) -> LayerGroup:
    inverse_frequencies, magnitude = (np.empty(0), 1.0) if rope is None else rope.rotate()
    return LayerGroup(
        name=kind, layers=layers, inverse_frequencies=inverse_frequencies, magnitude=magnitude
    )


def rotary_dimensions(metadata: RopeMetadata, arch: Architecture) -> int:
    """n_rot as llama.cpp takes it; FileError where the file gives none that can rotate."""
    n_rot = metadata.n_rot
    if arch.rope == "none":
        return 0
    if n_rot is not None:
        n_rot //= arch.global_rot_divisor
    if n_rot is None or n_rot < 2 or n_rot % 2:
        raise FileError(
            f"{metadata.key('dimension_count')} gives {n_rot} rotary dimensions: "
            "expected an even number, 2 or more"
        )
    if arch.full_head and n_rot != metadata.head_size:
        raise FileError(
            f"{metadata.key('dimension_count')} is {n_rot}: {arch.name} loads only with the "
            f"head size, {metadata.head_size}"
        )
    return n_rot


def _factor_values(tensor: FactorTensor, n_rot: int) -> Array:
    if tensor.length != n_rot // 2:
        raise FileError(
            f"{tensor.name} has {tensor.length} values: llama.cpp loads only {n_rot // 2}, "
            "one a pair of rotary dimensions"
        )
    if tensor.values is None:
        raise RequestError(f"the values of {tensor.name} were not read: they decide the rotation")
    return tensor.values


def _allocated(metadata: RopeMetadata, context_tokens: int | None) -> int:
    tokens = metadata.context_length if context_tokens is None else context_tokens
    if not tokens or tokens < 0:
        raise RequestError(f"a context of {tokens} tokens: expected a number above 0")
    return allocated_context(tokens)


def allocated_context(tokens: int) -> int:
    """The tokens of the context that llama.cpp makes where so many are asked for."""
    return -(-tokens // CONTEXT_GRANULE) * CONTEXT_GRANULE


def _rope_type(metadata: RopeMetadata, arch: Architecture) -> RopeType:
    sections = metadata.dimension_sections
    if arch.mrope_by_sections and isinstance(sections, tuple) and min(sections[:2]) > 0:
        return "mrope"
    return arch.rope
