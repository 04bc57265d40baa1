"""A scaling scheme -> inverse frequencies and attention magnitude.

Frequencies are what a runtime multiplies a position by to get an angle; the magnitude multiplies
both rotated queries and rotated keys. Equal to transformers' `modeling_rope_utils` (5.23).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frequencies:
    """`inverse_frequencies` is float64 `[n_rot/2]`, in rad/token; `magnitude` is a plain factor."""

    inverse_frequencies: Array
    magnitude: float


def frequencies(
    scaling: RopeScaling, *, n_rot: int, base: float, context_tokens: int | None = None
) -> Frequencies:
    """Inverse frequencies and magnitude of `scaling` over `n_rot` rotary dimensions.

    `context_tokens` is the length of the context in use, which LongRoPE and dynamic NTK depend
    on; None means one within the original context. Raises RequestError where `n_rot` or `base` is
    no setting of RoPE, or factors are not one a pair.
    """
    if n_rot < 2 or n_rot % 2:
        raise RequestError(f"rotary dimension {n_rot} must be even and at least 2")
    if not (math.isfinite(base) and base > 1):
        raise RequestError(f"RoPE base {base:g} must be a finite number above 1")
    plain = plain_frequencies(n_rot, base)
    match scaling:
        case Unscaled():
            return Frequencies(inverse_frequencies=plain, magnitude=1.0)
        case Linear(factor=factor):
            return Frequencies(inverse_frequencies=plain / factor, magnitude=1.0)
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
            turning = np.arange(n_rot // 2) < int(fraction * n_rot // 2)
            proportional = np.where(turning, plain / factor, 0.0)
            return Frequencies(inverse_frequencies=proportional, magnitude=1.0)
    raise RequestError(f"{type(scaling).__name__} is not a RoPE scaling scheme")


def plain_frequencies(n_rot: int, base: float) -> Array:
    """θ_j = base^(-2j/n_rot), float64 `[n_rot/2]`, rad/token (Su et al. 2021, section 3.2.2)."""
    return np.power(base, -np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)


def ntk_base(base: float, factor: float, n_rot: int) -> float:
    """The NTK-aware base, at which the slowest pair is slowed exactly `factor` times."""
    if n_rot < 4:
        raise RequestError(f"NTK-aware scaling needs a rotary dimension of 4 or more, not {n_rot}")
    try:
        return float(base * factor ** (n_rot / (n_rot - 2)))
    except OverflowError:
        raise RequestError(f"a base of {base:g} cannot be stretched {factor:g} times") from None


def dynamic_growth(scaling: DynamicNtk, context_tokens: int | None) -> float:
    """The NTK factor of dynamic NTK at `context_tokens`: 1 up to the original context."""
    ratio = max(context_tokens or 0, scaling.original_context) / scaling.original_context
    return scaling.factor * ratio - (scaling.factor - 1)


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's magnitude, 1 + 0.1·weight·ln factor (YaRN paper, equation 22)."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * weight * math.log(factor)


def yarn_magnitude(scaling: Yarn) -> float:
    """The magnitude of YaRN: the given attention factor, or the one its other parameters imply."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        whole = yarn_mscale(scaling.factor, scaling.mscale_all_dim)
        return yarn_mscale(scaling.factor, scaling.mscale) / whole
    return yarn_mscale(scaling.factor)


def longrope_magnitude(scaling: LongRope) -> float:
    """The magnitude of LongRoPE: the given attention factor, or the one its factor implies."""
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
) -> Array:
    """How far each pair keeps its frequency under YaRN: `[n_rot/2]`, 1 kept, 0 interpolated.

    As in ggml/src/ggml.c `ggml_rope_yarn_corr_dims` and ggml-cpu/ops.cpp `rope_yarn_ramp`;
    without `truncate`, as in transformers.
    """

    def pair_turning(turns: float) -> float:
        if turns == 0:
            return math.inf
        return n_rot * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low, high = float(np.floor(low)), float(np.ceil(high))
    low, high = max(low, 0), min(high, n_rot - 1)
    ramp = (np.arange(n_rot // 2) - low) / max(high - low, 0.001)
    kept: Array = 1.0 - np.clip(ramp, 0.0, 1.0)
    return kept


def _yarn(scaling: Yarn, plain: Array, n_rot: int, base: float) -> Frequencies:
    kept = scaling.ext_factor * yarn_kept(
        n_rot,
        base,
        scaling.original_context,
        scaling.beta_fast,
        scaling.beta_slow,
        truncate=scaling.truncate,
    )
    mixed = plain / scaling.factor * (1 - kept) + plain * kept
    return Frequencies(inverse_frequencies=mixed, magnitude=yarn_magnitude(scaling))


def _by_turns(
    plain: Array, factor: float, original_context: int, beta_fast: float, beta_slow: float
) -> Array:
    turns = original_context * plain / (2 * math.pi)
    kept = np.clip((turns - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0)
    return plain / factor * (1 - kept) + plain * kept


def _divided(plain: Array, factors: tuple[float, ...]) -> Array:
    if len(factors) != len(plain):
        raise RequestError(
            f"{len(factors)} frequency factors for {len(plain)} rotary pairs: "
            "one a pair of rotary dimensions is needed"
        )
    return plain / np.asarray(factors, dtype=np.float64)
