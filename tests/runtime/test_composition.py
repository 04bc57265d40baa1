"""Schemes on scaled files, written by a patch and measured in llama.cpp.

What is measured is compared with `tests/patching/states.py`, which computes the composition with
numpy: neither our prediction nor our encoding has a part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.patching.inspection import inspect, read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.rope.keys import KEYS
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import compare, probe
from tests.patching.states import CHANGES, LOADS, expected, request, threshold, trained_tokens

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


@pytest.mark.parametrize("name", ["unscaled", "raised base", "linear", "rope_freqs", "longrope"])
def test_the_short_context_is_kept_bit_for_bit(name: str, tmp_path: Path) -> None:
    path, out = written("llama", name, tmp_path / "m.gguf"), tmp_path / "out.gguf"
    file = read_model(path).metadata
    apply(plan_patch(path, request("yarn, short kept", file), output=out))
    tokens = min(threshold(file), trained_tokens(file), 512)
    before, after = measured(path, tokens), measured(out, tokens)
    assert before.layers
    assert after.layers == before.layers
