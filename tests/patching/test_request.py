"""Which scheme a request means on a model, and which requests are refused, with the reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ggufrope.errors import RequestError
from ggufrope.patching.compose import encode_request
from ggufrope.patching.request import ScalingRequest, Target, read_factors, resolve
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    Unscaled,
    Yarn,
)


def declared(architecture: str = "llama", **fields: Any) -> RopeMetadata:
    values = {"context_length": 8192, "embedding_length": 64, "head_count": 2} | fields
    return RopeMetadata(architecture=architecture, **values)


PLAIN = declared()
LONG = (1.0, 2.0)


@pytest.mark.parametrize(
    ("request_", "scaling"),
    [
        (ScalingRequest(scaling="none"), Unscaled()),
        (ScalingRequest(scaling="linear", target_context=32768), Linear(factor=4)),
        (ScalingRequest(scaling="linear", factor=4), Linear(factor=4)),
        (ScalingRequest(scaling="ntk", factor=2.5), NtkAware(factor=2.5)),
        (
            ScalingRequest(scaling="dynamic-ntk", factor=2),
            DynamicNtk(factor=2, original_context=8192),
        ),
        (
            ScalingRequest(scaling="ntk-by-parts", factor=2, beta_fast=16),
            NtkByParts(factor=2, original_context=8192, beta_fast=16),
        ),
        (
            ScalingRequest(scaling="yarn", target_context=16384, attn_factor=1.5, beta_slow=2),
            Yarn(factor=2, original_context=8192, attention_factor=1.5, beta_slow=2),
        ),
        (
            ScalingRequest(scaling="llama3", factor=8, low_freq_factor=2, high_freq_factor=8),
            Llama3(factor=8, original_context=8192, low_freq_factor=2, high_freq_factor=8),
        ),
        (
            ScalingRequest(scaling="longrope", factor=2, long_factors=LONG),
            LongRope(long_factors=LONG, short_factors=(1.0, 1.0), original_context=8192, factor=2),
        ),
        (
            ScalingRequest(scaling="factors", factor=2, long_factors=LONG, attn_factor=1.1),
            FrequencyFactors(factors=LONG, attention_factor=1.1),
        ),
    ],
    ids=lambda value: value.scaling if isinstance(value, ScalingRequest) else "",
)
def test_schemes(request_: ScalingRequest, scaling: object) -> None:
    assert resolve(request_, PLAIN).scaling == scaling


def test_a_target_gives_context_and_original() -> None:
    target = resolve(ScalingRequest(scaling="yarn", target_context=16384), PLAIN)
    assert (target.original_context, target.context_length) == (8192, 16384)


def test_a_factor_gives_the_target() -> None:
    assert resolve(ScalingRequest(scaling="linear", factor=4), PLAIN).context_length == 32768


def test_a_shorter_target_than_the_factor_reaches_is_kept() -> None:
    target = resolve(ScalingRequest(scaling="yarn", factor=4, target_context=20000), PLAIN)
    assert target.context_length == 20000
    assert target.scaling == Yarn(factor=4, original_context=8192)


def test_an_already_scaled_file_starts_from_its_original() -> None:
    scaled = declared(context_length=16384, original_context=8192, factor=2.0, scaling_type="yarn")
    target = resolve(ScalingRequest(scaling="yarn", target_context=32768), scaled)
    assert target.scaling == Yarn(factor=4, original_context=8192)


def test_none_keeps_the_context_that_the_file_reaches() -> None:
    scaled = declared(context_length=16384, original_context=8192, factor=2.0, scaling_type="yarn")
    assert resolve(ScalingRequest(scaling="none"), scaled) == Target(
        scaling=Unscaled(), original_context=16384, context_length=16384, freq_base=None
    )
    dropped = resolve(ScalingRequest(scaling="none", replace_scaling=True), scaled)
    assert (dropped.original_context, dropped.context_length) == (8192, 8192)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScalingRequest(scaling="file"), "missing `scaling`; choose one of: none, linear"),
        (ScalingRequest(scaling="yarn"), "missing `target_context` or `factor`"),
        (
            ScalingRequest(scaling="yarn", target_context=4096),
            "below the 8192 tokens that the",
        ),
        (
            ScalingRequest(scaling="yarn", factor=2, target_context=32768),
            "takes 8192 tokens to 16384",
        ),
        (ScalingRequest(scaling="yarn", factor=0), "factor 0 "),
        (ScalingRequest(scaling="yarn", factor=-1), "factor -1 "),
        (ScalingRequest(scaling="linear", factor=math.nan), "factor nan "),
        (ScalingRequest(scaling="linear", factor=math.inf), "factor inf "),
        (ScalingRequest(scaling="linear", factor=1e9), "above 10000"),
        (
            ScalingRequest(scaling="linear", factor=2, beta_fast=8),
            "`beta_fast` does not apply to `scaling` linear",
        ),
        (ScalingRequest(scaling="none", factor=2), "`factor` does not apply to `scaling` none"),
        (
            ScalingRequest(scaling="ntk", factor=2, attn_factor=1.0),
            "`attn_factor` does not apply to `scaling` ntk",
        ),
        (
            ScalingRequest(scaling="yarn", factor=2, long_factors=LONG),
            "`long_factors` does not apply",
        ),
        (ScalingRequest(scaling="longrope", factor=2), "`scaling` longrope needs `long_factors`"),
        (
            ScalingRequest(scaling="yarn", factor=2, original_context=0),
            "`original_context` 0 must be 1 or more",
        ),
        (ScalingRequest(scaling="none", freq_base=math.nan), "`freq_base` nan"),
        (ScalingRequest(scaling="none", freq_base=0.5), "`freq_base` 0.5"),
        (
            ScalingRequest(scaling="yarn", factor=2, beta_fast=1, beta_slow=4),
            "beta_fast 1 must be above",
        ),
    ],
)
def test_contradictions_are_refused(request_: ScalingRequest, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve(request_, PLAIN)


def test_a_factor_on_a_scaled_file_counts_from_the_context_it_starts_from() -> None:
    linear = declared(factor=4.0)
    target = resolve(ScalingRequest(scaling="linear", factor=8), linear)
    assert (target.scaling, target.original_context) == (Linear(factor=8), 2048)
    assert target.context_length == 16384
    target = resolve(ScalingRequest(scaling="ntk", factor=2), linear)
    assert (target.scaling, target.original_context) == (NtkAware(factor=2), 8192)
    assert target.context_length == 16384


def test_a_file_without_a_context_length() -> None:
    with pytest.raises(RequestError, match="no context length: give `original_context`"):
        resolve(ScalingRequest(scaling="yarn", factor=2), declared(context_length=None))


CONFIG = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def test_a_config_says_everything(config: str) -> None:
    assert resolve(ScalingRequest(scaling="file", from_config=config), PLAIN) == Target(
        scaling=Yarn(factor=4, original_context=8192),
        original_context=8192,
        context_length=32768,
        freq_base=500000.0,
    )


def test_a_config_and_a_scheme_contradict(config: str) -> None:
    with pytest.raises(RequestError, match="leave out `factor`, `scaling`"):
        resolve(ScalingRequest(from_config=config, scaling="yarn", factor=2), PLAIN)


def test_a_config_of_another_model(config: str) -> None:
    Path(config).write_text(json.dumps(CONFIG | {"num_attention_heads": 4}))
    with pytest.raises(RequestError, match="another model: head size 16, the file has 32"):
        resolve(ScalingRequest(scaling="file", from_config=config), PLAIN)


def test_a_config_that_names_no_base_leaves_the_one_of_the_file(tmp_path: Path) -> None:
    """Gemma 3's published config has no rope_theta: its class has, and it is not 10000."""
    path = tmp_path / "config.json"
    text = {"hidden_size": 2560, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    path.write_text(json.dumps({"text_config": text}))
    request = ScalingRequest(scaling="file", from_config=str(path))
    target = resolve(request, declared(context_length=131072, freq_base=1e6))
    assert (target.scaling, target.freq_base) == (Linear(factor=8), None)
    metadata = declared(architecture="gemma3", block_count=12, context_length=131072, freq_base=1e6)
    keys = encode_request(request, metadata)[1].keys
    assert "gemma3.rope.freq_base" not in keys
    assert "gemma3.rope.scaling.factor" in keys


def test_a_file_of_factors_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "factors.txt").write_text("1,2\n")
    with pytest.raises(RequestError, match=r"factors\.txt: factors are stored as \.json, \.csv or"):
        read_factors(tmp_path / "factors.txt")
