from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ggufrope.container.types import Header, ValueType
from ggufrope.rope.architectures import architectures
from ggufrope.rope.encode import express
from ggufrope.rope.lint import lint
from ggufrope.rope.metadata import RopeMetadata, read_metadata
from ggufrope.rope.scaling import Linear, NtkAware, RopeScaling, Yarn

if TYPE_CHECKING:
    from ggufrope.rope.encode import Expression

Metadata = Callable[..., RopeMetadata]
YARN: dict[str, Any] = {
    "scaling_type": "yarn",
    "factor": 4.0,
    "original_context": 2048,
    "context_length": 8192,
}
LONG, SHORT, FREQS = (f"rope_{name}.weight" for name in ("factors_long", "factors_short", "freqs"))
ONES = np.ones(32)


@pytest.mark.parametrize(
    ("name", "fields", "code", "severity"),
    [
        ("spline", {}, "unknown-architecture", "warning"),
        ("llama", {"freq_base": -1.0}, "bad-number", "error"),
        ("llama", {"factor": math.nan}, "bad-number", "error"),
        ("llama", {"attn_factor": 0.0}, "bad-number", "error"),
        ("llama", {"dimension_count": 32}, "rotary-dimensions", "error"),
        ("qwen2", {"dimension_count": 31}, "rotary-dimensions", "error"),
        ("llama", {"context_length": None}, "no-context-length", "error"),
        ("llama", {**YARN, "original_context": 0}, "original-context-zero", "warning"),
        ("llama", {**YARN, "original_context": 8192}, "original-not-below-context", "warning"),
        ("llama", {"scaling_type": "ntk"}, "unknown-scaling-type", "error"),
        ("llama", {**YARN, "scale_linear": 2.0}, "scale-linear-beside-factor", "warning"),
        ("llama", {"scaling_type": "none", "factor": 2.0}, "factor-without-scaling", "warning"),
        ("llama", {**YARN, "factor": None}, "yarn-without-factor", "warning"),
        ("llama", {**YARN, "original_context": None}, "yarn-without-original-context", "warning"),
        (
            "llama",
            {"scaling_type": "longrope", "factor": 4.0, "factors": {LONG: ONES, SHORT: ONES}},
            "longrope-with-factor",
            "warning",
        ),
        ("llama", {"factor": 2.0}, "implicit-linear", "info"),
        ("qwen2", {**YARN, "yarn_beta_fast": 16.0}, "dead-key", "warning"),
        ("qwen2", {"yarn_log_multiplier": 1.0}, "dead-key", "info"),
        ("qwen2", {"freq_base_swa": 1e4}, "dead-key", "info"),
        ("qwen2", {"factors": {FREQS: ONES}}, "refused-factor-tensor", "error"),
        ("llama", {"factors": {LONG: ONES}}, "refused-factor-tensor", "error"),
        ("llama", {"factors": {FREQS: np.ones(31)}}, "factor-length", "error"),
        ("llama", {"factors": {FREQS: np.zeros(32)}}, "factor-value", "error"),
        ("llama", {"factors": {FREQS: np.linspace(2, 1, 32)}}, "factor-descent", "warning"),
        ("falcon-h1", {"factors": {FREQS: ONES}}, "unused-factor-tensor", "warning"),
        ("phi3", {"factors": {LONG: ONES}}, "lone-factors", "warning"),
        ("llama", {"factors": {FREQS: ONES, LONG: ONES}}, "shadowed-factors", "warning"),
        ("llama", {"scaling_type": "longrope"}, "longrope-without-factors", "warning"),
        (
            "llama",
            {"context_length": 8192, "original_context": 2048},
            "context-raised-without-scaling",
            "warning",
        ),
        ("llama", {**YARN, "factor": 2.0}, "factor-below-context", "warning"),
        (
            "gemma3",
            {"block_count": 12, "sliding_window": 512, "scaling_type": "linear", "factor": 8.0},
            "scaling-mostly-inert",
            "info",
        ),
        ("llama", {**YARN, "attn_factor": 1.1386}, "attention-factor-twice", "warning"),
    ],
)
def test_each_finding(
    metadata: Metadata, name: str, fields: dict[str, Any], code: str, severity: str
) -> None:
    found = {(finding.code, finding.severity) for finding in lint(metadata(name, **fields))}
    assert (code, severity) in found


def test_all_are_reported_together_errors_first(metadata: Metadata) -> None:
    model = metadata(
        "qwen2", **{**YARN, "original_context": 9000}, yarn_beta_fast=16.0, scale_linear=2.0,
        factors={FREQS: ONES},
    )  # fmt: skip
    found = lint(model)
    assert {finding.code for finding in found} == {
        "refused-factor-tensor",
        "original-not-below-context",
        "dead-key",
        "scale-linear-beside-factor",
    }
    assert found[0].severity == "error"
    assert all("\n" not in finding.message and finding.key for finding in found)


def test_a_wrong_type_is_an_error(header: Callable[..., Header]) -> None:
    kinds = {
        "general.architecture": (ValueType.STRING, "qwen2"),
        "qwen2.context_length": (ValueType.UINT64, 2048),
        "qwen2.block_count": (ValueType.UINT32, 2),
        "qwen2.embedding_length": (ValueType.UINT32, 64),
        "qwen2.attention.head_count": (ValueType.UINT32, 1),
    }
    (found,) = lint(read_metadata(header(kinds)))
    assert (found.code, found.key) == ("wrong-type", "qwen2.context_length")
    assert "stored as uint64: llama.cpp reads uint32" in found.message


def test_dead_keys_advise_baking_only_where_it_works(metadata: Metadata) -> None:
    for name, baking in (("llama", True), ("qwen2", False)):
        (found,) = lint(metadata(name, **YARN, yarn_beta_fast=16.0))
        assert "--yarn-beta-fast 16 at run time" in found.message
        assert ("bake" in found.message) == baking


@pytest.mark.parametrize("name", sorted(architectures()))
def test_an_ordinary_model_is_clean(metadata: Metadata, name: str) -> None:
    assert lint(metadata(name)) == ()


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral3", "phi3", "granite"])
@pytest.mark.parametrize(
    "scaling",
    [
        Linear(factor=4.0),
        NtkAware(factor=4.0),
        Yarn(factor=4.0, original_context=2048, beta_fast=16.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_what_we_write_is_clean(
    metadata: Metadata,
    applied: Callable[[Expression, RopeMetadata], RopeMetadata],
    name: str,
    scaling: RopeScaling,
) -> None:
    before = metadata(name, yarn_beta_fast=8.0, scale_linear=3.0)
    after = applied(express(scaling, before, context_length=8192), before)
    assert lint(after) == ()


def test_factors_shorter_than_the_windows_that_use_them(metadata: Metadata) -> None:
    """ggml_rope_ext asserts that each pair has a factor."""
    model = metadata(
        "exaone-moe", sliding_window=512, dimension_count_swa=128, factors={FREQS: ONES}
    )
    (found,) = lint(model)
    assert (found.code, found.severity) == ("factor-length", "error")
    assert "rotate 64 pairs: llama.cpp aborts" in found.message
