"""The predictions of `rope`, compared with llama.cpp for every architecture of fixtures/.

Each architecture is tried plain, with linear and YaRN in the file, with YaRN as context
parameters, and with factors in both forms. Either prediction and measurement agree in every layer,
or both refuse the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fixtures.architectures import ARCHITECTURES
from fixtures.make import build
from ggufrope.errors import LoadError
from ggufrope.patching.inspection import inspect
from ggufrope.rope.architectures import VARIABLE, current_table, use_table
from ggufrope.rope.effective import RopeOverrides
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import compare, probe

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_beta_fast": 16.0,
    "rope.scaling.yarn_beta_slow": 2.0,
    "rope.scaling.attn_factor": 0.9,
}
LONGROPE = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64}


@dataclass(frozen=True, kw_only=True)
class Case:
    keys: Mapping[str, Any] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    overrides: RopeOverrides | None = None


CASES = {
    "plain": Case(),
    "linear": Case(keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "yarn": Case(keys=YARN),
    "yarn by flags": Case(
        overrides=RopeOverrides(
            scaling_type="yarn",
            freq_scale=0.25,
            yarn_orig_ctx=64,
            yarn_beta_fast=8.0,
            yarn_beta_slow=2.0,
        )
    ),
    "factors": Case(keys={"rope.scaling.factor": 2.0}, factors={"rope_freqs.weight": 6}),
    "long and short": Case(
        keys=LONGROPE, factors={"rope_factors_long.weight": 6, "rope_factors_short.weight": 2}
    ),
}


@pytest.mark.parametrize("case", ["plain", "linear", "yarn", "yarn by flags", "factors"])
def test_the_rules_that_all_share_agree_too(case: str, tmp_path: Path) -> None:
    """llama.cpp knows the architecture, and the table does not."""
    made = CASES[case]
    plain = json.loads(current_table().path.read_text("utf-8"))
    del plain["architectures"]["llama"]
    (tmp_path / "table.json").write_text(json.dumps(plain), "utf-8")
    factors = {name: np.linspace(1, most, 16) for name, most in made.factors.items()}
    (path,) = build("llama", tmp_path / "tiny.gguf", keys=made.keys, factors=factors)
    before = os.environ.get(VARIABLE)
    use_table(tmp_path / "table.json")
    try:
        predicted = inspect(path, overrides=made.overrides)
        with Model.open(path) as model:
            measured = probe(model, rope=made.overrides)
    finally:
        use_table(before)
    assert predicted.effective is not None
    assert predicted.effective.rope_type == "unknown"
    assert compare(measured, predicted.effective).agrees


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prediction_agrees_with_the_measurement(
    architecture: str, case: Case, tmp_path: Path
) -> None:
    pairs = 8 if ARCHITECTURES[architecture].partial_rotary else 16
    (path,) = build(
        architecture,
        tmp_path / "tiny.gguf",
        base=20000.0,
        keys=case.keys,
        factors={n: np.linspace(1, most, pairs) for n, most in case.factors.items()},
    )
    predicted = inspect(path, overrides=case.overrides)
    if predicted.effective is None:
        with pytest.raises(LoadError, match="wrong number of tensors"):
            Model.open(path)
        return
    with Model.open(path) as model:
        agreement = compare(probe(model, rope=case.overrides), predicted.effective)
    assert agreement.agrees, agreement
    assert agreement.largest_relative_error < 1e-5
