"""Findings about how far a file reaches, and about keys that llama.cpp does not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container.types import ValueType
from ggufrope.rope.findings import Finding
from ggufrope.rope.lint import lint
from ggufrope.rope.metadata import RopeMetadata, read_metadata
from ggufrope.rope.reach import covered_context
from ggufrope.rope.unread import near_keys

if TYPE_CHECKING:
    from ggufrope.container.types import Header

Metadata = Callable[..., RopeMetadata]
YARN: dict[str, Any] = {
    "scaling_type": "yarn",
    "factor": 4.0,
    "original_context": 2048,
    "context_length": 8192,
}
LINEAR: dict[str, Any] = {"scaling_type": "linear", "factor": 4.0}


def one(model: RopeMetadata, code: str, *, context_tokens: int | None = None) -> Finding:
    (found,) = [f for f in lint(model, context_tokens=context_tokens) if f.code == code]
    return found


def codes(model: RopeMetadata, *, context_tokens: int | None = None) -> set[str]:
    return {finding.code for finding in lint(model, context_tokens=context_tokens)}


@pytest.mark.parametrize(
    ("context", "code"),
    [
        (2048, "original-not-below-context"),
        (2560, "context-below-factor"),
        (8192, None),
        (8190, None),
    ],
)
def test_the_context_is_what_has_to_rise(
    metadata: Metadata, context: int, code: str | None
) -> None:
    model = metadata("qwen2", **{**YARN, "context_length": context})
    assert covered_context(model) == 8192
    if code is None:
        assert codes(model) == set()
        return
    found = one(model, code)
    assert (found.severity, found.key) == ("warning", "qwen2.context_length")
    assert "raise it to 8192" in found.message


def test_an_original_context_above_the_context_is_at_fault_without_a_factor(
    metadata: Metadata,
) -> None:
    found = one(
        metadata(
            **{**YARN, "factor": None},
        ),
        "yarn-without-factor",
    )
    assert found.key == "llama.rope.scaling.factor"
    model = metadata(**{**YARN, "factor": 1.0, "original_context": 9000})
    assert "set it to the length" in one(model, "original-not-below-context").message


@pytest.mark.parametrize("field", ["factor", "scale_linear"])
@pytest.mark.parametrize("kind", [None, "linear", "yarn"])
def test_a_factor_below_one_shortens(metadata: Metadata, field: str, kind: str | None) -> None:
    found = one(metadata(scaling_type=kind, **{field: 0.125}), "factor-below-one")
    assert found.severity == "warning"
    assert "8 may be meant" in found.message
    assert "factor-below-one" not in codes(metadata(scaling_type="none", **{field: 0.125}))


@pytest.mark.parametrize("name", ["gemma3", "gemma3n", "qwen3", "gpt-oss", "cohere2x", "llama"])
def test_a_base_is_missing_where_the_models_have_another(metadata: Metadata, name: str) -> None:
    context = 131072 if name == "llama" else 4096
    name = name.removesuffix("x")
    extra = {"sliding_window": 512, "sliding_window_pattern": 6} if name != "llama" else {}
    model = metadata(name, freq_base=None, context_length=context, **extra)
    if name == "cohere2":  # no layer that rotates sees further than its window
        assert "base-missing" not in codes(model)
        return
    found = one(model, "base-missing")
    assert (found.severity, found.key) == ("warning", f"{name}.rope.freq_base")
    assert "base 10000" in found.message


def test_an_old_model_needs_no_base(metadata: Metadata) -> None:
    assert codes(metadata("llama", freq_base=None, context_length=4096)) == set()
    scaled = {**YARN, "context_length": 65536, "original_context": 16384}
    assert codes(metadata("llama", freq_base=None, **scaled)) == set()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cohere2", {"sliding_window": 4096}),
        ("exaone-moe", {"sliding_window": 4096}),
        ("smallthinker", {"sliding_window": 4096}),
        ("llama4", {"sliding_window": 8192}),
        ("afmoe", {"sliding_window": 2048}),
    ],
)
@pytest.mark.parametrize("scaling", [YARN, LINEAR], ids=["yarn", "linear"])
def test_scaled_windows(
    metadata: Metadata, name: str, fields: dict[str, Any], scaling: dict[str, Any]
) -> None:
    found = one(metadata(name, **fields, **scaling), "window-scaled")
    assert found.severity == "warning"
    assert f"a window of {fields['sliding_window']} tokens" in found.message


def test_windows_that_are_scaled_with_the_rest_are_no_finding(metadata: Metadata) -> None:
    assert codes(metadata("gpt-oss", sliding_window=128, **YARN)) == set()


def test_a_scaling_that_acts_on_few_layers_is_fine_and_on_none_is_not(metadata: Metadata) -> None:
    few = metadata("gemma3", block_count=12, sliding_window=512, **LINEAR)
    assert one(few, "scaling-mostly-inert").severity == "info"
    glimmer = metadata("muse-glimmer", block_count=48, sliding_window=512, **YARN)
    found = one(glimmer, "scaling-mostly-inert")
    assert found.severity == "warning"
    assert "acts on none of 48 layers" in found.message
    assert "context_length alone" in found.message


@pytest.mark.parametrize(
    ("fields", "covered"),
    [({}, 2048), (YARN, 8192), ({**YARN, "context_length": 2048}, 8192), (LINEAR, 2048)],
)
def test_a_context_beyond_what_the_file_covers(
    metadata: Metadata, fields: dict[str, Any], covered: int
) -> None:
    model = metadata(**fields)
    assert "beyond-trained-context" not in codes(model, context_tokens=covered)
    found = one(model, "beyond-trained-context", context_tokens=4 * covered)
    assert found.severity == "warning"
    assert f"is 4 times the {covered} that the file covers" in found.message


def test_layers_that_do_not_rotate_reach_any_context(metadata: Metadata) -> None:
    model = metadata("cohere2", sliding_window=4096)
    assert "beyond-trained-context" not in codes(model, context_tokens=65536)


@pytest.mark.parametrize(
    ("name", "fields", "severity", "words"),
    [
        ("qwen2", {"yarn_beta_fast": 32.0}, "info", "assumes anyway"),
        ("qwen2", {"yarn_beta_slow": 1.0}, "info", "assumes anyway"),
        ("qwen2", {"yarn_attn_factor": 1.0}, "info", "assumes anyway"),
        ("qwen2", {"yarn_attn_factor": 1.0}, "info", "attention_factor 1, set qwen2.rope.scaling"),
        ("qwen2", {"yarn_attn_factor": 1.13863}, "info", "assumes anyway"),
        ("qwen2", {"yarn_ext_factor": 1.0}, "info", "assumes anyway"),
        ("qwen2", {"yarn_ext_factor": -1.0}, "info", "assumes anyway"),
        ("qwen2", {"yarn_beta_fast": 1.0}, "warning", "--yarn-beta-fast 1 at run time"),
        ("laguna", {"yarn_beta_fast": 64.0}, "warning", "--yarn-beta-fast 64 at run time"),
        ("laguna", {"yarn_ext_factor": 64.0}, "warning", "remove it"),
        ("qwen2", {"yarn_ext_factor": 0.5}, "warning", "--yarn-ext-factor 0.5 at run time"),
        ("qwen2", {"yarn_attn_factor": 2.0}, "warning", "rope.scaling.attn_factor to 1.7565"),
        ("qwen2", {"yarn_beta_fast": 8.0, **LINEAR}, "warning", "remove it: only YaRN uses it"),
        ("qwen2", {"yarn_ext_factor": 0.0, **LINEAR}, "info", "assumes anyway"),
    ],
)
def test_dead_keys_and_what_to_do_about_them(
    metadata: Metadata, name: str, fields: dict[str, Any], severity: str, words: str
) -> None:
    found = one(metadata(name, sliding_window=512, **{**YARN, **fields}), "dead-key")
    assert found.severity == severity
    assert words in found.message
    assert "bake" not in found.message  # none of these loads factors


NAMES = {
    "gemma3.rope.global.freq_base": "gemma3.rope.freq_base",
    "gemma3.rope.local.freq_base": "gemma3.rope.freq_base_swa",
    "gemma3.rope.theta": "gemma3.rope.freq_base",
    "gemma3.rope_theta": "gemma3.rope.freq_base",
    "rope.freq_base": "gemma3.rope.freq_base",
    "llama.rope.freq_base": "gemma3.rope.freq_base",
    "gemma3.rope.scale": "gemma3.rope.scale_linear",
    "gemma3.rope.scaling.rope_type": "gemma3.rope.scaling.type",
    "gemma3.rope.scaling.beta_fast": "gemma3.rope.scaling.yarn_beta_fast",
    "gemma3.yarn.beta_fast": "gemma3.rope.scaling.yarn_beta_fast",
    "gemma3.rope.scaling.original_max_position_embeddings": "gemma3.rope.scaling."
    "original_context_length",
}


@pytest.mark.parametrize(("key", "near"), NAMES.items())
def test_a_key_under_a_name_that_nothing_reads(
    header: Callable[..., Header], key: str, near: str
) -> None:
    common = {
        "general.architecture": (ValueType.STRING, "gemma3"),
        "gemma3.context_length": (ValueType.UINT32, 2048),
        "gemma3.block_count": (ValueType.UINT32, 12),
        "gemma3.embedding_length": (ValueType.UINT32, 64),
        "gemma3.attention.head_count": (ValueType.UINT32, 1),
        "general.rope.note": (ValueType.STRING, "no key of a model"),
        "ggufrope.trained_context": (ValueType.UINT32, 2048),
        "tokenizer.ggml.rope": (ValueType.UINT32, 1),
        "gemma3.vision.rope.freq_base": (ValueType.FLOAT32, 100.0),
    }
    model = read_metadata(header({**common, key: (ValueType.FLOAT32, 1e6)}))
    assert [(unread.key, unread.value) for unread in model.unread] == [(key, 1e6)]
    found = one(model, "unknown-key")
    assert (found.severity, found.key) == ("warning", key)
    assert near_keys(key, "gemma3")[0] == near
    assert near in found.message


def test_an_attention_factor_acts_twice_only_where_llama_cpp_applies_it_too(
    metadata: Metadata,
) -> None:
    twice = {**YARN, "attn_factor": 1.1386}
    assert "attention-factor-twice" in codes(metadata("qwen2", **twice))
    assert "attention-factor-twice" in codes(metadata("deepseek2", **twice))
    once = {**twice, "yarn_log_multiplier": 1.0}
    assert "attention-factor-twice" not in codes(metadata("mistral3", **once))
    once["yarn_log_multiplier"] = 0.1
    assert "attention-factor-twice" not in codes(metadata("deepseek2", **once))
    assert "attention-factor-twice" not in codes(metadata("deepseek4", **twice))
    assert "attention-factor-twice" not in codes(metadata("hunyuan-moe", **twice))


def test_linear_scaling_of_latent_attention_scales_scores_too(metadata: Metadata) -> None:
    found = one(metadata("deepseek2", **LINEAR), "attention-scale-by-factor")
    assert "by 1.296 for a factor of 4" in found.message
    assert codes(metadata("deepseek2", **YARN)) == set()


def test_a_temperature_needs_its_length(metadata: Metadata) -> None:
    found = one(metadata("deepseek2", temperature_scale=0.1), "attention-temperature")
    assert found.severity == "error"
    assert "deepseek2.attention.temperature_length is None" in found.message
    assert codes(metadata("deepseek2", temperature_scale=0.1, temperature_length=8192)) == set()
    assert codes(metadata("mistral3", temperature_scale=0.1)) == set()


def test_a_long_string_under_an_unknown_name_is_cut(header: Callable[..., Header]) -> None:
    keys = {
        "general.architecture": (ValueType.STRING, "llama"),
        "llama.rope.note": (ValueType.STRING, "x" * 10_000),
    }
    (unread,) = read_metadata(header(keys)).unread
    assert unread.value == "x" * 60
