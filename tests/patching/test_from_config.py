"""A config.json onto a file: what is written, what stays the file's, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.make import build
from ggufrope.errors import RequestError, StorageError
from ggufrope.patching.compose import encode_request
from ggufrope.patching.config_file import MAX_CONFIG_BYTES
from ggufrope.patching.plan import plan_patch
from ggufrope.patching.request import ScalingRequest, resolve
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import Linear, Llama3, Proportional, Unscaled, Yarn

KIMI = RopeMetadata(
    architecture="deepseek2",
    context_length=131072,
    block_count=61,
    embedding_length=7168,
    head_count=64,
    head_count_kv=1,
    key_length=576,
    kv_lora_rank=512,
    dimension_count=64,
    freq_base=50000.0,
    scaling_type="yarn",
    factor=32.0,
    original_context=4096,
    yarn_log_multiplier=0.1,
)
KIMI_CONFIG: dict[str, Any] = {
    "model_type": "kimi_k2",
    "hidden_size": 7168,
    "num_attention_heads": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_theta": 50000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
GEMMA = RopeMetadata(
    architecture="gemma3",
    context_length=131072,
    block_count=34,
    embedding_length=2560,
    head_count=8,
    key_length=256,
    freq_base=1e6,
)


def request(path: Path, config: object) -> ScalingRequest:
    path.write_text(json.dumps(config))
    return ScalingRequest(scaling="file", from_config=str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_latent_attention_is_compared_by_its_parts(path: Path) -> None:
    target = resolve(request(path, KIMI_CONFIG), KIMI)
    assert isinstance(target.scaling, Yarn)
    assert (target.scaling.beta_fast, target.context_length) == (1.0, 131072)
    wanted = request(path, {**KIMI_CONFIG, "kv_lora_rank": 256})
    with pytest.raises(RequestError, match="rank of latent keys 256, the file has 512"):
        resolve(wanted, KIMI)


def test_a_softmax_scale_that_the_config_lacks_goes(path: Path) -> None:
    section = {**KIMI_CONFIG["rope_scaling"]}
    for name in ("mscale", "mscale_all_dim"):
        del section[name]
    keys = encode_request(request(path, {**KIMI_CONFIG, "rope_scaling": section}), KIMI)[1].keys
    multiplier = keys["deepseek2.rope.scaling.yarn_log_multiplier"]
    assert multiplier is not None
    assert multiplier.value == 0


def test_a_class_default_does_not_replace_the_base_of_the_file(path: Path) -> None:
    text = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    wanted = request(path, {"model_type": "gemma3", "text_config": text})
    target = resolve(wanted, replace(GEMMA, freq_base=123456.0))
    assert (target.scaling, target.freq_base) == (Linear(factor=8.0), None)
    assert target.context_length == 131072
    assert resolve(wanted, replace(GEMMA, freq_base=None)).freq_base == 1e6


def test_the_base_of_sliding_windows_is_mended(path: Path) -> None:
    config = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072}
    wanted = request(path, {"head_dim": 256, **config})
    key = "gemma3.rope.freq_base_swa"
    assert key not in encode_request(wanted, GEMMA)[1].keys
    keys = encode_request(wanted, replace(GEMMA, freq_base_swa=1e6))[1].keys
    base = keys[key]
    assert base is not None
    assert base.value == 1e4


def test_the_context_rises_to_what_yarn_reaches(path: Path) -> None:
    section = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = {"max_position_embeddings": 40960, "rope_theta": 1e6, "rope_scaling": section}
    metadata = RopeMetadata(architecture="qwen3", context_length=40960, freq_base=1e6)
    target = resolve(request(path, config), metadata)
    assert (target.original_context, target.context_length) == (32768, 131072)


def test_a_head_size_of_global_layers(path: Path) -> None:
    sections = {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    text = {"head_dim": 256, "global_head_dim": 512, "rope_parameters": sections}
    metadata = RopeMetadata(
        architecture="gemma4", context_length=262144, key_length=512, dimension_count=512
    )
    target = resolve(request(path, {"text_config": text}), metadata)
    assert target.scaling == Proportional(fraction=0.25)


def test_equal_limits_are_a_step(path: Path) -> None:
    section = {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    config = {"head_dim": 128, "max_position_embeddings": 10485760, "rope_scaling": section}
    metadata = RopeMetadata(architecture="llama4", context_length=10485760, key_length=128)
    target = resolve(request(path, config), metadata)
    assert isinstance(target.scaling, Llama3)


def test_an_alpha_that_the_file_has_too_is_not_stretched_twice(path: Path) -> None:
    section = {"rope_type": "xdrope", "alpha": 1000.0, "xdrope_section": [16, 16, 16, 16]}
    config = {"head_dim": 128, "rope_theta": 1e4, "rope_scaling": section}
    metadata = RopeMetadata(
        architecture="hunyuan_vl", context_length=262144, key_length=128, alpha=1000.0
    )
    wanted = request(path, {"model_type": "hunyuan_vl_text", **config})
    target = resolve(wanted, metadata)
    assert target.scaling == Unscaled()
    assert target.freq_base == pytest.approx(1e4)
    with pytest.raises(RequestError, match=r"the config has alpha 1000, .* is 50"):
        resolve(wanted, replace(metadata, alpha=50.0))


def test_a_model_without_positions_keeps_what_it_has(path: Path) -> None:
    config = {"position_embedding_type": "nope", "rope_theta": 1e4, "hidden_size": 64}
    metadata = RopeMetadata(architecture="granitehybrid", context_length=4096, freq_base=1e6)
    target = resolve(request(path, config), metadata)
    assert (target.scaling, target.freq_base) == (Unscaled(), None)


def test_half_of_the_layers_turn_half_of_the_head(path: Path) -> None:
    config = {
        "head_dim": 128,
        "num_hidden_layers": 2,
        "rope_theta": [5e6, 1e4],
        "partial_rotary_factors": [0.5, 1.0],
        "max_position_embeddings": 262144,
    }
    metadata = RopeMetadata(architecture="step35", context_length=262144, key_length=128)
    assert resolve(request(path, config), metadata).freq_base == 5e6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "config is a list: expected a JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"rope_theta": ' + "9" * 10_000 + "}", "too many digits"),
        ('{"rope_theta": NaN}', "rope_theta is nan: expected a finite number"),
        ('{"rope_theta": 1e999}', "rope_theta is inf: expected a finite number"),
        ('{"vocab": {}}', "none of the fields"),
        ('{"rope_scaling": {"type": "yarn", "factor": 4.0}}', "original_max.* is missing"),
        ('{"hidden_size": 64, "rope_scaling": 5}', "rope_scaling is a int: expected an object"),
        (
            '{"n_ctx": 8, "rope_scaling": {"type": "su", "long_factor": [1], "short_factor": [1]}}',
            "1 frequency factors for 16 rotary pairs",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, content: str, message: str
) -> None:
    model = build("llama", tmp_path / "model.gguf")[0]
    before = model.read_bytes()
    config = tmp_path / "config.json"
    config.write_text(content)
    with pytest.raises(RequestError, match=message) as found:
        plan_patch(model, ScalingRequest(scaling="file", from_config=str(config)))
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600
    assert model.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["config.json", "model.gguf"]


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with config.open("wb") as file:
        file.truncate(100 << 20)
    metadata = RopeMetadata(architecture="llama", context_length=4096)
    with pytest.raises(StorageError, match="at most 16777216 are read"):
        resolve(ScalingRequest(scaling="file", from_config=str(config)), metadata)
    assert MAX_CONFIG_BYTES == 16 << 20
