"""Configs of transformers' text models: what we read is what its own rotary modules do.

The goldens have a few forms of each config class. Where transformers is installed, all forms are
made and compared, every frequency of them; the script's `cases` makes them.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ggufrope.errors import RequestError
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.huggingface import from_config

FOLDER = Path(__file__).parents[1] / "golden"
GOLDENS = json.loads((FOLDER / "configs.json").read_text("utf-8"))
TOLERANCE = 2e-5
"""transformers computes in float32."""


def differences(case: Mapping[str, Any]) -> list[str] | None:
    """Return what differs in a case, None where the config is refused or names no dimensions."""
    try:
        found = from_config(case["config"])
        read = {name: rope for name, rope in found.layers.items() if rope is not None}
        computed = {
            name: frequencies(rope.scaling, n_rot=rope.n_rot or 0, base=rope.base or 0.0)
            for name, rope in read.items()
        }
    except RequestError:
        return None
    wrong = [] if found.declared_context == case["context"] else ["context"]
    for name, wanted in case["layers"].items():
        if name not in computed:
            wrong.append(f"no layers {name!r}")
            continue
        numbers = sorted(computed[name].inverse_frequencies, reverse=True)
        if len(numbers) != wanted["pairs"]:
            wrong.append(f"{name}: {len(numbers)} pairs, wanted {wanted['pairs']}")
            continue
        pairs = [
            (numbers[int(pair)], theta) for pair, theta in wanted["inverse_frequencies"].items()
        ]
        if not all(math.isclose(ours, theta, rel_tol=TOLERANCE) for ours, theta in pairs):
            wrong.append(f"{name}: frequencies {pairs[:4]}")
        if not math.isclose(computed[name].magnitude, wanted["magnitude"], rel_tol=TOLERANCE):
            wrong.append(f"{name}: {computed[name].magnitude}, wanted {wanted['magnitude']}")
    return wrong


def compare(cases: Iterable[Mapping[str, Any]]) -> tuple[int, int, dict[str, list[str]]]:
    """Return how many cases agree, how many are refused, and what differs."""
    agreed, refused, wrong = 0, 0, {}
    for case in cases:
        found = differences(case)
        if found is None:
            refused += 1
        elif found:
            wrong[case["name"]] = found
        else:
            agreed += 1
    return agreed, refused, wrong


def test_the_goldens_agree() -> None:
    agreed, refused, wrong = compare(GOLDENS["cases"])
    assert not wrong
    assert agreed > 500
    assert refused < 40


def test_the_goldens_have_all_kinds() -> None:
    names = [case["name"] for case in GOLDENS["cases"]]
    models = {name.split()[0] for name in names}
    assert len(models) > 180
    for kind in ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional", "nested"):
        assert sum(kind in name for name in names) >= 10, kind


def test_all_forms_of_all_text_models_agree() -> None:
    pytest.importorskip("transformers", reason="the oracle of configs is not installed")
    pytest.importorskip("torch", reason="the oracle of configs is not installed")
    spec = importlib.util.spec_from_file_location("oracle", FOLDER / "make_config_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)

    def whole(case: dict[str, Any]) -> dict[str, Any]:
        for layer in case["layers"].values():
            numbers = layer["inverse_frequencies"]
            layer |= {"pairs": len(numbers), "inverse_frequencies": dict(enumerate(numbers))}
        return case

    agreed, refused, wrong = compare(whole(case) for case in oracle.cases())
    assert not wrong
    assert agreed > 3000
    assert refused < 250
