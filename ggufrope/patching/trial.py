"""A scheme tried without writing: as context parameters of a model already loaded.

Context parameters can say plain, linear, NTK-aware and most YaRN scaling of most files. Whether
they say a scheme exactly is not assumed but computed: the rotation predicted under them has to
equal the scheme's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.errors import FileError
from ggufrope.rope import (
    DynamicNtk,
    Linear,
    NtkAware,
    RopeMetadata,
    RopeOverrides,
    RopeScaling,
    Unscaled,
    Yarn,
    architecture,
    effective,
    frequencies,
)
from ggufrope.rope.frequencies import dynamic_growth, ntk_base
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.resolution import file_base, number

if TYPE_CHECKING:
    from ggufrope.patching.wish import Target

TOLERANCE = 1e-5
"""Relative; llama.cpp computes in float32."""


def trial_overrides(
    target: Target, metadata: RopeMetadata, *, context_tokens: int
) -> RopeOverrides | None:
    """Context parameters under which a loaded model rotates as `target` says; None where there
    are none, because the scheme lives in tensors or the file's own settings would show through.
    """
    arch = architecture(metadata.architecture)
    n_rot = rotary_dimensions(metadata, arch)
    base = target.freq_base or number(file_base(metadata, arch))
    overrides = _overrides(target.scaling, base=base, n_rot=n_rot, context_tokens=context_tokens)
    if overrides is None:
        return None
    wanted = frequencies(target.scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    try:
        predicted = effective(metadata, context_tokens=context_tokens, overrides=overrides)
    except FileError:
        return None
    exact = all(
        abs(group.magnitude / wanted.magnitude - 1) <= TOLERANCE
        and (
            abs(group.inverse_frequencies - wanted.inverse_frequencies)
            <= TOLERANCE * wanted.inverse_frequencies
        ).all()
        for group in predicted.groups
        if group.name == "global"
    )
    return overrides if exact else None


def _overrides(
    scaling: RopeScaling, *, base: float, n_rot: int, context_tokens: int
) -> RopeOverrides | None:
    match scaling:
        case Unscaled():
            return RopeOverrides(scaling_type="none", freq_base=base)
        case Linear(factor=factor):
            return RopeOverrides(scaling_type="linear", freq_base=base, freq_scale=1 / factor)
        case NtkAware(factor=factor):
            return RopeOverrides(scaling_type="none", freq_base=ntk_base(base, factor, n_rot))
        case DynamicNtk():
            growth = dynamic_growth(scaling, context_tokens)
            return RopeOverrides(scaling_type="none", freq_base=ntk_base(base, growth, n_rot))
        case Yarn():
            return RopeOverrides(
                scaling_type="yarn",
                freq_base=base,
                freq_scale=1 / scaling.factor,
                yarn_orig_ctx=scaling.original_context,
                yarn_beta_fast=scaling.beta_fast,
                yarn_beta_slow=scaling.beta_slow,
                yarn_ext_factor=scaling.ext_factor,
            )
    return None
