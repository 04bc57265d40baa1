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

from ggufrope.errors import FileError, WishError
from ggufrope.rope.architectures import Architecture, RopeType, architecture
from ggufrope.rope.effective import (
    EffectiveRope,
    EffectiveValue,
    LayerGroup,
    RopeOverrides,
)
from ggufrope.rope.frequencies import Array, plain_frequencies, yarn_kept
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.layers import LayerKind, layer_kinds
from ggufrope.rope.resolution import Resolution, file_base, file_scale, number, resolve

if TYPE_CHECKING:
    from ggufrope.rope.metadata import FactorTensor, RopeMetadata

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
        raise WishError(f"the values of {tensor.name} were not read: they decide the rotation")
    return tensor.values


def _allocated(metadata: RopeMetadata, context_tokens: int | None) -> int:
    tokens = metadata.context_length if context_tokens is None else context_tokens
    if not tokens or tokens < 0:
        raise WishError(f"a context of {tokens} tokens: expected a number above 0")
    return allocated_context(tokens)


def allocated_context(tokens: int) -> int:
    """The tokens of the context that llama.cpp makes where so many are asked for."""
    return -(-tokens // CONTEXT_GRANULE) * CONTEXT_GRANULE


def _rope_type(metadata: RopeMetadata, arch: Architecture) -> RopeType:
    sections = metadata.dimension_sections
    if arch.mrope_by_sections and isinstance(sections, tuple) and min(sections[:2]) > 0:
        return "mrope"
    return arch.rope
