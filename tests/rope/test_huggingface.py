from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from ggufrope.errors import RequestError
from ggufrope.rope.huggingface import from_config, to_config
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


def config(**fields: Any) -> dict[str, Any]:
    common = {"hidden_size": 512, "num_attention_heads": 8, "max_position_embeddings": 8192}
    return {**common, **fields}


def test_a_config_without_a_section_is_unscaled() -> None:
    found = from_config(config())
    assert (found.scaling, found.base, found.n_rot) == (Unscaled(), None, 64)
    assert found.context_length == 8192


@pytest.mark.parametrize("outer", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("inner", ["type", "rope_type"])
def test_old_and_new_spellings(outer: str, inner: str) -> None:
    found = from_config(config(rope_theta=1e6, **{outer: {inner: "linear", "factor": 4}}))
    assert (found.scaling, found.base) == (Linear(factor=4.0), 1e6)


def test_phi3_has_its_original_length_at_the_top() -> None:
    scaling = {
        "type": "su",
        "long_factor": [2.0, 3.0],
        "short_factor": [1.0, 1.0],
        "original_max_position_embeddings": 999,
    }
    found = from_config(config(original_max_position_embeddings=4096, rope_scaling=scaling))
    assert found.scaling == LongRope(
        long_factors=(2.0, 3.0), short_factors=(1.0, 1.0), original_context=4096, factor=2.0
    )


def test_yarn_without_an_original_length_takes_the_whole() -> None:
    found = from_config(config(rope_scaling={"type": "yarn", "factor": 4.0, "beta_fast": None}))
    assert found.scaling == Yarn(factor=4.0, original_context=8192)


def test_nested_by_layer_type() -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = from_config(config(rope_parameters=parameters))
    assert (found.scaling, found.base) == (Linear(factor=8.0), 1e6)
    assert found.sliding is not None
    assert (found.sliding.scaling, found.sliding.base) == (Unscaled(), 1e4)


def test_gemma3_before_nesting() -> None:
    found = from_config(config(rope_theta=1e6, rope_local_base_freq=1e4))
    assert found.sliding is not None
    assert found.sliding.base == 1e4


def test_the_text_model_of_a_multimodal_config() -> None:
    inner = config(rope_theta=5e5, rope_scaling={"rope_type": "mrope", "mrope_section": [16, 24]})
    found = from_config({"model_type": "some_vl", "text_config": inner})
    assert (found.scaling, found.base) == (Unscaled(), 5e5)


@pytest.mark.parametrize(
    ("fields", "n_rot"),
    [
        ({"head_dim": 128}, 128),
        ({"partial_rotary_factor": 0.4}, 25),
        ({"rotary_pct": 0.25}, 16),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, 32),
        ({"qk_rope_head_dim": 64, "head_dim": 192}, 64),
        ({"rotary_dim": 32}, 32),
    ],
)
def test_rotary_dimensions(fields: dict[str, Any], n_rot: int) -> None:
    assert from_config(config(**fields)).n_rot == n_rot


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, r"rope_scaling\.factor is '4'"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "expected a number"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type is 'spiral'"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_type is"),
        ({"rope_scaling": "yarn"}, "rope_scaling is a str: expected an object"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "long_factor is missing"),
        (
            {"rope_scaling": {"type": "su", "factor": 2.0, "long_factor": [1, None]}},
            r"rope_scaling.long_factor.1 is missing",
        ),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"max_position_embeddings": 0.5}, r"max_position_embeddings is 0\.5"),
        ({"rope_parameters": {"sliding_attention": {}}}, "has no full_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "truncate is 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor 0 is not a context extension"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_config(config(**fields))


def test_json_that_is_no_config() -> None:
    with pytest.raises(RequestError, match=r"none of the fields of a model's config\.json"):
        from_config({"vocab": {"a": 1}})
    with pytest.raises(RequestError, match="expected a JSON object"):
        from_config([1, 2])  # type: ignore[arg-type]


SCHEMES: list[RopeScaling] = [
    Unscaled(),
    Linear(factor=2.0),
    DynamicNtk(factor=2.0, original_context=8192),
    Yarn(factor=4.0, original_context=2048, beta_fast=16.0, mscale=1.0, truncate=False),
    Yarn(factor=4.0, original_context=2048, attention_factor=1.2, mscale_all_dim=0.7),
    Llama3(factor=8.0, original_context=2048),
    LongRope(long_factors=(2.0,), short_factors=(1.0,), original_context=2048, factor=4.0),
    Proportional(fraction=0.25, factor=2.0),
]


@pytest.mark.parametrize("scaling", SCHEMES, ids=lambda s: type(s).__name__)
def test_what_is_written_is_read(scaling: RopeScaling) -> None:
    found = from_config(config(rope_parameters=to_config(scaling, base=5e5)))
    assert (found.scaling, found.base) == (scaling, 5e5)


@pytest.mark.parametrize(
    "scaling",
    [
        NtkAware(factor=2.0),
        NtkByParts(factor=2.0, original_context=2048),
        FrequencyFactors(factors=(1.0,)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_schemes_that_transformers_lacks(scaling: RopeScaling) -> None:
    with pytest.raises(RequestError, match="transformers has no rope_type for"):
        to_config(scaling, base=1e4)


def test_a_base_that_is_not_named_is_none() -> None:
    found = from_config({"hidden_size": 64, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert (found.base, found.scaling) == (None, Linear(factor=2.0))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {
                "model_type": "qwen2",
                "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
            },
            "rope_scaling.alpha",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "ratio": 2, "spin": 1}},
            "rope_scaling.ratio, rope_scaling.spin",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "stretch": 2.0}}},
            "rope_parameters.full_attention.stretch",
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "extrapolation_factor": 0.5,
                    "original_max_position_embeddings": 4096,
                }
            },
            "rope_scaling.extrapolation_factor",
        ),
        ({"use_dynamic_ntk": True}, "use_dynamic_ntk"),
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"rope_scaling_factor": 8}, "rope_scaling_factor"),
        ({"rope_scaling_type": "yarn"}, "rope_scaling_type"),
        ({"rotary_scaling_factor": 2}, "rotary_scaling_factor"),
        ({"rope_position_scale": 2.0}, "rope_position_scale"),
        ({"rope_ntk_alpha": 8, "dynamic_ntk": True}, "rope_ntk_alpha, dynamic_ntk"),
        ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 2.0}, "attn_factor"),
    ],
)
def test_keys_that_may_change_the_rotation_are_refused_by_name(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(RequestError, match=rf"the config has {re.escape(named)}, which may change"):
        from_config(config(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_ratio": 1},
        {"use_dynamic_ntk": False},
        {"use_scaled_rope": False, "rope_scaling_factor": 1, "rotary_scaling_factor": None},
        {"use_rope_scaling": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_type": "default", "rope_interleave": True, "no_rope_layers": [1, 0]},
        {"yarn": None},
        {"yarn": {}},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": None}},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
    ],
)
def test_keys_that_change_nothing_are_not(fields: dict[str, Any]) -> None:
    assert from_config(config(**fields)).n_rot


def test_a_scaling_at_the_top_level() -> None:
    own = config(rope_scaling_factor=32.0, initial_context_length=4096)
    gpt_oss = from_config({**own, "rope_ntk_alpha": 2, "rope_ntk_beta": 16}).scaling
    yarn = Yarn(factor=32.0, original_context=4096, beta_fast=32.0, truncate=False)
    assert gpt_oss == replace(yarn, beta_fast=16.0, beta_slow=2.0)
    assert from_config(own).scaling == yarn
    grok = config(rope_type="original", scaling_factor=16.0, attn_factor=1.0, beta_fast=8)
    found = from_config({**grok, "original_max_position_embeddings": 8192}).scaling
    assert found == Yarn(factor=16.0, original_context=8192, beta_fast=8.0)
    assert from_config(config(rope_condense_ratio=8)).scaling == Linear(factor=8.0)
    hugging = {"attn_config": {"rope": True, "rope_hf_config": {"type": "linear", "factor": 2.0}}}
    assert from_config(config(**hugging)).scaling == Linear(factor=2.0)


def test_a_scaling_at_the_top_level_does_not_contradict_a_section() -> None:
    section = {"type": "linear", "factor": 8.0}
    assert from_config(config(rope_scaling=section, rope_condense_ratio=8)).scaling
    with pytest.raises(RequestError, match="rope_scaling and beside it a factor of 4"):
        from_config(config(rope_scaling=section, rope_condense_ratio=4))


def test_a_fraction_of_the_config_goes_before_that_of_its_class() -> None:
    for extra in ({}, {"rope_scaling": None}, {"rope_scaling": {"type": "linear", "factor": 2.0}}):
        phi = from_config(config(model_type="phi", partial_rotary_factor=0.75, **extra))
        neox = from_config(config(model_type="gpt_neox", rotary_pct=1.0, **extra))
        assert (phi.n_rot, neox.n_rot) == (48, 64)
    assert from_config(config(model_type="gpt_neox")).n_rot == 16


def test_contexts_that_a_file_may_have_instead() -> None:
    command_r = from_config(config(model_type="cohere", model_max_length=131072))
    assert (command_r.reach(131072), command_r.reach(4096), command_r.reach(None)) == (
        131072,
        8192,
        8192,
    )
    section = {"type": "yarn", "factor": 20.0, "original_max_position_embeddings": 2048}
    assert from_config(config(rope_scaling=section)).context_length == 8192
    granite = config(model_type="granitemoehybrid", position_embedding_type="nope")
    assert from_config(granite).reach(1 << 20) == 1 << 20
    bge = {"max_position_embeddings": 8194, "pad_token_id": 1, "model_type": "xlm-roberta"}
    assert from_config(config(**bge)).reach(8192) == 8192


def test_ratios_and_alphas_stretch_the_base() -> None:
    chat = from_config({"kv_channels": 128, "seq_length": 131072, "rope_ratio": 500})
    assert (chat.base, chat.n_rot, chat.context_length) == (5e6, 64, 131072)
    section = {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}
    dense = from_config(
        {
            "model_type": "hunyuan_v1_dense",
            "head_dim": 128,
            "rope_theta": 1e4,
            "rope_scaling": section,
        }
    )
    assert dense.scaling == Unscaled()
    assert dense.alpha == 1000.0
    assert dense.base == pytest.approx(11158839.9251)


@pytest.mark.parametrize(
    "name",
    [
        "rope_theta",
        "global_rope_theta",
        "rotary_emb_base",
        "rope_freq_constant",
        "default_theta",
    ],
)
def test_bases_under_other_names(name: str) -> None:
    assert from_config(config(**{name: 70000})).base == 70000.0


@pytest.mark.parametrize(
    "name", ["rope_local_base_freq", "local_rope_theta", "swa_rope_theta", "rope_theta_local"]
)
def test_local_bases_under_other_names(name: str) -> None:
    found = from_config(config(rope_theta=1e6, **{name: 9000}))
    assert found.sliding is not None
    assert (found.base, found.sliding.base) == (1e6, 9000.0)


def test_layer_types_under_any_names() -> None:
    parameters = {
        "hybrid": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        "hybrid_sliding": {"rope_type": "default", "rope_theta": 1e4},
        "gated": None,
    }
    found = from_config(config(rope_theta=5e6, rope_parameters=parameters))
    assert found.scaling == Yarn(factor=4.0, original_context=2048)
    assert found.sliding is not None
    assert (found.base, found.sliding.base) == (5e6, 1e4)
    assert found.layers["gated"] is None


def test_only_windows_rotate() -> None:
    parameters = {"sliding_attention": {"rope_theta": 2e4}, "full_attention": None}
    found = from_config(config(rope_parameters=parameters))
    assert (found.base, found.sliding) == (2e4, None)


def test_a_base_per_layer() -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    found = from_config(
        config(
            num_hidden_layers=4,
            rope_theta=[5e6, 1e4, 1e4, 5e6],
            partial_rotary_factors=[0.5, 1.0, 1.0, 0.5],
            layer_types=types,
        )
    )
    assert found.sliding is not None
    assert (found.base, found.n_rot) == (5e6, 32)
    assert (found.sliding.base, found.sliding.n_rot) == (1e4, 64)
    still = from_config(config(num_hidden_layers=4, layer_rope_theta=[1e5, 0, 1e5, 0]))
    assert (still.base, still.sliding) == (1e5, None)


def test_latent_attention() -> None:
    sizes = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    found = from_config(config(**sizes))
    assert (found.head_size, found.n_rot, found.kv_lora_rank) == (192, 64, 512)


def test_two_sections_that_do_not_agree() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    same = from_config(config(rope_parameters=linear, rope_scaling={"type": "linear", "factor": 2}))
    assert same.scaling == Linear(factor=2.0)
    with pytest.raises(RequestError, match="rope_parameters and rope_scaling, which do not say"):
        from_config(config(rope_parameters=linear, rope_scaling={"type": "linear", "factor": 4}))


def test_a_mistral_section_scales_or_does_not() -> None:
    section = {"factor": 4, "alpha": 2, "beta": 16, "original_max_position_embeddings": 4096}
    scaled = from_config({"dim": 512, "n_heads": 8, "yarn": section})
    plain = from_config({"dim": 512, "n_heads": 8, "yarn": {**section, "apply_scale": False}})
    assert scaled.scaling == Yarn(factor=4.0, original_context=4096, beta_fast=16.0, beta_slow=2.0)
    assert isinstance(plain.scaling, Yarn)
    assert (plain.scaling.mscale, plain.scaling.mscale_all_dim) == (1.0, 1.0)
    assert (plain.context_length, plain.head_size) == (16384, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"yarn": {"factor": 36, "alpha": 1, "beta": 32}}, r"yarn\.original_max.* is missing"),
        ({"rope_scaling": {"type": "yarn"}}, r"rope_scaling\.factor is missing"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0}},
            r"rope_scaling\.low_freq_factor is missing",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor is too large"),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "factor is inf: expected a fin"),
        ({"rope_scaling": [1, 2]}, "rope_scaling is a list: expected an object"),
        ({"rope_scaling": {"type": "x" * 10000}}, r"rope_type is 'x{56}\.\.\.: expected"),
        ({"rope_theta": [1e4] * 3, "num_hidden_layers": 4}, "rope_theta has 3 values: expected 4"),
        ({"rope_theta": [1e4, "x"]}, r"rope_theta\.1 is 'x': expected a number"),
        ({"rope_theta": []}, "rope_theta has 0 values"),
        ({"rope_theta": [1e4, 1e5, 1e6]}, "3 different bases"),
        (
            {"rope_theta": [1e4, 1e5], "partial_rotary_factors": [0.5]},
            "has 2 values and partial_rotary_factors has 1",
        ),
        ({"rope_theta": 0}, "^rope_theta is 0: expected more than 1"),
        ({"rope_theta": 1.00000001}, "^rope_theta is 1: expected more than 1"),
        ({"rope_parameters": {"full_attention": None}}, "no layers that rotate"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5: expected more than 0"),
        (
            {"rope_parameters": {"factor": 2.0, "full_attention": {"rope_type": "default"}}},
            "rope_parameters.factor beside sections for full_attention",
        ),
        ({"rope_parameters": {"a": {"rope_theta": 1e4}, "b": {"rope_theta": 1e5}}}, "for a, b"),
        ({"rope_parameters": {"sliding_attention": {}, "full_attention": 7}}, "full_attention"),
        (
            {
                "rope_scaling": {
                    "type": "longrope",
                    "factor": 2.0,
                    "long_factor": [1.0],
                    "short_factor": [1.0],
                    "long_mscale": 1.2,
                    "short_mscale": 1.1,
                }
            },
            "short_mscale 1.1 and long_mscale 1.2 differ",
        ),
    ],
)
def test_half_sections_and_wrong_types(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as found:
        from_config(config(**fields))
    assert len(str(found.value)) < 400
    assert "\n" not in str(found.value)


def test_positions_in_the_attention_config() -> None:
    attention = {"rope_theta": 500000, "kv_n_heads": 8}
    found = from_config(
        {"d_model": 6144, "n_heads": 48, "max_seq_len": 32768, "attn_config": attention}
    )
    assert (found.base, found.n_rot, found.context_length) == (500000.0, 128, 32768)


@pytest.mark.parametrize(
    "fields",
    [
        {"position_embedding_type": "nope"},
        {"alibi": True},
        {"attn_config": {"alibi": True}},
        {"mla_use_nope": True, "qk_rope_head_dim": 0},
    ],
)
def test_models_that_do_not_rotate(fields: dict[str, Any]) -> None:
    found = from_config(config(rope_theta=1e4, **fields))
    assert (found.rotates, found.base, found.n_rot) == (False, None, 0)
