from __future__ import annotations

import re
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
            {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}},
            "rope_scaling.alpha",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "ratio": 2, "spin": 1}},
            "rope_scaling.ratio, rope_scaling.spin",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "alpha": 2.0}}},
            "rope_parameters.full_attention.alpha",
        ),
        ({"rope_ratio": 500}, "rope_ratio"),
        ({"compress_rope_theta": 160000}, "compress_rope_theta"),
        ({"yarn": {"factor": 36, "alpha": 1, "beta": 32}}, "yarn"),
        ({"use_dynamic_ntk": True}, "use_dynamic_ntk"),
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
        {"yarn": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": None}},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
    ],
)
def test_keys_that_change_nothing_are_not(fields: dict[str, Any]) -> None:
    assert from_config(config(**fields)).n_rot
