"""A scaling scheme -> inverse frequencies and the attention factor.

A runtime multiplies the position of a token by an inverse frequency (radians per token) to get the
angle of a pair of rotary dimensions. The attention factor, called `magnitude` in values and JSON,
multiplies the rotated queries and the rotated keys. Results equal those of transformers'
`modeling_rope_utils` (5.23).

Sequences of numbers are tuples of Python floats, one value per pair: `n_rot/2` of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    Proportional,
    RopeScaling,
    Unscaled,
    Yarn,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats: TypeAlias = tuple[float, ...]

MAX_ROTARY_DIMENSIONS = 65536
"""The largest rotary dimension that is computed. Published models have 32 to 512; the bound keeps
a damaged or hostile header from taking all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequencies:
    """`inverse_frequencies` has `n_rot/2` values in rad/token; `magnitude` is the attention
    factor."""

    inverse_frequencies: Floats
    magnitude: float


def frequencies(
    scaling: RopeScaling, *, n_rot: int, base: float, context_tokens: int | None = None
) -> Frequencies:
    """Compute the inverse frequencies and the attention factor of `scaling` over `n_rot` rotary
    dimensions.

    `context_tokens` is the length of the context in use, on which LongRoPE and dynamic NTK depend;
    None means a length within the original context. Raises RequestError where `n_rot` or `base` is
    out of range, or where the number of factors is not `n_rot/2`.
    """
    if n_rot < 2 or n_rot % 2:
        raise RequestError(f"rotary dimension {n_rot} must be even and at least 2")
    if n_rot > MAX_ROTARY_DIMENSIONS:
        raise RequestError(
            f"rotary dimension {n_rot} is too large: expected at most {MAX_ROTARY_DIMENSIONS}"
        )
    if not (math.isfinite(base) and base > 1):
        raise RequestError(f"RoPE base {base:g} must be a finite number above 1")
    plain = plain_frequencies(n_rot, base)
    match scaling:
        case Unscaled():
            return Frequencies(inverse_frequencies=plain, magnitude=1.0)
        case Linear(factor=factor):
            slowed = tuple(theta / factor for theta in plain)
            return Frequencies(inverse_frequencies=slowed, magnitude=1.0)
        case NtkAware(factor=factor):
            ntk = plain_frequencies(n_rot, ntk_base(base, factor, n_rot))
            return Frequencies(inverse_frequencies=ntk, magnitude=1.0)
        case DynamicNtk():
            growth = dynamic_growth(scaling, context_tokens)
            ntk = plain_frequencies(n_rot, ntk_base(base, growth, n_rot))
            return Frequencies(inverse_frequencies=ntk, magnitude=1.0)
        case (
            NtkByParts(beta_fast=fast, beta_slow=slow)
            | Llama3(high_freq_factor=fast, low_freq_factor=slow)
        ):
            by_parts = _by_turns(plain, scaling.factor, scaling.original_context, fast, slow)
            return Frequencies(inverse_frequencies=by_parts, magnitude=1.0)
        case Yarn():
            return _yarn(scaling, plain, n_rot, base)
        case LongRope():
            long = context_tokens is not None and context_tokens > scaling.original_context
            factors = scaling.long_factors if long else scaling.short_factors
            return Frequencies(
                inverse_frequencies=_divided(plain, factors),
                magnitude=longrope_magnitude(scaling),
            )
        case FrequencyFactors(factors=factors, attention_factor=magnitude):
            return Frequencies(inverse_frequencies=_divided(plain, factors), magnitude=magnitude)
        case Proportional(fraction=fraction, factor=factor):
            turning = int(fraction * n_rot // 2)
            proportional = tuple(
                theta / factor if pair < turning else 0.0 for pair, theta in enumerate(plain)
            )
            return Frequencies(inverse_frequencies=proportional, magnitude=1.0)
    raise RequestError(f"{type(scaling).__name__} is not a RoPE scaling scheme")


def plain_frequencies(n_rot: int, base: float) -> Floats:
    """Return θ_j = base^(-2j/n_rot) for each pair j, in rad/token (Su et al. 2021, section
    3.2.2)."""
    return tuple(base ** (-dimension / n_rot) for dimension in range(0, n_rot, 2))


def ntk_base(base: float, factor: float, n_rot: int) -> float:
    """Return base·factor^(d/(d-2)), d rotary dimensions: the base at which the slowest pair turns
    exactly `factor` times slower (YaRN paper, definition 1)."""
    if n_rot < 4:
        raise RequestError(f"NTK-aware scaling needs a rotary dimension of 4 or more, not {n_rot}")
    try:
        stretched = float(base * factor ** (n_rot / (n_rot - 2)))
    except OverflowError:
        stretched = math.inf
    if not math.isfinite(stretched):
        raise RequestError(f"a base of {base:g} cannot be stretched {factor:g} times")
    return stretched


def dynamic_growth(scaling: DynamicNtk, context_tokens: int | None) -> float:
    """Return the NTK factor of dynamic NTK at `context_tokens`, 1 up to the original context
    (transformers' `_compute_dynamic_ntk_parameters`)."""
    ratio = max(context_tokens or 0, scaling.original_context) / scaling.original_context
    return scaling.factor * ratio - (scaling.factor - 1)


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's attention factor, 1 + 0.1·weight·ln factor (YaRN paper, equation 22)."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * weight * math.log(factor)


def yarn_magnitude(scaling: Yarn) -> float:
    """Return YaRN's attention factor: the one given, or the one its other parameters imply
    (transformers' `_compute_yarn_parameters`)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        whole = yarn_mscale(scaling.factor, scaling.mscale_all_dim)
        return yarn_mscale(scaling.factor, scaling.mscale) / whole
    return yarn_mscale(scaling.factor)


def longrope_magnitude(scaling: LongRope) -> float:
    """Return LongRoPE's attention factor: the one given, or sqrt(1 + ln factor / ln
    original_context) (LongRoPE, section 3.3)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor is None or scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))


def yarn_kept(
    n_rot: int,
    base: float,
    original_context: float,
    beta_fast: float,
    beta_slow: float,
    *,
    truncate: bool = True,
) -> Floats:
    """Return how far each pair keeps its frequency under YaRN: 1 kept, 0 interpolated.

    As in ggml/src/ggml.c `ggml_rope_yarn_corr_dims` and ggml-cpu/ops.cpp `rope_yarn_ramp`;
    without `truncate`, as in transformers.
    """

    def pair_turning(turns: float) -> float:
        """The pair that turns so many times in the original context, as a real number."""
        if turns == 0:
            return math.inf
        wave = original_context / (turns * 2 * math.pi)
        return n_rot * math.log(wave) / (2 * math.log(base)) if wave > 0 else -math.inf

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low = float(math.floor(low)) if math.isfinite(low) else low
        high = float(math.ceil(high)) if math.isfinite(high) else high
    low, high = max(low, 0), min(high, n_rot - 1)
    width = max(high - low, 0.001)
    return tuple(1.0 - _unit((pair - low) / width) for pair in range(n_rot // 2))


def blend(interpolated: Floats, extrapolated: Floats, kept: Sequence[float]) -> Floats:
    """Mix two sets of inverse frequencies: `kept` is the weight of `extrapolated`, pair by pair
    (YaRN paper, equation 13)."""
    return tuple(
        slow * (1 - weight) + fast * weight
        for slow, fast, weight in zip(interpolated, extrapolated, kept, strict=True)
    )


def _yarn(scaling: Yarn, plain: Floats, n_rot: int, base: float) -> Frequencies:
    kept = yarn_kept(
        n_rot,
        base,
        scaling.original_context,
        scaling.beta_fast,
        scaling.beta_slow,
        truncate=scaling.truncate,
    )
    slowed = tuple(theta / scaling.factor for theta in plain)
    mixed = blend(slowed, plain, [scaling.ext_factor * weight for weight in kept])
    return Frequencies(inverse_frequencies=mixed, magnitude=yarn_magnitude(scaling))


def _by_turns(
    plain: Floats, factor: float, original_context: int, beta_fast: float, beta_slow: float
) -> Floats:
    """NTK-by-parts: the ramp over the turns made in the original context (YaRN paper, equations
    11 to 13; transformers' `_compute_llama3_parameters`)."""
    turns = [original_context * theta / (2 * math.pi) for theta in plain]
    if beta_fast == beta_slow:
        kept = [float(turn >= beta_fast) for turn in turns]
    else:
        kept = [_unit((turn - beta_slow) / (beta_fast - beta_slow)) for turn in turns]
    return blend(tuple(theta / factor for theta in plain), plain, kept)


def _divided(plain: Floats, factors: Floats) -> Floats:
    if len(factors) != len(plain):
        raise RequestError(
            f"{len(factors)} frequency factors for {len(plain)} rotary pairs: "
            "expected one factor per pair"
        )
    return tuple(theta / factor for theta, factor in zip(plain, factors, strict=True))


def _unit(value: float) -> float:
    """`value` clipped to 0 to 1."""
    return min(max(value, 0.0), 1.0)
