"""Exported sections of a config.json, against transformers' own classes and rotary modules.

`exports.json` holds what transformers made of each; `make_export_goldens.py` writes it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ggufrope.patching.exporting import wanted_scaling
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.effective import EffectiveRope
from ggufrope.rope.export_config import NESTED
from ggufrope.rope.llamacpp import effective

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "exports.json").read_text())["cases"]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_export_goldens", GOLDEN / "make_export_goldens.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = script()


def predicted(case: dict[str, Any]) -> EffectiveRope:
    """What llama.cpp does with the model, patched where a scaling is requested."""
    metadata = MAKER.metadata_of(case)
    if case["request"] is None:
        return effective(metadata)
    request = ScalingRequest(**MAKER.with_tuples(case["request"]))
    wanted = wanted_scaling(request, metadata, Path("model.gguf"))
    return effective(wanted.metadata, overrides=wanted.overrides)


def check(case: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Compare transformers' rotation with the prediction, for every layer that rotates."""
    compared = 0
    for group in predicted(case).groups:
        if not group.inverse_frequencies:
            continue
        labels = NESTED.get(case["architecture"], {})
        found = results.get(labels.get(group.name, "")) or results[""]
        assert 2 * len(found["inverse_frequencies"]) == group.n_rot
        np.testing.assert_allclose(
            found["inverse_frequencies"], group.inverse_frequencies, rtol=2e-6, atol=1e-25
        )
        assert found["magnitude"] == pytest.approx(group.magnitude, rel=1e-6)
        compared += 1
    assert compared > 0


def test_every_case_is_stored() -> None:
    assert json.loads(json.dumps(MAKER.cases())).keys() == CASES.keys()
    assert len(CASES) > 30


@pytest.mark.parametrize("name", CASES)
def test_the_export_is_the_one_that_transformers_was_given(name: str) -> None:
    assert MAKER.exported(CASES[name]) == CASES[name]["exported"]


@pytest.mark.parametrize("name", CASES)
def test_transformers_rotates_as_predicted(name: str) -> None:
    check(CASES[name], CASES[name]["results"])


@pytest.mark.parametrize("name", CASES)
def test_the_installed_transformers_rotates_as_predicted(name: str) -> None:
    pytest.importorskip("transformers", reason="the oracle of exported configs")
    pytest.importorskip("torch", reason="the oracle of exported configs")
    case = CASES[name]
    check(case, MAKER.computed(case, MAKER.exported(case)))


def test_sections_are_complete() -> None:
    """What a section leaves out is lost in the config that takes it."""
    section = CASES["qwen3.5 yarn"]["exported"]["text_config"]["rope_parameters"]
    assert section["mrope_section"] == [11, 11, 10]
    assert section["mrope_interleaved"] is True
    assert section["partial_rotary_factor"] == 0.25
    section = CASES["gemma3 4b"]["exported"]["text_config"]["rope_parameters"]
    assert section == {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    }
    section = CASES["ministral 3"]["exported"]["text_config"]["rope_parameters"]
    assert section["llama_4_scaling_beta"] == 0.1
    assert section["original_max_position_embeddings"] == 16384
    section = CASES["deepseek"]["exported"]["rope_parameters"]
    assert (section["mscale"], section["mscale_all_dim"]) == (1.0, 1.0)
    assert CASES["glm4 yarn"]["exported"]["rope_parameters"]["partial_rotary_factor"] == 0.5
