"""Schemes on scaled files, written by a patch and measured in llama.cpp.

What is measured is compared with `tests/patching/states.py`, which computes the composition with
numpy: neither our prediction nor our encoding has a part in it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.patching.inspection import inspect, read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.rope.keys import KEYS
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import compare, probe
from ggufrope.runtime.settings import ContextSettings
from tests.patching.states import CHANGES, LOADS, expected, request, threshold, trained_tokens
from tests.runtime.forward import logits

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.rope.metadata import RopeMetadata
    from ggufrope.runtime.probe import Probe

PAIRS = [
    *(
        (arch, name, "yarn")
        for arch in ("llama", "phi3")
        for name in CHANGES
        if name in LOADS[arch]
    ),
    *(("llama", name, "yarn, short kept") for name in ("unscaled", "linear", "yarn", "longrope")),
    *(("llama", name, "yarn, short kept") for name in ("none with a factor", "rope_freqs")),
    *(("phi3", name, "ntk, short kept") for name in ("linear", "yarn, attn_factor", "longrope")),
    *(("granite", name, "ntk") for name in ("linear", "yarn", "rope_freqs, linear", "longrope")),
    *(("llama", name, "linear") for name in ("linear, old key", "yarn", "longrope, factor")),
    *(("llama", name, "llama3") for name in ("rope_freqs", "linear", "yarn")),
    *(("phi3", name, "ntk-by-parts") for name in ("linear", "longrope")),
    ("llama", "yarn", "dynamic-ntk"),
    ("llama", "yarn", "none"),
    ("llama", "linear", "linear, baked"),
    ("llama", "yarn", "yarn, baked"),
    ("mistral3", "yarn", "yarn"),
    ("mistral3", "yarn", "ntk-by-parts"),
    ("qwen2", "linear", "linear"),
    ("qwen2", "linear", "ntk"),
    ("qwen2", "yarn", "yarn"),
    ("gemma3", "linear", "linear"),
    ("gemma3", "linear", "ntk"),
    ("gemma2", "yarn, attn_factor", "yarn"),
    ("gemma2", "linear, no type", "linear"),
    ("gpt-oss", "yarn", "yarn"),
]


def written(architecture: str, name: str, path: Path) -> Path:
    """Write a small model in that state."""
    fields: dict[str, Any] = dict(CHANGES[name])
    tensors = fields.pop("factor_tensors", ())
    if architecture == "mistral3":
        fields["yarn_log_multiplier"] = 1.0
    keys = {KEYS[field].suffix: value for field, value in fields.items()}
    base = keys.pop("rope.freq_base", 10000.0)
    factors = {each.name: np.array(each.values, np.float32) for each in tensors}
    return build(architecture, path, context=2048, base=base, keys=keys, factors=factors)[0]


def measured(path: Path, tokens: int) -> Probe:
    """Return what llama.cpp does in a context of that length, which is also what we predict."""
    with Model.open(path) as model:
        found = probe(model, context_tokens=tokens)
    predicted = inspect(path, context_tokens=tokens).effective
    assert predicted is not None
    assert compare(found, predicted).agrees
    return found


def global_layers(file: RopeMetadata, path: Path) -> tuple[int, ...]:
    rope = inspect(path).effective
    assert rope is not None
    return next(group.layers for group in rope.groups if group.name == "global")


def test_enough_pairs_are_measured() -> None:
    assert len(set(PAIRS)) >= 40


@pytest.mark.llama
@pytest.mark.parametrize(("architecture", "name", "scheme"), PAIRS)
def test_llama_cpp_composes(architecture: str, name: str, scheme: str, tmp_path: Path) -> None:
    path, out = written(architecture, name, tmp_path / "m.gguf"), tmp_path / "out.gguf"
    file = read_model(path).metadata
    apply(plan_patch(path, request(scheme, file), output=out))
    layers = global_layers(file, path)
    lengths = {256, 256 + (threshold(file) if "kept" in scheme or "long" in name else 0)}
    for tokens in sorted(lengths):
        wanted = expected(scheme, file, tokens)
        rows = {row.layer: row for row in measured(out, tokens).layers}
        for layer in layers:
            found = rows[layer]
            np.testing.assert_allclose(
                found.inverse_frequencies, wanted.inverse_frequencies, rtol=1e-5
            )
            if found.magnitude is not None:
                assert found.magnitude == pytest.approx(wanted.magnitude, rel=1e-5)


@pytest.mark.llama
@pytest.mark.parametrize("name", ["unscaled", "raised base", "linear", "rope_freqs", "longrope"])
def test_the_short_context_is_kept_bit_for_bit(name: str, tmp_path: Path) -> None:
    path, out = written("llama", name, tmp_path / "m.gguf"), tmp_path / "out.gguf"
    file = read_model(path).metadata
    apply(plan_patch(path, request("yarn, short kept", file), output=out))
    tokens = min(threshold(file), trained_tokens(file), 512)
    before, after = measured(path, tokens), measured(out, tokens)
    assert before.layers
    assert after.layers == before.layers


SCORES: list[tuple[str, str, str, dict[str, float]]] = [
    ("deepseek2", "yarn", "yarn", {"yarn_log_multiplier": 0.1}),
    ("deepseek2", "yarn", "yarn", {"yarn_log_multiplier": 0.0707}),
    ("deepseek2", "yarn", "none", {"yarn_log_multiplier": 0.1}),
    ("deepseek2", "unscaled", "yarn", {}),
    ("deepseek2", "unscaled", "ntk", {}),
    ("deepseek2", "raised base", "yarn", {}),
    ("mistral3", "unscaled", "ntk", {"temperature_scale": 0.5}),
    ("mistral3", "yarn", "yarn", {"temperature_scale": 0.5, "yarn_log_multiplier": 1.0}),
    ("mistral3", "linear", "yarn", {"temperature_scale": 0.5}),
    ("llama", "yarn, attn_factor", "yarn", {}),
]


@pytest.mark.llama
@pytest.mark.parametrize(("architecture", "name", "scheme", "more"), SCORES)
def test_attention_scores_are_those_of_the_composition(
    architecture: str, name: str, scheme: str, more: dict[str, float], tmp_path: Path
) -> None:
    """Logits of llama.cpp against a forward pass with frequencies, attention factor and scale that
    are computed here; the temperature stays that of the file."""
    fields = {**CHANGES[name], **more}
    keys = {KEYS[field].suffix: value for field, value in fields.items()}
    base = keys.pop("rope.freq_base", 10000.0)
    path = build(architecture, tmp_path / "m.gguf", context=64, base=base, keys=keys)[0]
    if name.startswith("yarn"):
        keys["rope.scaling.original_context_length"] = 16
        path = build(architecture, tmp_path / "m.gguf", context=64, base=base, keys=keys)[0]
    out = tmp_path / "out.gguf"
    file = read_model(path).metadata
    apply(plan_patch(path, request(scheme, file), output=out))
    before, rope = inspect(path).effective, inspect(out).effective
    assert before is not None
    assert rope is not None
    wanted = expected(scheme, file, 64)
    scale, magnitude = None, wanted.magnitude
    if architecture == "deepseek2":
        factor = (4.0 if scheme == "yarn" else 1.0) * (4.0 if name == "yarn" else 1.0)
        weight = more.get("yarn_log_multiplier", 0.1)
        scale, magnitude = (1 + weight * math.log(factor)) ** 2, 1.0
    groups = tuple(
        replace(
            group,
            inverse_frequencies=tuple(wanted.inverse_frequencies),
            magnitude=magnitude,
            attention_scale=scale,
            temperature=before.groups[0].temperature,
        )
        for group in rope.groups
    )
    tokens = [3 + (7 * step) % 250 for step in range(96)]
    cache = ContextSettings(
        n_ctx=256, type_k="f32", type_v="f32", n_threads=1, flash_attention=False
    )
    with Model.open(out) as model, Context(model, cache) as context:
        found = np.concatenate([rows.copy() for rows in context.logits(tokens)])
    positions = np.arange(len(tokens), dtype=np.float64)
    right = logits(out, replace(rope, groups=groups), tokens, positions)
    assert float(np.abs(found - right).max()) < 2e-3 * float(np.abs(right).max())
