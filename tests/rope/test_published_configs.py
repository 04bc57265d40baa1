"""The RoPE sections of published models, as their config.json or params.json has them.

tests/golden/published_configs.json has each with what it means: the scheme and its parameters, the
base, the context it reaches, the rotary dimensions, and the base of sliding-window layers where
they have one of their own. Factor arrays are shortened: their values belong to their authors, and
say nothing here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ggufrope.rope import scaling as schemes
from ggufrope.rope.frequencies import yarn_magnitude
from ggufrope.rope.huggingface import from_config
from ggufrope.rope.scaling import RopeScaling, Unscaled, Yarn

PUBLISHED = Path(__file__).parents[1] / "golden" / "published_configs.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A published section, and what it means."""

    model: str
    config: dict[str, Any]
    scaling: tuple[str, dict[str, Any]]
    base: float | None
    context: int | None
    n_rot: int | None
    window: float | None

    def scheme(self) -> RopeScaling:
        name, fields = self.scaling
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        found: RopeScaling = getattr(schemes, name)(**values)
        return found


CASES = [Case(**row) for row in json.loads(PUBLISHED.read_text("utf-8"))]


@pytest.mark.parametrize("published", CASES, ids=lambda item: item.model)
def test_a_published_config_means_this(published: Case) -> None:
    found = from_config(published.config)
    assert found.scaling == published.scheme()
    assert (found.base, found.context_length) == (published.base, published.context)
    assert found.n_rot == published.n_rot
    window = None if found.sliding is None else found.sliding.base
    assert window == published.window
    if found.sliding is not None:
        assert found.sliding.scaling == Unscaled()


def test_all_are_there() -> None:
    assert len(CASES) == 48
    assert len({published.model for published in CASES}) == 48


def test_the_attention_factor_of_mistral_large_is_one() -> None:
    found = [item for item in CASES if "params.json" in item.model]
    assert len(found) == 1
    scaling = from_config(found[0].config).scaling
    assert isinstance(scaling, Yarn)
    assert yarn_magnitude(scaling) == 1.0


def test_compressed_layers_have_a_base_of_their_own() -> None:
    found = [item for item in CASES if "compress_rope_theta" in item.config]
    assert len(found) == 1
    rope = from_config(found[0].config)
    assert rope.compress_base == 160000.0
    layers = rope.layers
    assert set(layers) == {"main", "compress"}
    assert layers["main"] is not None
    assert layers["main"].scaling == Unscaled()


def test_a_model_without_rotation() -> None:
    found = [item for item in CASES if "position_embedding_type" in item.config]
    assert len(found) == 1
    assert not from_config(found[0].config).rotates


def test_class_defaults_are_marked_as_assumed() -> None:
    found = [item for item in CASES if item.config.get("model_type") == "gemma3"]
    assert len(found) == 1
    rope = from_config(found[0].config)
    assert {"base", "head_size", "n_rot", "context_length"} <= rope.assumed
    assert "scaling" not in rope.assumed
    assert (rope.base, rope.head_size) == (1e6, 256)
