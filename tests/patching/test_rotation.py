"""Context parameters that rotate exactly as the written scheme would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.patching.inspection import inspect, read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest, resolve
from ggufrope.patching.rotation import exact_overrides

CONTEXT = 2048


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build("llama", tmp_path / "llama.gguf", context=512)[0]


@pytest.mark.parametrize("scheme", ["none", "linear", "ntk", "yarn"])
def test_context_parameters_equal_the_patch(llama: Path, tmp_path: Path, scheme: str) -> None:
    request = ScalingRequest(scaling=scheme, target_context=CONTEXT)  # type: ignore[arg-type]
    metadata = read_model(llama).metadata
    overrides = exact_overrides(resolve(request, metadata), metadata, context_tokens=CONTEXT)
    assert overrides is not None
    tried = inspect(llama, context_tokens=CONTEXT, overrides=overrides).effective
    out = tmp_path / "out.gguf"
    apply(plan_patch(llama, request, output=out))
    written = inspect(out, context_tokens=CONTEXT).effective
    assert tried is not None
    assert written is not None
    for one, other in zip(tried.groups, written.groups, strict=True):
        np.testing.assert_allclose(one.inverse_frequencies, other.inverse_frequencies, rtol=1e-6)
        assert one.magnitude == pytest.approx(other.magnitude, rel=1e-6)


def test_betas_that_a_file_cannot_say_are_tried_all_the_same(llama: Path) -> None:
    metadata = read_model(llama).metadata
    request = ScalingRequest(scaling="yarn", target_context=CONTEXT, beta_fast=8)
    overrides = exact_overrides(resolve(request, metadata), metadata, context_tokens=CONTEXT)
    assert overrides is not None
    assert overrides.yarn_beta_fast == 8


@pytest.mark.parametrize(
    "scaling",
    [
        ScalingRequest(scaling="yarn", target_context=CONTEXT, attn_factor=1.5),
        ScalingRequest(scaling="ntk-by-parts", target_context=CONTEXT),
        ScalingRequest(scaling="llama3", target_context=CONTEXT),
        ScalingRequest(scaling="factors", factor=4, long_factors=(2.0,) * 16),
    ],
    ids=lambda scaling: scaling.scaling,
)
def test_what_context_parameters_cannot_say(llama: Path, scaling: ScalingRequest) -> None:
    metadata = read_model(llama).metadata
    assert exact_overrides(resolve(scaling, metadata), metadata, context_tokens=CONTEXT) is None


def test_a_magnitude_in_the_file_shows_through_every_parameter(tmp_path: Path) -> None:
    settings = {"rope.scaling.type": "yarn", "rope.scaling.attn_factor": 1.3}
    path = build("llama", tmp_path / "m.gguf", context=512, keys=settings)[0]
    metadata = read_model(path).metadata
    target = resolve(ScalingRequest(scaling="none"), metadata)
    assert exact_overrides(target, metadata, context_tokens=512) is None


def test_dynamic_ntk_follows_the_context(llama: Path) -> None:
    metadata = read_model(llama).metadata
    target = resolve(ScalingRequest(scaling="dynamic-ntk", target_context=CONTEXT), metadata)
    short = exact_overrides(target, metadata, context_tokens=512)
    long = exact_overrides(target, metadata, context_tokens=CONTEXT)
    assert short is not None
    assert long is not None
    assert short.freq_base == pytest.approx(10000)
    assert long.freq_base is not None
    assert long.freq_base > 10 * 10000
