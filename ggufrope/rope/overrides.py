"""Between schemes and context parameters: which scheme a file has, which parameters give a scheme.

`recognize` names the scheme that llama.cpp applies to a file. `context_overrides` gives the
context parameters that apply a scheme to an unchanged file, and `command_flags` writes them as
llama.cpp's command-line flags.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import LLAMA_FLAGS, RopeOverrides
from ggufrope.rope.encode import Ignored, bake
from ggufrope.rope.frequencies import Floats, dynamic_growth, ntk_base, yarn_magnitude
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

_NUDGE = 2.0**-16
"""The relative change of a base that means nothing: with 128 rotated dimensions, one unit in the
last place of the ratio of two frequencies in float32."""
_EQUAL = 1e-6
"""Factors and attention factors nearer than this are the same: files hold them as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """The scheme that a file's global layers follow in llama.cpp, and the base it is over."""

    scaling: RopeScaling
    base: float


def recognize(metadata: RopeMetadata) -> Recognized:
    """Name the scheme that llama.cpp applies to the file at its own context length.

    Raises RequestError where no one scheme describes it, as with factors under another scaling, and
    FileError where llama.cpp would not load the file.
    """
    found = effective(metadata)
    values = found.values
    base = float(values["freq_base"].value or 0)
    factor = 1 / float(values["freq_scale"].value or 1)
    scaled = abs(factor - 1) > _EQUAL
    if values["frequency_factors"].value is not None:
        if scaled:
            raise RequestError(
                f"factor tensors under a factor of {factor:g} are no scheme with a name: "
                "bake them into one"
            )
        return Recognized(scaling=_factors_of(metadata, found, base), base=base)
    if scaled and values["yarn_ext_factor"].value != 0:
        return Recognized(scaling=_yarn_of(found, factor), base=base)
    group = _scaled_group(found)
    if abs(group.magnitude - 1) > _EQUAL:
        alike = FrequencyFactors(
            factors=(factor,) * len(group.inverse_frequencies), attention_factor=group.magnitude
        )
        return Recognized(scaling=alike, base=base)
    return Recognized(scaling=Linear(factor=factor) if scaled else Unscaled(), base=base)


def context_overrides(
    scaling: RopeScaling, metadata: RopeMetadata, *, context_tokens: int | None = None
) -> tuple[RopeOverrides, tuple[Ignored, ...]]:
    """Return the context parameters that make llama.cpp apply `scaling` to an unchanged file, and
    what of the scheme they cannot express.

    `context_tokens` sets the base of dynamic NTK. Raises RequestError for a scheme that exists only
    as factor tensors, which no context parameter can give.
    """
    arch = architecture(metadata.architecture)
    base = number(file_base(metadata, arch))
    n_rot = rotary_dimensions(metadata, arch)
    match scaling:
        case Unscaled():
            return RopeOverrides(scaling_type="none"), ()
        case Linear(factor=factor):
            return RopeOverrides(scaling_type="linear", freq_scale=1 / factor), ()
        case NtkAware(factor=factor):
            stretched = ntk_base(base, factor, n_rot)
            return RopeOverrides(scaling_type="none", freq_base=stretched), ()
        case DynamicNtk():
            stretched = ntk_base(base, dynamic_growth(scaling, context_tokens), n_rot)
            return RopeOverrides(scaling_type="none", freq_base=stretched), ()
        case Yarn():
            kept = metadata.attn_factor or 1.0
            if not scaling.ext_factor:
                return _stretched_overrides(scaling, kept), ()
            implied = yarn_file_magnitude(metadata, arch, scaling.factor) * kept
            return _yarn_overrides(scaling), _beyond_flags(scaling, implied)
    raise RequestError(
        f"{type(scaling).__name__} exists only as factor tensors, which no run-time parameter "
        "gives: patch a copy of the file"
    )


def nudged(overrides: RopeOverrides, metadata: RopeMetadata) -> RopeOverrides:
    """Return overrides with a base that differs in its last bits: a change that means nothing, and
    after which every later rounding may go the other way."""
    base = overrides.freq_base or number(file_base(metadata, architecture(metadata.architecture)))
    return replace(overrides, freq_base=base * (1 + _NUDGE))


def command_flags(overrides: RopeOverrides) -> tuple[str, ...]:
    """Return the flags of llama-server and its siblings that set `overrides`."""
    flags: list[str] = []
    for name, flag in LLAMA_FLAGS.items():
        value = getattr(overrides, name)
        if value is not None:
            flags += [flag, value if isinstance(value, str) else f"{value:.9g}"]
    return tuple(flags)


def _factors_of(metadata: RopeMetadata, found: EffectiveRope, base: float) -> RopeScaling:
    magnitude = _scaled_group(found).magnitude
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


def _llama3(factors: Floats, base: float, magnitude: float) -> Llama3 | None:
    """Llama 3's scheme, where it gives these factors with the limits that all its models have."""
    if magnitude != 1 or not 1 < max(factors) <= MAX_FACTOR:
        return None
    scaling = Llama3(factor=max(factors), original_context=LLAMA3_CONTEXT)
    expected = bake(scaling, n_rot=2 * len(factors), base=base).factors
    close = (abs(f - e) <= 1e-5 * e for f, e in zip(factors, expected, strict=True))
    return scaling if all(close) else None


def _values(tensor: FactorTensor | None) -> Floats:
    if tensor is None or tensor.values is None:
        raise RequestError("the values of the file's factor tensors were not read")
    return tensor.values


def _yarn_of(found: EffectiveRope, factor: float) -> Yarn:
    def value(name: str) -> float:
        return number(found.values[name])

    return Yarn(
        factor=factor,
        original_context=int(value("original_context")),
        beta_fast=value("yarn_beta_fast"),
        beta_slow=value("yarn_beta_slow"),
        ext_factor=value("yarn_ext_factor"),
        attention_factor=_scaled_group(found).magnitude,
    )


def _scaled_group(found: EffectiveRope) -> LayerGroup:
    """The group that scaling is for: the global layers, where there are any."""
    if not found.groups:
        raise RequestError("the model has no layer that a scaling could apply to")
    return next((group for group in found.groups if group.name == "global"), found.groups[0])


def _yarn_overrides(scaling: Yarn) -> RopeOverrides:
    return RopeOverrides(
        scaling_type="yarn",
        freq_scale=1 / scaling.factor,
        yarn_orig_ctx=scaling.original_context,
        yarn_ext_factor=None if scaling.ext_factor == 1 else scaling.ext_factor,
        yarn_beta_fast=scaling.beta_fast,
        yarn_beta_slow=scaling.beta_slow,
    )


def _stretched_overrides(scaling: Yarn, file_attention: float) -> RopeOverrides:
    """YaRN that keeps no pair is linear, and llama.cpp takes its attention factor from the flag,
    times the one of the file (src/llama-context.cpp, where yarn_ext_factor is 0)."""
    return RopeOverrides(
        scaling_type="yarn",
        freq_scale=1 / scaling.factor,
        yarn_ext_factor=0.0,
        yarn_attn_factor=yarn_magnitude(scaling) / file_attention,
    )


def _beyond_flags(scaling: Yarn, implied: float) -> tuple[Ignored, ...]:
    ignored = []
    magnitude = yarn_magnitude(scaling)
    if abs(magnitude - implied) > _EQUAL:
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
