"""The RoPE scaling schemes as values, independent of file and runtime.

A scheme turns the inverse frequencies of plain RoPE, θ_j = base^(-2j/n_rot), into others, and may
multiply the rotated vectors by an attention factor. `frequencies.py` does the arithmetic. Every
class checks its parameters on construction and raises RequestError where they make no sense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from ggufrope.errors import RequestError

MAX_FACTOR = 10_000.0
"""The largest factor accepted: a larger number is a length in tokens, given by mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled:
    """Plain RoPE (Su et al. 2021, equation 15)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class NtkAware:
    """The base raised to base·factor^(d/(d-2)), d rotary dimensions (YaRN paper, definition 1)."""

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNtk:
    """NTK-aware scaling with a base that grows with the context beyond `original_context` tokens
    (YaRN paper, section 3.3)."""

    factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)


@dataclass(frozen=True, slots=True, kw_only=True)
class NtkByParts:
    """Fast pairs kept, slow pairs interpolated, with a ramp over the turns in between.

    A pair that turns more than `beta_fast` times within `original_context` keeps its frequency;
    one that turns less than `beta_slow` times is interpolated (YaRN paper, equations 11 to 13).
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)
        _check_betas(self.beta_fast, self.beta_slow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """NTK-by-parts with the ramp over the pair index, and an attention factor (YaRN paper, section
    3.4).

    `ext_factor` is llama.cpp's weight of the kept part (0 is linear). Where `attention_factor` is
    None, it is mscale(factor, mscale) / mscale(factor, mscale_all_dim) if both are given, else
    1 + 0.1 ln factor (equation 22). `truncate` rounds the band limits to whole pairs.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ext_factor: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)
        _check_betas(self.beta_fast, self.beta_slow)
        _check_range("ext_factor", self.ext_factor, low=0.0, high=1.0)
        _check_optional_positive("attention_factor", self.attention_factor)
        _check_optional_positive("mscale", self.mscale, or_zero=True)
        _check_optional_positive("mscale_all_dim", self.mscale_all_dim, or_zero=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3:
    """Llama 3.1's scheme: NTK-by-parts with its own names for the limits (transformers'
    `_compute_llama3_parameters`). Equal limits are a step (Llama 4 Scout has 1 and 1)."""

    factor: float
    original_context: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)
        _check_positive("low_freq_factor", self.low_freq_factor)
        _check_positive("high_freq_factor", self.high_freq_factor)
        if self.high_freq_factor < self.low_freq_factor:
            raise RequestError(
                f"high_freq_factor {self.high_freq_factor:g} must be above "
                f"low_freq_factor {self.low_freq_factor:g} or equal to it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRope:
    """One searched divisor per pair, and a second set for contexts above the original (LongRoPE).

    Where `attention_factor` is None, it is sqrt(1 + ln factor / ln original_context), with `factor`
    the ratio of the extended to the original context (LongRoPE, section 3.3).
    """

    long_factors: tuple[float, ...]
    short_factors: tuple[float, ...]
    original_context: int
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_factors("long_factors", self.long_factors)
        check_factors("short_factors", self.short_factors)
        if len(self.long_factors) != len(self.short_factors):
            raise RequestError(
                f"long_factors has {len(self.long_factors)} values and short_factors "
                f"{len(self.short_factors)}: both need one value per pair of rotary dimensions"
            )
        _check_context(self.original_context)
        if self.factor is not None:
            _check_factor(self.factor)
        _check_optional_positive("attention_factor", self.attention_factor)
        if self.factor is None and self.attention_factor is None:
            raise RequestError("LongRoPE needs a factor or an attention_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyFactors:
    """Every frequency divided by its own factor, which is what a rope_freqs tensor does."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        check_factors("factors", self.factors)
        _check_positive("attention_factor", self.attention_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportional:
    """Only the first `fraction` of the pairs turn, with the frequencies of the whole head (Gemma 4;
    transformers' rope type "proportional")."""

    fraction: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_range("fraction", self.fraction, low=0.0, high=1.0)
        _check_factor(self.factor)


RopeScaling: TypeAlias = (
    Unscaled
    | Linear
    | NtkAware
    | DynamicNtk
    | NtkByParts
    | Yarn
    | Llama3
    | LongRope
    | FrequencyFactors
    | Proportional
)


def check_factors(name: str, factors: tuple[float, ...]) -> None:
    """Check that all `factors` are finite and positive. Raises RequestError, naming the first that
    is not."""
    if not factors:
        raise RequestError(f"{name} is empty: expected one value per pair of rotary dimensions")
    for index, factor in enumerate(factors):
        if not (math.isfinite(factor) and factor > 0):
            raise RequestError(f"{name}[{index}] is {factor:g}: expected a finite number above 0")


def _check_factor(factor: float) -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise RequestError(
            f"factor {factor:g} is not a context extension: expected the ratio of the target to "
            "the original context, 1 or more"
        )
    if factor > MAX_FACTOR:
        raise RequestError(
            f"factor {factor:g} is above {MAX_FACTOR:g}: expected the ratio of the target to the "
            "original context, not a length in tokens"
        )


def _check_context(tokens: int) -> None:
    if tokens < 2:
        raise RequestError(f"original_context {tokens} must be a number of tokens, 2 or more")


def _check_betas(fast: float, slow: float) -> None:
    _check_positive("beta_fast", fast)
    _check_positive("beta_slow", slow)
    if fast < slow:
        raise RequestError(f"beta_fast {fast:g} must be above beta_slow {slow:g} or equal to it")


def _check_range(name: str, value: float, *, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RequestError(f"{name} {value:g} is out of range: expected {low:g} to {high:g}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{name} {value:g} must be a finite number above 0")


def _check_optional_positive(name: str, value: float | None, *, or_zero: bool = False) -> None:
    if value is not None and not (or_zero and value == 0):
        _check_positive(name, value)
