"""What the spaces contain, and what their vectors come to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.patching.rotation import Rotation, rotation_of
from ggufrope.rope.frequencies import ntk_base
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import FrequencyFactors, Linear, RopeScaling, Unscaled, Yarn
from ggufrope.search.schemes import Scheme, exact_parameters
from ggufrope.search.spaces import (
    Attention,
    AttentionSpace,
    BaseSpace,
    LongRope2Space,
    LongRopeSpace,
    ShortSpace,
    Space,
    YarnSpace,
    baselines,
    contains,
    make_space,
    to_beat,
)

SMALL = Rotation(n_rot=8, base=10_000.0, original_context=256, target_context=1024)
SMOLLM2 = Rotation(n_rot=64, base=100_000.0, original_context=8192, target_context=16_384)

WITHIN = Rotation(n_rot=8, base=10_000.0, original_context=256, target_context=200)

SPACES: list[Space] = [
    LongRopeSpace(rotation=SMOLLM2, attention="free"),
    LongRope2Space(rotation=SMOLLM2, attention="free"),
    YarnSpace(rotation=SMOLLM2, attention="free"),
    LongRopeSpace(rotation=SMALL),
    LongRope2Space(rotation=SMALL, attention="none"),
    YarnSpace(rotation=SMALL),
    YarnSpace(rotation=SMALL, free_factor=True),
    YarnSpace(rotation=SMOLLM2, attention="free", free_factor=True),
    ShortSpace(rotation=SMALL, attention_factor=1.2),
    BaseSpace(rotation=SMALL),
    BaseSpace(rotation=SMOLLM2, attention="free", linear=True),
    AttentionSpace(rotation=SMALL),
    AttentionSpace(rotation=WITHIN),
]


def test_longrope_seeds_begin_with_the_known_schemes() -> None:
    yarn, linear, ntk, *_ = LongRopeSpace(rotation=SMALL, attention="free").seeds()
    assert linear == pytest.approx([4, 4, 4, 4, 1])
    assert ntk == pytest.approx([4 ** (j / 3) for j in range(4)] + [1])
    assert yarn[:4] == pytest.approx([1, 8 / 3.5, 4, 4], rel=0.5)
    assert yarn[4] == pytest.approx(1 + 0.1 * math.log(4))


def test_longrope_seeds_go_on_with_other_ramps_each_once() -> None:
    space = LongRopeSpace(rotation=SMOLLM2)
    steep = Yarn(factor=2, original_context=8192, beta_fast=8, beta_slow=5)
    ramp = space.repair(np.array(SMOLLM2.relative_factors(steep)))
    assert sum(np.array_equal(seed, ramp) for seed in space.seeds()) == 1
    assert len({seed.tobytes() for seed in space.seeds()}) == len(space.seeds())


def test_longrope_bounds_are_the_papers() -> None:
    space = LongRopeSpace(rotation=SMALL)
    assert space.lower.tolist() == [1, 1, 1, 1]
    assert space.upper.tolist() == [5, 5, 5, 5]


def test_critical_pairs_of_a_real_model() -> None:
    assert (SMOLLM2.critical_pair(), SMOLLM2.critical_pair(10)) == (20, 14)


def test_longrope2_is_ntk_like_below_the_critical_pair() -> None:
    space = LongRope2Space(rotation=SMALL, attention="none")
    assert (space.earliest, space.latest) == (1, 2)
    scheme = space.scheme(np.array([3.0, 5.0, 6.0, 7.0])).scaling
    # Pair 2 is critical: those before it are powers of its factor, those after it as chosen.
    assert isinstance(scheme, FrequencyFactors)
    assert scheme.factors == pytest.approx((1.0, 6**0.5, 6.0, 7.0))
    assert scheme.attention_factor == 1.0


def test_yarn_seeds_begin_with_yarn_itself() -> None:
    space = YarnSpace(rotation=SMALL)
    assert space.scheme(space.seeds()[0]).scaling == Yarn(
        factor=4, original_context=256, attention_factor=1 + 0.1 * math.log(4)
    )


@pytest.mark.parametrize("attention", ["formula", "free"])
def test_a_free_factor_begins_with_yarn_and_goes_beyond_the_target(attention: Attention) -> None:
    space = make_space("yarn-factor", SMOLLM2, attention)
    first, *others = (space.scheme(seed).scaling for seed in space.seeds())
    assert isinstance(first, Yarn)
    assert first.attention_factor == pytest.approx(1 + 0.1 * math.log(2))
    assert replace(first, attention_factor=None) == Yarn(factor=2, original_context=8192)
    factors = {each.factor for each in others if isinstance(each, Yarn)}
    assert {2, 3, 4, 6} <= factors
    assert space.upper[0] == 8


def test_attention_factor_is_free_by_formula_or_left_out() -> None:
    vector = np.array([1.0, 2.0, 3.0, 4.0])
    factors = (1.0, 2.0, 3.0, 4.0)

    def scheme(attention: str, vector: np.ndarray) -> RopeScaling:
        space = make_space("longrope", SMALL, attention)  # type: ignore[arg-type]
        return space.scheme(vector).scaling

    formula = math.sqrt(1 + math.log(4) / math.log(256))
    assert scheme("formula", vector) == FrequencyFactors(factors=factors, attention_factor=formula)
    assert scheme("none", vector) == FrequencyFactors(factors=factors, attention_factor=1.0)
    free = scheme("free", np.array([*vector, 1.25]))
    assert free == FrequencyFactors(factors=factors, attention_factor=1.25)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_seeds_are_in_the_space(space: Space) -> None:
    assert space.seeds()
    assert all(contains(space, seed) for seed in space.seeds())


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@given(data=st.data())
def test_repair_leads_into_the_space_and_stays(space: Space, data: st.DataObject) -> None:
    numbers = st.floats(1e-3, 1e3)
    n = len(space.lower)
    vector = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    repaired = space.repair(vector)
    assert (space.lower <= repaired).all()
    assert (repaired <= space.upper).all()
    assert contains(space, repaired)
    factors = space.scheme(repaired).scaling
    if isinstance(factors, FrequencyFactors):
        assert (np.diff(factors.factors) >= -1e-6).all()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@given(share=st.floats(0, 1), data=st.data())
def test_any_value_of_an_interval_stays_in_the_space(
    space: Space, share: float, data: st.DataObject
) -> None:
    n = len(space.lower)
    noise = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    vector = space.repair(space.lower + noise * (space.upper - space.lower))
    index = data.draw(st.integers(0, n - 1))
    low, high = space.interval(vector, index)
    vector[index] = low + share * (high - low)
    assert contains(space, vector)


def test_unknown_space_is_refused() -> None:
    with pytest.raises(RequestError, match="expected one of yarn, yarn-factor, base, base-linear"):
        make_space("ntk", SMALL, "free")  # type: ignore[arg-type]


def test_a_target_that_is_no_extension_is_refused() -> None:
    metadata = RopeMetadata(
        architecture="llama",
        context_length=4096,
        block_count=1,
        dimension_count=8,
        embedding_length=8,
        head_count=1,
    )
    with pytest.raises(RequestError, match="not above the original context of 4096"):
        rotation_of(metadata, target_context=4096)
    assert rotation_of(metadata, target_context=8192).factor == 2
    assert rotation_of(metadata, target_context=2048, within=True).factor == 0.5
    scaled = replace(metadata, scaling_type="linear", factor=4.0)
    with pytest.raises(RequestError, match="the file is scaled"):
        rotation_of(scaled, target_context=2048, within=True)


def test_the_base_alone_is_ntk_at_the_factor_of_the_target() -> None:
    space = BaseSpace(rotation=SMALL)
    scheme = space.scheme(space.seeds()[0])
    assert scheme.scaling == Unscaled()
    assert scheme.freq_base == pytest.approx(ntk_base(SMALL.base, 4, SMALL.n_rot))
    assert scheme.turns_like(baselines(SMALL)["ntk"], SMALL)


def test_base_and_linear_have_the_known_schemes_at_their_ends() -> None:
    space = BaseSpace(rotation=SMALL, linear=True)
    first, *_, last = map(space.scheme, space.seeds())
    assert first.turns_like(baselines(SMALL)["ntk"], SMALL)
    assert last.turns_like(baselines(SMALL)["linear"], SMALL)
    assert last.scaling == Linear(factor=4)


def test_base_linear_and_attention_are_one_rotation() -> None:
    space = BaseSpace(rotation=SMALL, linear=True, attention="free")
    scheme = space.scheme(np.array([2.0, 3.0, 1.25]))
    own = np.array(baselines(SMALL)["linear"].factors(SMALL)) / 4 * 3
    wanted = own * 2 ** (np.arange(4) / 3)
    assert scheme.factors(SMALL) == pytest.approx(wanted, rel=1e-6)
    assert scheme.magnitude(SMALL) == 1.25


def test_the_attention_factor_alone_changes_nothing_else() -> None:
    yarn, plain = (AttentionSpace(rotation=each) for each in (SMALL, WITHIN))
    assert yarn.scheme(yarn.seeds()[0]).turns_like(baselines(SMALL)["yarn"], SMALL)
    warmer = plain.scheme(np.array([1.2]))
    assert warmer.factors(WITHIN) == pytest.approx((1.0,) * 4)
    assert warmer.magnitude(WITHIN) == pytest.approx(1.2)
    assert list(baselines(WITHIN)) == [to_beat(WITHIN)] == ["unscaled"]
    assert to_beat(SMALL) == "yarn"


def test_what_only_factors_say_has_no_run_time_parameters() -> None:
    metadata = RopeMetadata(
        architecture="llama",
        context_length=256,
        block_count=1,
        dimension_count=8,
        embedding_length=8,
        head_count=1,
    )
    said = {
        name: exact_parameters(scheme, SMALL, metadata) for name, scheme in baselines(SMALL).items()
    }
    assert None not in said.values()
    ramp = Scheme(scaling=FrequencyFactors(factors=(1.0, 2.0, 3.0, 4.0)))
    assert exact_parameters(ramp, SMALL, metadata) is None
    attention = AttentionSpace(rotation=SMALL).scheme(np.array([1.3]))
    found = exact_parameters(attention, SMALL, metadata)
    assert found is not None
    *_, flag, value = found.flags(metadata)
    assert flag == "--override-kv"
    key, _, number = value.partition("=float:")
    assert key == "llama.rope.scaling.attn_factor"
    assert float(number) == pytest.approx(1.3 / (1 + 0.1 * math.log(4)), rel=1e-6)
