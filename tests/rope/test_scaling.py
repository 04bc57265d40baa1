from __future__ import annotations

import math

import pytest

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
    Yarn,
)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, 0.5])
@pytest.mark.parametrize("scheme", [Linear, NtkAware])
def test_a_factor_that_extends_nothing_is_refused(scheme: type[Linear], factor: float) -> None:
    with pytest.raises(RequestError, match=r"factor .* is not a context extension: expected"):
        scheme(factor=factor)


def test_a_length_given_as_a_factor_is_refused() -> None:
    with pytest.raises(RequestError, match="not a length in tokens"):
        Yarn(factor=1e9, original_context=2048)


@pytest.mark.parametrize("scheme", [DynamicNtk, NtkByParts, Yarn, Llama3])
def test_an_original_context_of_0_is_refused(scheme: type[Yarn]) -> None:
    with pytest.raises(RequestError, match="original_context 0"):
        scheme(factor=2.0, original_context=0)


def test_crossed_limits_are_refused() -> None:
    with pytest.raises(RequestError, match="beta_fast 1 must be above beta_slow 32"):
        Yarn(factor=2.0, original_context=2048, beta_fast=1, beta_slow=32)
    with pytest.raises(RequestError, match="high_freq_factor 1 must be above low_freq_factor 4"):
        Llama3(factor=8.0, original_context=8192, low_freq_factor=4, high_freq_factor=1)


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan, math.inf])
def test_the_first_bad_factor_is_named(value: float) -> None:
    with pytest.raises(RequestError, match=r"factors\[1\] is .*: expected a finite number above 0"):
        FrequencyFactors(factors=(1.0, value, -5.0))


def test_long_and_short_factors_must_pair() -> None:
    with pytest.raises(RequestError, match="long_factors has 2 values and short_factors 1"):
        LongRope(long_factors=(1, 2), short_factors=(1,), original_context=4096, factor=2.0)
    with pytest.raises(RequestError, match="needs a factor or an attention_factor"):
        LongRope(long_factors=(1, 2), short_factors=(1, 1), original_context=4096)


@pytest.mark.parametrize(
    "fields", [{"ext_factor": 1.5}, {"attention_factor": 0.0}, {"mscale": -1.0}]
)
def test_yarn_parameters_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(fields))):
        Yarn(factor=2.0, original_context=2048, **fields)  # type: ignore[arg-type]


def test_a_fraction_above_one_is_refused() -> None:
    with pytest.raises(RequestError, match="fraction 25 is out of range"):
        Proportional(fraction=25)
