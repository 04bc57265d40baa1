"""Predicted attention, against the logits of llama.cpp: scales, temperatures, attention factors.

The K cache does not show what multiplies attention scores. So a forward pass in numpy
(`forward.py`) applies the prediction, and its logits have to be those of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.patching.inspection import inspect
from ggufrope.runtime.batch import decode, output_logits
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from tests.runtime.forward import logits

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [3 + (7 * step) % 250 for step in range(96)]
YARN: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 32,
}
LINEAR: dict[str, Any] = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
MULTIPLIER = {"rope.scaling.yarn_log_multiplier": 0.1}
TEMPERATURE = {"attention.temperature_scale": 0.5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "latent, plain": ("deepseek2", {}),
    "latent, linear": ("deepseek2", LINEAR),
    "latent, linear and multiplier": ("deepseek2", {**LINEAR, **MULTIPLIER}),
    "latent, attn_factor": ("deepseek2", {"rope.scaling.attn_factor": 1.3}),
    "latent, yarn": ("deepseek2", YARN),
    "latent, yarn and multiplier": ("deepseek2", {**YARN, **MULTIPLIER}),
    "latent, yarn and another multiplier": (
        "deepseek2",
        {**YARN, "rope.scaling.yarn_log_multiplier": 0.0707},
    ),
    "latent, none and multiplier": (
        "deepseek2",
        {**YARN, **MULTIPLIER, "rope.scaling.type": "none"},
    ),
    "latent, temperature": (
        "deepseek2",
        {**YARN, **MULTIPLIER, **TEMPERATURE, "attention.temperature_length": 24},
    ),
    "mistral3, temperature over the context": ("mistral3", {**TEMPERATURE, "context_length": 40}),
    "mistral3, temperature over the original": (
        "mistral3",
        {**YARN, **TEMPERATURE, "rope.scaling.yarn_log_multiplier": 1.0},
    ),
    "llama, yarn and attn_factor": ("llama", {**YARN, "rope.scaling.attn_factor": 0.8}),
}


@pytest.mark.llama
@pytest.mark.parametrize(("architecture", "keys"), CASES.values(), ids=CASES)
def test_the_predicted_attention_gives_the_logits_of_llama_cpp(
    architecture: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    (path,) = build(architecture, tmp_path / "tiny.gguf", keys=keys)
    rope = inspect(path).effective
    assert rope is not None
    settings = ContextSettings(
        n_ctx=256, type_k="f32", type_v="f32", n_threads=1, flash_attention=False
    )
    with Model.open(path) as model, Context(model, settings) as context:
        found = np.concatenate([rows.copy() for rows in context.logits(TOKENS)])
    wanted = logits(path, rope, TOKENS, np.arange(len(TOKENS), dtype=np.float64))
    spread = float(np.abs(wanted).max())
    assert float(np.abs(found - wanted).max()) < 2e-3 * spread


@pytest.mark.llama
@pytest.mark.parametrize("start", [0, 8180, 16500])
def test_llama4_warms_the_layers_that_do_not_rotate(start: int, tmp_path: Path) -> None:
    (path,) = build("llama4", tmp_path / "tiny.gguf", keys=YARN)
    rope = inspect(path).effective
    assert rope is not None
    assert [group.temperature is None for group in rope.groups] == [True, False]
    positions = start + np.arange(len(TOKENS))
    if start == 8180:
        positions = positions[:12]  # 8191 is the first warm one, and the last of its chunk
    tokens = TOKENS[: len(positions)]
    settings = ContextSettings(
        n_ctx=256, type_k="f32", type_v="f32", n_threads=1, flash_attention=False
    )
    with Model.open(path) as model, Context(model, settings) as context:
        decode(
            context.handle,
            np.array(tokens, dtype=np.int32),
            positions.astype(np.int32),
            [(0,)] * len(tokens),
            np.ones(len(tokens), dtype=np.int8),
        )
        found = output_logits(context.handle, len(tokens), model.n_vocab).copy()
    wanted = logits(path, rope, tokens, positions.astype(np.float64))
    assert float(np.abs(found - wanted).max()) < 2e-3 * float(np.abs(wanted).max())
    cold = tuple(replace(group, temperature=None) for group in rope.groups)
    without = logits(path, replace(rope, groups=cold), tokens, positions.astype(np.float64))
    assert bool(np.allclose(wanted, without)) == (start == 0)


def test_another_scale_or_temperature_would_be_seen(tmp_path: Path) -> None:
    keys = {**YARN, **MULTIPLIER, **TEMPERATURE, "attention.temperature_length": 24}
    (path,) = build("deepseek2", tmp_path / "tiny.gguf", keys=keys)
    rope = inspect(path).effective
    assert rope is not None
    positions = np.arange(len(TOKENS), dtype=np.float64)
    right = logits(path, rope, TOKENS, positions)
    for groups in (
        tuple(replace(group, attention_scale=None) for group in rope.groups),
        tuple(replace(group, temperature=None) for group in rope.groups),
    ):
        wrong = logits(path, replace(rope, groups=groups), TOKENS, positions)
        assert float(np.abs(right - wrong).max()) > 0.02 * float(np.abs(right).max())
