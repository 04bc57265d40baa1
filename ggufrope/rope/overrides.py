"""What a file's settings amount to, as one of the schemes with a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.encode import Ignored, bake
from ggufrope.rope.frequencies import dynamic_growth, ntk_base, yarn_magnitude
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import (
    effective,
    file_base,
    number,
    rotary_dimensions,
    yarn_file_magnitude,
)
from ggufrope.rope.scaling import (
    MAX_FACTOR,
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    RopeScaling,
    Unscaled,
    Yarn,
)

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope, LayerGroup
    from ggufrope.rope.metadata import FactorTensor, RopeMetadata


LLAMA3_CONTEXT = 8192
"""The original context of every published model with Llama 3's scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """The scheme that a file's global layers follow in llama.cpp, and the base it is over."""

    scaling: RopeScaling
    base: float


def recognize(metadata: RopeMetadata) -> Recognized:
    """Name what llama.cpp does with the file at its own context length.

    Raises RequestError where no one scheme says it, as with factors under another scaling, and
    FileError where llama.cpp would not load the file.
    """
    found = effective(metadata)
    values = found.values
    base = float(values["freq_base"].value or 0)
    factor = 1 / float(values["freq_scale"].value or 1)
    scaled = abs(factor - 1) > 1e-6
    if values["frequency_factors"].value is not None:
        if scaled:
            raise RequestError(
                f"factor tensors under a factor of {factor:g} are no scheme with a name: "
                "bake them into one"
            )
        return Recognized(scaling=_in_factors(metadata, found, base), base=base)
    if scaled and values["yarn_ext_factor"].value != 0:
        return Recognized(scaling=_yarn_of(found, factor), base=base)
    magnitude = _whole(found).magnitude
    if abs(magnitude - 1) > 1e-6:
        pairs = _whole(found).n_rot // 2
        alike = FrequencyFactors(factors=(factor,) * pairs, attention_factor=magnitude)
        return Recognized(scaling=alike, base=base)
    return Recognized(scaling=Linear(factor=factor) if scaled else Unscaled(), base=base)


def _in_factors(metadata: RopeMetadata, found: EffectiveRope, base: float) -> RopeScaling:
    magnitude = _whole(found).magnitude
    long, short = metadata.tensor(ROPE_FACTORS_LONG), metadata.tensor(ROPE_FACTORS_SHORT)
    if metadata.tensor(ROPE_FREQS) is None and long is not None and short is not None:
        return LongRope(
            long_factors=_values(long),
            short_factors=_values(short),
            original_context=metadata.original_context or metadata.context_length or 0,
            attention_factor=magnitude,
        )
    name = str(found.values["frequency_factors"].value)
    factors = _values(metadata.tensor(name))
    return _llama3(factors, base, magnitude) or FrequencyFactors(
        factors=factors, attention_factor=magnitude
    )


def _llama3(factors: tuple[float, ...], base: float, magnitude: float) -> Llama3 | None:
    """Llama 3's scheme, where the factors are its, with the limits all its models have."""
    if magnitude != 1 or not 1 < max(factors) <= MAX_FACTOR:
        return None
    scaling = Llama3(factor=max(factors), original_context=LLAMA3_CONTEXT)
    expected = bake(scaling, n_rot=2 * len(factors), base=base).factors
    return scaling if np.allclose(factors, expected, rtol=1e-5) else None


def _values(tensor: FactorTensor | None) -> tuple[float, ...]:
    if tensor is None or tensor.values is None:
        raise RequestError("the values of the file's factor tensors were not read")
    return tuple(tensor.values.tolist())


def _yarn_of(found: EffectiveRope, factor: float) -> Yarn:
    def number(name: str) -> float:
        return float(found.values[name].value or 0)

    return Yarn(
        factor=factor,
        original_context=int(number("original_context")),
        beta_fast=number("yarn_beta_fast"),
        beta_slow=number("yarn_beta_slow"),
        ext_factor=number("yarn_ext_factor"),
        attention_factor=_whole(found).magnitude,
    )


def _whole(found: EffectiveRope) -> LayerGroup:
    """The group that scaling is for: the global layers, where there are any."""
    return next((group for group in found.groups if group.name == "global"), found.groups[0])


# A scheme as context parameters: tried at run time, with nothing written.

_FLAGS = {
    "scaling_type": "--rope-scaling",
    "freq_base": "--rope-freq-base",
    "freq_scale": "--rope-freq-scale",
    "yarn_orig_ctx": "--yarn-orig-ctx",
    "yarn_ext_factor": "--yarn-ext-factor",
    "yarn_attn_factor": "--yarn-attn-factor",
    "yarn_beta_fast": "--yarn-beta-fast",
    "yarn_beta_slow": "--yarn-beta-slow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Context parameters that apply a scheme, and what of it they cannot."""

    overrides: RopeOverrides
    ignored: tuple[Ignored, ...] = ()


def try_out(
    scaling: RopeScaling, metadata: RopeMetadata, *, context_tokens: int | None = None
) -> Trial:
    """The context parameters that make llama.cpp apply `scaling` to an unchanged file.

    `context_tokens` sets the base of dynamic NTK. Raises RequestError for a scheme that lives in
    factor tensors, which no context parameter can give.
    """
    arch = architecture(metadata.architecture)
    base = number(file_base(metadata, arch))
    n_rot = rotary_dimensions(metadata, arch)
    match scaling:
        case Unscaled():
            return Trial(overrides=RopeOverrides(scaling_type="none"))
        case Linear(factor=factor):
            return Trial(overrides=RopeOverrides(scaling_type="linear", freq_scale=1 / factor))
        case NtkAware(factor=factor):
            stretched = ntk_base(base, factor, n_rot)
            return Trial(overrides=RopeOverrides(scaling_type="none", freq_base=stretched))
        case DynamicNtk():
            stretched = ntk_base(base, dynamic_growth(scaling, context_tokens), n_rot)
            return Trial(overrides=RopeOverrides(scaling_type="none", freq_base=stretched))
        case Yarn():
            implied = yarn_file_magnitude(metadata, arch, scaling.factor)
            implied *= 1.0 if metadata.attn_factor is None else metadata.attn_factor
            return Trial(overrides=_yarn(scaling), ignored=_beyond_flags(scaling, implied))
    raise RequestError(
        f"{type(scaling).__name__} lives in factor tensors, which no run-time parameter gives: "
        "patch a copy of the file"
    )


def command_flags(overrides: RopeOverrides) -> tuple[str, ...]:
    """The flags of llama-server and its siblings that set `overrides`."""
    flags: list[str] = []
    for name, flag in _FLAGS.items():
        value = getattr(overrides, name)
        if value is not None:
            flags += [flag, value if isinstance(value, str) else f"{value:.9g}"]
    return tuple(flags)


def _yarn(scaling: Yarn) -> RopeOverrides:
    return RopeOverrides(
        scaling_type="yarn",
        freq_scale=1 / scaling.factor,
        yarn_orig_ctx=scaling.original_context,
        yarn_ext_factor=None if scaling.ext_factor == 1 else scaling.ext_factor,
        yarn_beta_fast=scaling.beta_fast,
        yarn_beta_slow=scaling.beta_slow,
    )


def _beyond_flags(scaling: Yarn, implied: float) -> tuple[Ignored, ...]:
    ignored = []
    magnitude = yarn_magnitude(scaling)
    if abs(magnitude - implied) > 1e-6:
        ignored.append(
            Ignored(
                parameter="attention_factor",
                value=magnitude,
                reason=f"with YaRN llama.cpp applies {implied:.6g}, whatever the flag says",
                instead="set rope.scaling.attn_factor in a copy of the file",
            )
        )
    if not scaling.truncate:
        ignored.append(
            Ignored(
                parameter="truncate",
                value=False,
                reason="llama.cpp always rounds YaRN's band limits to whole pairs",
                instead="bake it into factors, where the architecture loads them",
            )
        )
    return tuple(ignored)
