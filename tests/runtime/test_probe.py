"""The measured rotation, compared with formulas that are written here independently."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.make import build
from ggufrope.rope.effective import EffectiveRope, LayerGroup, RopeOverrides
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import Probe, compare, probe

if TYPE_CHECKING:
    from pathlib import Path

Array: TypeAlias = NDArray[np.float64]
BASE, CLOSE, ROTARY = 50000.0, 1e-4, 32


def plain(n_rot: int, base: float = BASE) -> Array:
    return np.power(base, -2 * np.arange(n_rot // 2) / n_rot)


def yarn(theta: Array, base: float, s: float, original: int, fast: float, slow: float) -> Array:
    """YaRN as llama.cpp has it: bands by pair index, rounded outward."""
    n_rot = 2 * len(theta)

    def pair_turning(turns: float) -> float:
        return n_rot * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    first = max(0.0, np.floor(pair_turning(fast)))
    last = min(n_rot - 1.0, np.ceil(pair_turning(slow)))
    ramp: Array = np.clip((np.arange(len(theta)) - first) / max(0.001, last - first), 0, 1)
    return theta / s * ramp + theta * (1 - ramp)


def assert_measures(
    measured: Probe, layers: list[int], frequencies: Array, magnitude: float
) -> None:
    found = {layer.layer: layer for layer in measured.layers}
    assert layers
    for layer in layers:
        np.testing.assert_allclose(found[layer].inverse_frequencies, frequencies, rtol=CLOSE)
        assert found[layer].magnitude == pytest.approx(magnitude, rel=CLOSE)


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "stablelm"])
def test_linear_and_yarn_in_every_layer(architecture: str, tmp_path: Path) -> None:
    (path,) = build(architecture, tmp_path / "tiny.gguf", base=BASE, rotary=ROTARY)
    theta = plain(ROTARY)
    with Model.open(path) as model:
        assert_measures(probe(model), [0, 1], theta, 1.0)
        linear = probe(model, rope=RopeOverrides(scaling_type="linear", freq_scale=0.25))
        assert_measures(linear, [0, 1], theta / 4, 1.0)
        overrides = RopeOverrides(scaling_type="yarn", freq_scale=0.125, yarn_orig_ctx=256)
        expected = yarn(theta, BASE, 8, 256, 32, 1)
        assert_measures(probe(model, rope=overrides), [0, 1], expected, 1 + 0.1 * np.log(8))


@pytest.mark.llama
def test_sliding_layers_keep_their_own_base(tmp_path: Path) -> None:
    (path,) = build("gemma3", tmp_path / "tiny.gguf", base=BASE)
    rope = RopeOverrides(scaling_type="linear", freq_scale=0.25)
    with Model.open(path) as model:
        measured = probe(model, rope=rope)
    assert_measures(measured, list(range(5)), plain(32, 10000.0), 1.0)
    assert_measures(measured, [5], plain(32) / 4, 1.0)


@pytest.mark.llama
def test_layers_that_do_not_rotate_have_no_frequencies(tmp_path: Path) -> None:
    (path,) = build("cohere2", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        widths = [len(layer.inverse_frequencies) for layer in probe(model).layers]
    assert widths == [16, 16, 16, 0]


@pytest.mark.llama
def test_a_magnitude_that_depends_on_earlier_layers_is_none(tmp_path: Path) -> None:
    """With attention sinks the weight of a token depends on the norm of its key."""
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    (path,) = build("gpt-oss", tmp_path / "tiny.gguf", base=BASE, keys=keys)
    with Model.open(path) as model:
        measured = probe(model)
    first, second = measured.layers
    assert first.magnitude == pytest.approx(1 + 0.1 * np.log(4), rel=CLOSE)
    assert second.magnitude is None
    assert measured.notes == ("layer 1: its keys depend on the magnitude in the layers before",)


@pytest.mark.llama
def test_the_files_own_yarn_and_attention_factor(tmp_path: Path) -> None:
    (path,) = build(
        "llama",
        tmp_path / "tiny.gguf",
        base=BASE,
        keys={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": 0.7,
        },
    )
    expected = yarn(plain(32), BASE, 4, 128, 32, 1)
    with Model.open(path) as model:
        assert_measures(probe(model), [0, 1], expected, 0.7 * (1 + 0.1 * np.log(4)))
    with Model.open(path, kv_overrides={"llama.rope.scaling.attn_factor": 1.3}) as model:
        assert_measures(probe(model), [0, 1], expected, 1.3 * (1 + 0.1 * np.log(4)))


@pytest.mark.llama
def test_betas_given_as_overrides_take_effect(tmp_path: Path) -> None:
    (path,) = build("qwen2", tmp_path / "tiny.gguf", base=BASE)
    rope = RopeOverrides(
        scaling_type="yarn",
        freq_scale=0.25,
        yarn_orig_ctx=256,
        yarn_beta_fast=8.0,
        yarn_beta_slow=2.0,
    )
    with Model.open(path) as model:
        expected = yarn(plain(32), BASE, 4, 256, 8, 2)
        assert_measures(probe(model, rope=rope), [0, 1], expected, 1 + 0.1 * np.log(4))


@pytest.mark.llama
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "longrope"), ("phi3", "linear")])
def test_long_and_short_factors_by_the_length_of_the_context(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    long = np.linspace(1, 8, 16, dtype=np.float32)
    short = np.linspace(1, 1.5, 16, dtype=np.float32)
    (path,) = build(
        architecture,
        tmp_path / "tiny.gguf",
        base=BASE,
        keys={
            "rope.scaling.type": kind,
            "rope.scaling.original_context_length": 512,
        },
        factors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )
    theta = plain(32)
    with Model.open(path) as model:
        assert_measures(probe(model, context_tokens=512), [0, 1], theta / short, 1.0)
        assert_measures(probe(model, context_tokens=513), [0, 1], theta / long, 1.0)
        assert_measures(probe(model, context_tokens=100_000), [0, 1], theta / long, 1.0)


@pytest.mark.llama
def test_one_set_of_factors_under_linear_scaling(tmp_path: Path) -> None:
    factors = np.linspace(1, 4, 16, dtype=np.float32)
    (path,) = build(
        "llama",
        tmp_path / "tiny.gguf",
        base=BASE,
        keys={"rope.scaling.factor": 2.0},
        factors={"rope_freqs.weight": factors},
    )
    with Model.open(path) as model:
        assert_measures(probe(model), [0, 1], plain(32) / factors / 2, 1.0)


@pytest.mark.llama
def test_frequencies_far_below_one_turn_in_the_context(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf", base=5e6)
    rope = RopeOverrides(scaling_type="linear", freq_scale=1 / 32)
    with Model.open(path) as model:
        assert_measures(probe(model, rope=rope), [0, 1], plain(32, 5e6) / 32, 1.0)


@pytest.mark.llama
def test_smollm2_under_yarn(smollm2: Path) -> None:
    rope = RopeOverrides(scaling_type="yarn", freq_scale=0.5)
    with Model.open(smollm2) as model:
        measured = probe(model, rope=rope)
    expected = yarn(plain(64, 100000.0), 100000.0, 2, 8192, 32, 1)
    assert_measures(measured, list(range(30)), expected, 1 + 0.1 * np.log(2))
    assert (measured.pairs, measured.notes) == ("norm", ())


def predicted(frequencies: Array, magnitude: float) -> EffectiveRope:
    group = LayerGroup(
        name="global",
        layers=(0, 1),
        inverse_frequencies=tuple(frequencies.tolist()),
        magnitude=magnitude,
    )
    return EffectiveRope(rope_type="norm", context_tokens=512, groups=(group,), values={})


@pytest.mark.llama
def test_a_measurement_is_compared_with_a_prediction(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf", base=BASE)
    theta = plain(32)
    with Model.open(path) as model:
        measured = probe(model)
    assert compare(measured, predicted(theta, 1.0)).agrees
    off = compare(measured, predicted(theta * np.where(np.arange(16) == 9, 1.01, 1), 1.0))
    assert not off.agrees
    assert off.largest_relative_error == pytest.approx(0.0099, rel=0.01)
    assert not compare(measured, predicted(theta, 1.1)).agrees
    assert not compare(measured, predicted(theta[:8], 1.0)).agrees


@pytest.mark.llama
def test_compressed_keys_rotate_in_their_last_values(tmp_path: Path) -> None:
    (path,) = build("deepseek2", tmp_path / "tiny.gguf", base=BASE)
    overrides = RopeOverrides(scaling_type="yarn", freq_scale=0.125, yarn_orig_ctx=256)
    with Model.open(path) as model:
        assert_measures(probe(model), [0, 1], plain(32), 1.0)
        expected = yarn(plain(32), BASE, 8, 256, 32, 1)
        measured = probe(model, rope=overrides)
        assert_measures(measured, [0, 1], expected, 1 + 0.1 * np.log(8))


def test_a_state_space_model_has_nothing_to_measure() -> None:
    nothing = Probe(pairs="norm", context_tokens=512, layers=(), notes=())
    assert not compare(nothing, predicted(plain(32), 1.0)).agrees


@pytest.mark.llama
@pytest.mark.parametrize("factor", [0.125, 0.3, 0.5])
def test_turns_of_more_than_half_a_circle_are_compared_modulo_a_circle(
    factor: float, tmp_path: Path
) -> None:
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    (path,) = build("llama", tmp_path / "tiny.gguf", base=BASE, keys=keys)
    with Model.open(path) as model:
        measured = probe(model)
    assert compare(measured, predicted(plain(32) / factor, 1.0)).agrees
    assert not compare(measured, predicted(plain(32) / factor * 1.01, 1.0)).agrees
