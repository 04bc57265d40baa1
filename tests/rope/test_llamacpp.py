"""Predictions against figures worked out from the source of llama.cpp."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.container.types import ValueType
from ggufrope.errors import FileError, GgufRopeError, RequestError
from ggufrope.rope.architectures import architectures
from ggufrope.rope.effective import EffectiveRope, RopeOverrides
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.keys import KEYS, SCALING_TYPES
from ggufrope.rope.layers import sliding_layers
from ggufrope.rope.lint import lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import Linear, Unscaled, Yarn

Metadata = Callable[..., RopeMetadata]
YARN: dict[str, Any] = {"scaling_type": "yarn", "factor": 4.0, "original_context": 2048}
PLAIN = np.array(frequencies(Unscaled(), n_rot=64, base=10000.0).inverse_frequencies)


def one_pair(found: EffectiveRope, pair: int) -> float:
    return float(found.groups[0].inverse_frequencies[pair])


def test_nothing_said_is_plain_rope(metadata: Metadata) -> None:
    found = effective(metadata(freq_base=None))
    assert [group.layers for group in found.groups] == [tuple(range(8))]
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, PLAIN)
    assert found.groups[0].magnitude == 1.0
    assert found.values["freq_base"].source == "default"
    assert found.values["scaling_type"].value == "linear"
    assert found.rope_type == "norm"


def test_predictions_compare_by_value(metadata: Metadata) -> None:
    factors = {"rope_freqs.weight": [1.0] * 16 + [2.0] * 16}
    found = effective(metadata(**YARN, factors=factors))
    assert found == effective(metadata(**YARN, factors=factors))
    assert found != effective(metadata(**YARN))
    assert {type(value) for value in found.groups[0].inverse_frequencies} == {float}


def test_a_factor_alone_is_linear(metadata: Metadata) -> None:
    expected = frequencies(Linear(factor=4.0), n_rot=64, base=10000.0).inverse_frequencies
    for fields in ({"factor": 4.0}, {"scale_linear": 4.0}, {"factor": 4.0, "scale_linear": 2.0}):
        found = effective(metadata(**fields))
        np.testing.assert_allclose(found.groups[0].inverse_frequencies, expected)


def test_yarn_is_the_paper_with_its_attention_factor(metadata: Metadata) -> None:
    found = effective(metadata(**YARN))
    expected = frequencies(Yarn(factor=4.0, original_context=2048), n_rot=64, base=10000.0)
    np.testing.assert_allclose(
        found.groups[0].inverse_frequencies, expected.inverse_frequencies, rtol=1e-12
    )
    assert found.groups[0].magnitude == pytest.approx(1 + 0.1 * math.log(4))


def test_betas_in_the_file_act_on_mistral3_but_not_on_llama(metadata: Metadata) -> None:
    betas: dict[str, Any] = {"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0}
    dead = effective(metadata(**YARN, **betas))
    live = effective(metadata("mistral3", **YARN, **betas))
    flags = effective(metadata(**YARN), overrides=RopeOverrides(**betas))
    without = effective(metadata(**YARN))
    np.testing.assert_array_equal(
        dead.groups[0].inverse_frequencies, without.groups[0].inverse_frequencies
    )
    np.testing.assert_array_equal(
        live.groups[0].inverse_frequencies, flags.groups[0].inverse_frequencies
    )
    assert not np.allclose(live.groups[0].inverse_frequencies, dead.groups[0].inverse_frequencies)
    assert dead.values["yarn_beta_fast"].source == "ignored"
    assert dead.values["yarn_beta_fast"].value == 32.0
    assert "--yarn-beta-fast" in dead.values["yarn_beta_fast"].reason
    assert live.values["yarn_beta_fast"].source == "file"


def test_grok_has_its_own_default_of_beta_fast(metadata: Metadata) -> None:
    assert effective(metadata("grok", **YARN)).values["yarn_beta_fast"].value == 8.0


def test_attn_factor_multiplies_whatever_yarn_applies(metadata: Metadata) -> None:
    assert effective(metadata(attn_factor=1.5)).groups[0].magnitude == 1.5
    found = effective(metadata(**YARN, attn_factor=1.5))
    assert found.groups[0].magnitude == pytest.approx(1.5 * (1 + 0.1 * math.log(4)))


def test_yarn_overwrites_the_attention_factor_flag(metadata: Metadata) -> None:
    overrides = RopeOverrides(yarn_attn_factor=3.0)
    assert effective(metadata(), overrides=overrides).groups[0].magnitude == 3.0
    found = effective(metadata(**YARN), overrides=overrides)
    assert found.groups[0].magnitude == pytest.approx(1 + 0.1 * math.log(4))
    assert found.values["yarn_attn_factor"].source == "ignored"


def test_scaling_type_none_drops_the_factor(metadata: Metadata) -> None:
    found = effective(metadata(**YARN), overrides=RopeOverrides(scaling_type="none"))
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, PLAIN)
    assert found.groups[0].magnitude == 1.0
    assert found.values["freq_scale"].source == "ignored"


def test_overrides_replace_the_file(metadata: Metadata) -> None:
    overrides = RopeOverrides(scaling_type="linear", freq_scale=0.5, freq_base=1e6)
    found = effective(metadata(**YARN), overrides=overrides)
    expected = frequencies(Linear(factor=2.0), n_rot=64, base=1e6).inverse_frequencies
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, expected)
    assert found.values["freq_base"].source == "override"


def test_deepseek_multiplier_cancels_itself(metadata: Metadata) -> None:
    scaled = {**YARN, "factor": 40.0, "yarn_log_multiplier": 0.0707}
    assert effective(metadata("deepseek2", **scaled)).groups[0].magnitude == pytest.approx(1.0)
    other = effective(metadata("mistral3", **YARN, yarn_log_multiplier=1.0)).groups[0].magnitude
    assert other == pytest.approx(1.0)
    assert effective(metadata(**YARN, yarn_log_multiplier=1.0)).groups[0].magnitude > 1.1


def test_factors_divide_and_compose_with_linear(metadata: Metadata) -> None:
    factors = np.linspace(1, 4, 32)
    found = effective(metadata(factor=2.0, factors={"rope_freqs.weight": factors}))
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, PLAIN / factors / 2)
    assert found.values["frequency_factors"].value == "rope_freqs.weight"


@pytest.mark.parametrize(
    ("tokens", "side"), [(256, "short"), (2048, "short"), (2049, "long"), (1793, "short")]
)
def test_long_or_short_factors_follow_the_context_as_allocated(
    metadata: Metadata, tokens: int, side: str
) -> None:
    factors = {
        "rope_factors_long.weight": np.full(32, 4.0),
        "rope_factors_short.weight": np.ones(32),
    }
    model = metadata(
        scaling_type="longrope", original_context=2048, context_length=8192, factors=factors
    )
    found = effective(model, context_tokens=tokens)
    assert one_pair(found, 0) == (0.25 if side == "long" else 1.0)
    assert found.values["frequency_factors"].value == f"rope_factors_{side}.weight"


def test_an_original_context_override_does_not_change_the_factors(metadata: Metadata) -> None:
    factors = {
        "rope_factors_long.weight": np.full(32, 4.0),
        "rope_factors_short.weight": np.ones(32),
    }
    model = metadata(scaling_type="longrope", original_context=2048, factors=factors)
    found = effective(model, context_tokens=4096, overrides=RopeOverrides(yarn_orig_ctx=8192))
    assert one_pair(found, 0) == 0.25


def test_gemma3_leaves_its_sliding_layers_alone(metadata: Metadata) -> None:
    model = metadata(
        "gemma3", block_count=12, sliding_window=512, freq_base=1e6, factor=8.0, key_length=64
    )
    found = effective(model)
    sliding, whole = found.groups
    assert (sliding.name, whole.name) == ("sliding-window", "global")
    assert whole.layers == (5, 11)
    np.testing.assert_allclose(sliding.inverse_frequencies, PLAIN)
    expected = frequencies(Linear(factor=8.0), n_rot=64, base=1e6).inverse_frequencies
    np.testing.assert_allclose(whole.inverse_frequencies, expected)
    assert found.values["freq_scale_swa"].source == "ignored"


def test_gpt_oss_scales_its_sliding_layers_by_the_file_not_by_overrides(
    metadata: Metadata,
) -> None:
    model = metadata("gpt-oss", sliding_window=128, **YARN)
    found = effective(model, overrides=RopeOverrides(scaling_type="none"))
    whole = next(group for group in found.groups if group.name == "global")
    sliding = next(group for group in found.groups if group.name == "sliding-window")
    np.testing.assert_allclose(whole.inverse_frequencies, PLAIN)
    np.testing.assert_allclose(sliding.inverse_frequencies, PLAIN / 4)


def test_cohere2_rotates_only_its_sliding_layers(metadata: Metadata) -> None:
    found = effective(metadata("cohere2", sliding_window=4096))
    assert {group.name: group.layers for group in found.groups} == {
        "sliding-window": (0, 1, 2, 4, 5, 6),
        "no-rope": (3, 7),
    }
    assert found.group(3).inverse_frequencies == ()


def test_olmo3_gives_its_sliding_layers_plain_rope(metadata: Metadata) -> None:
    found = effective(metadata("olmo2", sliding_window=4096, **YARN, attn_factor=2.0))
    np.testing.assert_allclose(found.group(0).inverse_frequencies, PLAIN)
    assert found.group(0).magnitude == 1.0
    assert found.group(3).magnitude == pytest.approx(2 * (1 + 0.1 * math.log(4)))


def test_granite_without_rope(metadata: Metadata) -> None:
    assert effective(metadata("granite", finetuned=False)).groups[0].name == "no-rope"
    assert effective(metadata("granite", finetuned=True)).groups[0].name == "global"
    assert effective(metadata("llama", finetuned=False)).groups[0].name == "global"


def test_baichuan_rotates_only_the_size_it_was_released_in(metadata: Metadata) -> None:
    assert effective(metadata("baichuan", block_count=32)).groups[0].name == "global"
    assert effective(metadata("baichuan", block_count=40)).groups[0].name == "no-rope"


def test_cogvlm_uses_no_setting(metadata: Metadata) -> None:
    found = effective(
        metadata("cogvlm", **YARN, attn_factor=2.0), overrides=RopeOverrides(freq_base=1e6)
    )
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, PLAIN)
    assert found.groups[0].magnitude == 1.0
    assert found.caveat is not None


def test_recurrent_layers_are_a_group_of_their_own(metadata: Metadata) -> None:
    found = effective(metadata("granitehybrid", head_count_kv=(0, 0, 2, 0, 0, 2, 0, 0)))
    assert {group.name: group.layers for group in found.groups}["global"] == (2, 5)
    interval = effective(metadata("qwen3next", key_length=256, dimension_count=64))
    assert {group.name: group.layers for group in interval.groups}["global"] == (3, 7)


def test_partial_rotation(metadata: Metadata) -> None:
    found = effective(metadata("phi2", dimension_count=32))
    expected = frequencies(Unscaled(), n_rot=32, base=10000.0).inverse_frequencies
    np.testing.assert_allclose(found.groups[0].inverse_frequencies, expected)
    with pytest.raises(FileError, match="llama runs only with the head size, 64"):
        effective(metadata("llama", dimension_count=32))


def test_drafting_heads_are_not_layers_of_the_trunk(metadata: Metadata) -> None:
    assert effective(metadata("glm4moe", nextn_predict_layers=1)).groups[0].layers[-1] == 6


def test_sections_make_glm4_mrope(metadata: Metadata) -> None:
    assert effective(metadata("glm4")).rope_type == "norm"
    assert effective(metadata("glm4", dimension_sections=(8, 12, 12, 0))).rope_type == "mrope"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling_type": "ntk"}, "llama.cpp aborts"),
        ({"freq_base": -1.0}, "finite number above 1"),
        ({"factor": math.nan}, "finite number above 0"),
        ({"factor": -4.0}, "finite number above 0"),
        ({"block_count": None}, "1 to 512 layers"),
        ({"head_count": None}, "rotary dimensions"),
        ({"factors": {"rope_freqs.weight": np.ones(31)}}, "31 values: llama.cpp loads only 32"),
        ({"factors": {"rope_factors_long.weight": np.ones(32)}}, "wrong number of tensors"),
    ],
)
def test_files_that_would_not_load_or_rotate(
    metadata: Metadata, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError, match=message):
        effective(metadata(**fields))


def test_factor_tensors_are_refused_where_they_do_not_load(metadata: Metadata) -> None:
    with pytest.raises(FileError, match=r"qwen2 .* does not load rope_freqs\.weight"):
        effective(metadata("qwen2", factors={"rope_freqs.weight": np.ones(32)}))


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling_type": "ntk"},
        {"freq_base": 1.0},
        {"freq_scale": math.inf},
        {"yarn_ext_factor": -1.0},
        {"yarn_beta_fast": math.nan},
        {"yarn_orig_ctx": 0},
    ],
)
def test_overrides_that_llama_cpp_would_read_as_unset_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(fields)).replace("_", "[_ ]")):
        RopeOverrides(**fields)


def anything(kind: type) -> st.SearchStrategy[Any]:
    numbers = st.floats() | st.sampled_from([0.0, -1.0, 1.0, 1e-30, 1e30, 8.0])
    if kind is float:
        return st.none() | numbers
    return st.none() | st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2, 8, 64, 2048])


FLOATS = [field for field, spec in KEYS.items() if spec.type is ValueType.FLOAT32]
COUNTS = [field for field, spec in KEYS.items() if spec.type is ValueType.UINT32]


@given(
    name=st.sampled_from(["llama", "mistral3", "grok", "deepseek2", "gemma3", "hunyuan_vl"]),
    kind=st.sampled_from([None, *SCALING_TYPES, "ntk"]),
    floats=st.fixed_dictionaries({}, optional={field: anything(float) for field in FLOATS}),
    counts=st.fixed_dictionaries({}, optional={field: anything(int) for field in COUNTS}),
    tokens=st.none() | st.integers(-1, 2**31),
)
def test_any_values_give_a_prediction_or_the_domain_error(
    name: str, kind: str | None, floats: Any, counts: Any, tokens: int | None
) -> None:
    common = {"context_length": 2048, "block_count": 8, "embedding_length": 256, "head_count": 4}
    model = RopeMetadata(architecture=name, scaling_type=kind, **{**common, **counts, **floats})
    with contextlib.suppress(GgufRopeError):
        lint(model)
        effective(model, context_tokens=tokens)


def test_a_scale_beyond_all_numbers_is_infinite_and_no_exception(metadata: Metadata) -> None:
    model = metadata("deepseek2", attn_factor=1e200)
    (group,) = effective(model).groups
    assert group.attention_scale == math.inf


@pytest.mark.parametrize("name", sorted(architectures()))
def test_every_architecture_gives_every_layer_one_group(metadata: Metadata, name: str) -> None:
    model = metadata(name, sliding_window=512, sliding_window_pattern=(1, 0) * 4, head_count_kv=2)
    found = effective(model)
    assert sorted(layer for group in found.groups for layer in group.layers) == list(range(8))
    assert len(sliding_layers(model, architectures()[name])) == 8
    for group in found.groups:
        assert np.all(np.isfinite(group.inverse_frequencies))


RATIOS: dict[str, Any] = {
    "compress_ratios": (0, 0, 4, 128, 4, 128, 4, 0),
    "compress_freq_base": 160000.0,
    "sliding_window": 128,
}


def test_deepseek4_scales_its_compressed_layers_alone_and_cancels_the_magnitude(
    metadata: Metadata,
) -> None:
    model = metadata("deepseek4", **RATIOS, **YARN, attn_factor=1.5)
    found = effective(model)
    sliding, whole = found.groups
    assert (sliding.name, sliding.layers) == ("sliding-window", (0, 1, 7))
    assert (whole.name, whole.layers) == ("global", (2, 3, 4, 5, 6))
    np.testing.assert_allclose(sliding.inverse_frequencies, PLAIN)
    scheme = Yarn(factor=4.0, original_context=2048)
    expected = frequencies(scheme, n_rot=64, base=160000.0).inverse_frequencies
    np.testing.assert_allclose(whole.inverse_frequencies, expected)
    assert sliding.magnitude == whole.magnitude == 1.0
    assert found.values["attn_factor"].source == "ignored"
    assert "cancels" in found.values["attn_factor"].reason
    flagged = effective(model, overrides=RopeOverrides(freq_base=5e5))
    np.testing.assert_allclose(flagged.groups[1].inverse_frequencies, expected)
    assert flagged.groups[0].inverse_frequencies[-1] < PLAIN[-1]
    assert flagged.values["freq_base"].source == "ignored"


@pytest.mark.parametrize("name", ["hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder"])
def test_a_norm_after_the_rotation_undoes_the_magnitude(metadata: Metadata, name: str) -> None:
    assert effective(metadata(name, **YARN)).groups[0].magnitude == 1.0


def test_llama4_normalizes_keys_but_with_128_experts(metadata: Metadata) -> None:
    scout = metadata("llama4", sliding_window=8192, expert_count=16, **YARN)
    maverick = metadata("llama4", sliding_window=8192, expert_count=128, **YARN)
    assert effective(scout).group(0).magnitude == 1.0
    assert effective(maverick).group(0).magnitude == pytest.approx(1 + 0.1 * math.log(4))


def test_llama4_has_a_temperature_where_it_does_not_rotate(metadata: Metadata) -> None:
    found = effective(metadata("llama4", sliding_window=8192))
    assert found.group(0).temperature is None
    temperature = found.group(3).temperature
    assert temperature is not None
    assert [temperature.at(p) for p in (0, 8190, 8191, 16383)] == pytest.approx(
        [1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)]
    )
    assert found.values["temperature_floor"].value == 8192


def test_the_floor_of_mistral3s_temperature_is_the_original_context_of_the_file(
    metadata: Metadata,
) -> None:
    for fields, floor in (({}, 2048), (YARN, 2048), ({**YARN, "original_context": 512}, 512)):
        model = metadata("mistral3", **{"temperature_scale": 0.1, **fields})
        found = effective(model, overrides=RopeOverrides(yarn_orig_ctx=64))
        temperature = found.groups[0].temperature
        assert temperature is not None
        assert (temperature.floor_tokens, temperature.offset) == (floor, 0)
    assert effective(metadata("mistral3", **YARN)).groups[0].temperature is None


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 1.0),
        ({"scaling_type": "linear", "factor": 4.0}, (1 + 0.1 * math.log(4)) ** 2),
        ({**YARN, "yarn_log_multiplier": 0.1}, (1 + 0.1 * math.log(4)) ** 2),
        (YARN, (1 + 0.1 * math.log(4)) ** 2),
        ({**YARN, "scaling_type": "none", "attn_factor": 1.5}, 2.25),
    ],
)
@pytest.mark.parametrize("name", ["deepseek2", "deepseek32", "mistral4"])
def test_latent_attention_scales_all_scores(
    metadata: Metadata, name: str, fields: dict[str, Any], scale: float
) -> None:
    found = effective(metadata(name, **fields))
    assert found.groups[0].attention_scale == pytest.approx(scale)
    assert found.values["attention_scale"].value == found.groups[0].attention_scale
    plain = effective(metadata("llama", **fields)).groups[0]
    assert plain.attention_scale is None


def test_glm_dsa_does_not_read_the_multiplier_of_its_scale(metadata: Metadata) -> None:
    found = effective(metadata("glm-dsa", **YARN, yarn_log_multiplier=0.1)).groups[0]
    assert found.attention_scale == pytest.approx((1 + 0.1 * math.log(4)) ** 2)


def test_leading_dense_layers_of_cohere2moe_rotate(metadata: Metadata) -> None:
    found = effective(metadata("cohere2moe", sliding_window=4096, leading_dense_blocks=1))
    assert found.group(0).name == "global"
    assert found.group(4).name == "no-rope"
