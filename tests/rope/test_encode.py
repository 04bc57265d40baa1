"""What is written is what takes effect: frequencies by two ways, compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ggufrope.container.types import TypedValue, ValueType
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architectures
from ggufrope.rope.attention import magnitude_acts
from ggufrope.rope.encode import Expression, express
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
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

Metadata = Callable[..., RopeMetadata]
Applied = Callable[[Expression, RopeMetadata], RopeMetadata]

RISING = tuple(float(x) for x in np.geomspace(1.0, 30.0, 32).astype(np.float32))
IN_METADATA = [
    Unscaled(),
    Linear(factor=4.0),
    NtkAware(factor=4.0),
    Yarn(factor=4.0, original_context=2048),
    Yarn(factor=4.0, original_context=2048, attention_factor=1.0),
    Yarn(factor=40.0, original_context=2048, mscale=1.0, mscale_all_dim=0.707),
]
IN_FACTORS = [
    Llama3(factor=8.0, original_context=2048),
    NtkByParts(factor=4.0, original_context=2048),
    FrequencyFactors(factors=RISING, attention_factor=1.1),
    Proportional(fraction=0.25),
]
LONGROPE = LongRope(
    long_factors=RISING, short_factors=(1.0,) * 32, original_context=2048, factor=4.0
)
ANY_BETAS = Yarn(
    factor=4.0, original_context=2048, beta_fast=8.0, beta_slow=2.0, ext_factor=0.5, truncate=False
)
PREDICTABLE = [
    name
    for name, arch in sorted(architectures().items())
    if arch.rope != "none"
    and arch.settings_act
    and arch.global_rot_divisor == 1
    and arch.no_rope != "global"
    and name not in ("llama4", "baichuan")  # rotate no global layer of a model of 8
]
LOADING = [name for name in PREDICTABLE if architectures()[name].loads_factors]


def same_rotation(
    model: RopeMetadata, scaling: RopeScaling, *, base: float, context_tokens: int
) -> None:
    groups = effective(model, context_tokens=context_tokens).groups
    whole = next(group for group in groups if group.name == "global")
    wanted = frequencies(scaling, n_rot=64, base=base, context_tokens=context_tokens)
    np.testing.assert_allclose(
        whole.inverse_frequencies, wanted.inverse_frequencies, rtol=2e-7, atol=1e-25
    )
    acts = magnitude_acts(model, architectures()[model.architecture])
    assert whole.magnitude == pytest.approx(wanted.magnitude if acts else 1.0, rel=1e-6)


@pytest.mark.parametrize("name", PREDICTABLE)
@pytest.mark.parametrize("scaling", IN_METADATA, ids=lambda s: type(s).__name__)
def test_metadata_gives_the_scheme(
    metadata: Metadata, applied: Applied, name: str, scaling: RopeScaling
) -> None:
    before = metadata(name, factor=3.0, attn_factor=1.7, scale_linear=2.0, yarn_beta_fast=9.0)
    after = applied(express(scaling, before), before)
    same_rotation(after, scaling, base=10000.0, context_tokens=8192)


@pytest.mark.parametrize("name", LOADING)
@pytest.mark.parametrize("scaling", IN_FACTORS, ids=lambda s: type(s).__name__)
def test_factor_tensors_give_the_scheme(
    metadata: Metadata, applied: Applied, name: str, scaling: RopeScaling
) -> None:
    before = metadata(name, scaling_type="yarn", factor=3.0)
    after = applied(express(scaling, before), before)
    same_rotation(after, scaling, base=10000.0, context_tokens=8192)


@pytest.mark.parametrize("name", LOADING)
@pytest.mark.parametrize("scaling", [*IN_METADATA, ANY_BETAS], ids=lambda s: type(s).__name__)
def test_baked_schemes_rotate_the_same(
    metadata: Metadata, applied: Applied, name: str, scaling: RopeScaling
) -> None:
    before = metadata(name, scaling_type="yarn", factor=3.0)
    after = applied(express(scaling, before, baked=True), before)
    same_rotation(after, scaling, base=10000.0, context_tokens=8192)


@pytest.mark.parametrize("name", [n for n in LOADING if architectures()[n].has_long_short_factors])
def test_longrope_on_both_sides_of_its_original_context(
    metadata: Metadata, applied: Applied, name: str
) -> None:
    before = metadata(name)
    after = applied(express(LONGROPE, before, context_length=8192), before)
    assert after.context_length == 8192
    for tokens in (2048, 8192):
        same_rotation(after, LONGROPE, base=10000.0, context_tokens=tokens)


def test_keeping_the_short_context_leaves_short_contexts_unchanged(
    metadata: Metadata, applied: Applied
) -> None:
    native = np.geomspace(1, 8, 32).astype(np.float32).astype(np.float64)
    before = metadata(factors={"rope_freqs.weight": native}, attn_factor=1.2)
    scheme = Yarn(factor=4.0, original_context=2048)
    expression = express(scheme, before, keep_short_context=True, context_length=8192)
    after = applied(expression, before)
    for tokens in (512, 2048):
        old, new = (effective(m, context_tokens=tokens).groups[0] for m in (before, after))
        np.testing.assert_allclose(new.inverse_frequencies, old.inverse_frequencies, rtol=1e-7)
        assert new.magnitude == old.magnitude
    long = effective(after, context_tokens=8192).groups[0].inverse_frequencies
    wanted = frequencies(scheme, n_rot=64, base=10000.0).inverse_frequencies / native
    np.testing.assert_allclose(long, wanted, rtol=2e-7)
    assert [ignored.parameter for ignored in expression.ignored] == ["attention_factor"]


def test_yarn_on_top_of_native_factors_is_the_same_baked(
    metadata: Metadata, applied: Applied
) -> None:
    native = np.geomspace(1, 8, 32).astype(np.float32)
    before = metadata(factors={"rope_freqs.weight": native})
    scheme = Yarn(factor=4.0, original_context=2048)
    declared, baked = (
        effective(applied(express(scheme, before, baked=b), before)).groups[0]
        for b in (False, True)
    )
    np.testing.assert_allclose(baked.inverse_frequencies, declared.inverse_frequencies, rtol=2e-7)
    assert baked.magnitude == pytest.approx(declared.magnitude, rel=1e-6)


def test_edits_compare_by_value_and_hold_float32(metadata: Metadata) -> None:
    scheme = FrequencyFactors(factors=(1.1,) * 32)
    found = express(scheme, metadata())
    assert found == express(scheme, metadata())
    assert found.tensors == {"rope_freqs.weight": (float(np.float32(1.1)),) * 32}
    with pytest.raises(RequestError, match="too large for a float32 tensor"):
        express(FrequencyFactors(factors=(1e39,) * 32), metadata())


def test_types_and_removals(metadata: Metadata) -> None:
    before = metadata("qwen2", scale_linear=2.0, yarn_beta_fast=9.0, attn_factor=1.2)
    scheme = Yarn(factor=4.0, original_context=2048)
    found = express(scheme, before, context_length=8192)
    assert found.keys == {
        "qwen2.rope.scaling.type": TypedValue(type=ValueType.STRING, value="yarn"),
        "qwen2.rope.scaling.factor": TypedValue(type=ValueType.FLOAT32, value=4.0),
        "qwen2.rope.scaling.original_context_length": TypedValue(type=ValueType.UINT32, value=2048),
        "qwen2.context_length": TypedValue(type=ValueType.UINT32, value=8192),
        "qwen2.rope.scale_linear": None,
        "qwen2.rope.scaling.yarn_beta_fast": None,
        "qwen2.rope.scaling.attn_factor": None,
    }
    assert found.tensors == {}
    assert found.ignored == ()


def test_betas_that_llama_cpp_does_not_read_are_listed_not_written(metadata: Metadata) -> None:
    scheme = Yarn(factor=4.0, original_context=2048, beta_fast=16.0)
    for name, advice in (
        ("qwen2", "pass llama.cpp's --yarn-beta-fast 16 at run time"),
        ("llama", "pass llama.cpp's --yarn-beta-fast 16 at run time, or bake it into factors"),
    ):
        found = express(scheme, metadata(name))
        assert f"{name}.rope.scaling.yarn_beta_fast" not in found.keys
        assert [ignored.instead for ignored in found.ignored] == [advice]
        assert found.flags == ("--yarn-beta-fast", "16")
    live = express(scheme, metadata("mistral3"))
    assert live.ignored == ()
    assert live.keys["mistral3.rope.scaling.yarn_beta_fast"] == TypedValue(
        type=ValueType.FLOAT32, value=16.0
    )


@pytest.mark.parametrize("scaling", [*IN_FACTORS, LONGROPE], ids=lambda s: type(s).__name__)
def test_factors_are_refused_with_what_works_instead(
    metadata: Metadata, scaling: RopeScaling
) -> None:
    with pytest.raises(RequestError, match=r"no factor tensors for qwen2.*--rope-scaling yarn"):
        express(scaling, metadata("qwen2"))


def test_dynamic_ntk_becomes_the_base_of_one_context(metadata: Metadata, applied: Applied) -> None:
    scheme = DynamicNtk(factor=2.0, original_context=2048)
    before = metadata()
    found = express(scheme, before, context_length=8192)
    same_rotation(applied(found, before), scheme, base=10000.0, context_tokens=8192)
    assert "--rope-freq-base" in found.ignored[0].instead


def test_a_new_base_beside_an_alpha(metadata: Metadata, applied: Applied) -> None:
    before = metadata("hunyuan_vl", alpha=1000.0)
    (group,) = effective(before).groups
    assert group.inverse_frequencies[1] == pytest.approx((10000 * 1000 ** (64 / 62)) ** (-2 / 64))
    after = applied(express(NtkAware(factor=4.0), before), before)
    slowed = group.inverse_frequencies[-1] / effective(after).groups[0].inverse_frequencies[-1]
    assert slowed == pytest.approx(4.0)


def test_a_new_base_leaves_the_sliding_layers_unchanged(
    metadata: Metadata, applied: Applied
) -> None:
    before = metadata("gpt-oss", sliding_window=128)
    after = applied(express(NtkAware(factor=4.0), before), before)
    old, new = (effective(model).group(0).inverse_frequencies for model in (before, after))
    np.testing.assert_array_equal(old, new)


def test_tensors_that_the_new_type_refuses_are_removed(
    metadata: Metadata, applied: Applied
) -> None:
    before = metadata(
        scaling_type="longrope",
        factors={"rope_factors_long.weight": RISING, "rope_factors_short.weight": RISING},
    )
    found = express(Linear(factor=2.0), before)
    assert found.tensors == {"rope_factors_long.weight": None, "rope_factors_short.weight": None}
    same_rotation(applied(found, before), Linear(factor=2.0), base=10000.0, context_tokens=4096)


def test_factors_for_another_head_size_are_refused(metadata: Metadata) -> None:
    with pytest.raises(RequestError, match="31 frequency factors for 32 rotary pairs"):
        express(FrequencyFactors(factors=RISING[1:]), metadata())


def test_a_note_says_that_only_sliding_layers_rotate(metadata: Metadata) -> None:
    found = express(Linear(factor=2.0), metadata("llama4"))
    assert "only sliding-window layers rotate: a window needs no extension" in found.notes


def test_a_note_says_that_no_layer_rotates(metadata: Metadata) -> None:
    found = express(Linear(factor=2.0), metadata("granite", finetuned=False))
    assert "no layer of this model rotates: the scaling does nothing" in found.notes


def test_the_attention_factor_of_yarn_is_not_written_twice(metadata: Metadata) -> None:
    scheme = Yarn(factor=4.0, original_context=2048, attention_factor=1 + 0.1 * math.log(4))
    assert "llama.rope.scaling.attn_factor" not in express(scheme, metadata()).keys
