from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.rope.frequencies import frequencies, yarn_kept
from ggufrope.rope.huggingface import from_config
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    Proportional,
    Unscaled,
    Yarn,
)

GOLDENS = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text("utf-8"))
CASES = [
    pytest.param(case["config"], result, id=f"{case['name']}-{result['context_tokens']}")
    for case in GOLDENS["cases"]
    for result in case["results"]
]


@pytest.mark.parametrize(("config", "expected"), CASES)
def test_equal_to_transformers(config: dict[str, Any], expected: dict[str, Any]) -> None:
    rope = from_config(config)
    assert rope.n_rot is not None
    assert rope.base is not None
    found = frequencies(
        rope.scaling, n_rot=rope.n_rot, base=rope.base, context_tokens=expected["context_tokens"]
    )
    np.testing.assert_allclose(
        found.inverse_frequencies, expected["inverse_frequencies"], rtol=1e-6, atol=0
    )
    assert found.magnitude == pytest.approx(expected["magnitude"], rel=1e-9)


def test_plain_frequencies_by_hand() -> None:
    found = frequencies(Unscaled(), n_rot=4, base=10000.0)
    np.testing.assert_allclose(found.inverse_frequencies, [1.0, 0.01], rtol=1e-15)
    assert found.magnitude == 1.0


def test_linear_divides() -> None:
    found = frequencies(Linear(factor=4.0), n_rot=4, base=10000.0)
    np.testing.assert_allclose(found.inverse_frequencies, [0.25, 0.0025], rtol=1e-15)


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor() -> None:
    plain = frequencies(Unscaled(), n_rot=64, base=10000.0).inverse_frequencies
    found = frequencies(NtkAware(factor=8.0), n_rot=64, base=10000.0).inverse_frequencies
    assert found[0] == 1.0
    assert plain[-1] / found[-1] == pytest.approx(8.0, rel=1e-12)


def test_dynamic_ntk_is_plain_up_to_the_original_context() -> None:
    scaling = DynamicNtk(factor=4.0, original_context=2048)
    plain = frequencies(Unscaled(), n_rot=64, base=10000.0).inverse_frequencies
    for tokens in (None, 1, 2048):
        found = frequencies(scaling, n_rot=64, base=10000.0, context_tokens=tokens)
        np.testing.assert_array_equal(found.inverse_frequencies, plain)
    grown = frequencies(scaling, n_rot=64, base=10000.0, context_tokens=4096)
    ntk = frequencies(NtkAware(factor=5.0), n_rot=64, base=10000.0)
    np.testing.assert_allclose(grown.inverse_frequencies, ntk.inverse_frequencies, rtol=1e-12)


def test_llama3_is_ntk_by_parts_under_other_names() -> None:
    by_parts = NtkByParts(factor=8.0, original_context=8192, beta_fast=4.0, beta_slow=1.0)
    llama = Llama3(factor=8.0, original_context=8192)
    np.testing.assert_array_equal(
        frequencies(by_parts, n_rot=128, base=5e5).inverse_frequencies,
        frequencies(llama, n_rot=128, base=5e5).inverse_frequencies,
    )


def test_yarn_without_extrapolation_is_linear() -> None:
    yarn = Yarn(factor=4.0, original_context=2048, ext_factor=0.0)
    np.testing.assert_allclose(
        frequencies(yarn, n_rot=64, base=10000.0).inverse_frequencies,
        frequencies(Linear(factor=4.0), n_rot=64, base=10000.0).inverse_frequencies,
        rtol=1e-12,
    )


def test_yarns_bands_by_hand() -> None:
    """Qwen2.5: pairs that turn 32 times and once in 32768 tokens are 23.6 and 39.6."""
    whole = yarn_kept(128, 1e6, 32768, 32.0, 1.0)
    assert (whole[23], whole[40]) == (1.0, 0.0)
    assert whole[24] == pytest.approx(1 - 1 / 17)
    exact = yarn_kept(128, 1e6, 32768, 32.0, 1.0, truncate=False)
    assert exact[24] == pytest.approx(1 - (24 - 23.596) / (39.650 - 23.596), rel=1e-3)
    assert exact[39] > 0 == exact[40]


def test_longrope_turns_long_one_token_above_the_original_context() -> None:
    scaling = LongRope(
        long_factors=(2.0, 8.0), short_factors=(1.0, 1.0), original_context=4096, factor=8.0
    )
    at = frequencies(scaling, n_rot=4, base=10000.0, context_tokens=4096)
    above = frequencies(scaling, n_rot=4, base=10000.0, context_tokens=4097)
    np.testing.assert_allclose(at.inverse_frequencies, [1.0, 0.01])
    np.testing.assert_allclose(above.inverse_frequencies, [0.5, 0.00125])
    assert at.magnitude == above.magnitude == pytest.approx(math.sqrt(1.25))


def test_proportional_leaves_the_other_pairs_still() -> None:
    found = frequencies(Proportional(fraction=0.25), n_rot=8, base=16.0)
    np.testing.assert_allclose(found.inverse_frequencies, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(("n_rot", "base"), [(0, 1e4), (3, 1e4), (64, 1.0), (64, math.nan)])
def test_dimensions_and_bases_out_of_range_are_refused(n_rot: int, base: float) -> None:
    with pytest.raises(RequestError):
        frequencies(Unscaled(), n_rot=n_rot, base=base)


def test_factors_for_another_head_size_are_refused() -> None:
    with pytest.raises(RequestError, match="2 frequency factors for 32 rotary pairs"):
        frequencies(FrequencyFactors(factors=(1.0, 2.0)), n_rot=64, base=1e4)


factor = st.floats(1.0, 64.0)
original = st.integers(512, 262144)
blended = st.one_of(
    st.builds(Yarn, factor=factor, original_context=original),
    st.builds(NtkByParts, factor=factor, original_context=original),
    st.builds(Llama3, factor=factor, original_context=original),
)


@given(
    scaling=st.one_of(
        blended, st.builds(Linear, factor=factor), st.builds(NtkAware, factor=factor)
    ),
    n_rot=st.sampled_from([32, 64, 80, 96, 128, 256]),
    base=st.sampled_from([1e4, 5e5, 1e6, 1e7]),
)
def test_every_pair_lies_between_kept_and_interpolated(
    scaling: Any, n_rot: int, base: float
) -> None:
    plain = frequencies(Unscaled(), n_rot=n_rot, base=base).inverse_frequencies
    found = frequencies(scaling, n_rot=n_rot, base=base).inverse_frequencies
    slower = np.divide(plain, found)
    assert np.all(slower >= 1 - 1e-9)
    assert np.all(slower <= scaling.factor * (1 + 1e-9))
    assert np.all(np.diff(slower) >= -1e-9 * scaling.factor)
