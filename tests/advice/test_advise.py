from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ggufrope.advice.advise import advise
from ggufrope.container.types import Header, Span, TensorInfo
from ggufrope.errors import RequestError
from ggufrope.rope.encode import express
from ggufrope.rope.metadata import FactorTensor, RopeMetadata

GIB = 1 << 30
MODEL = RopeMetadata(
    architecture="qwen2",
    context_length=8192,
    block_count=24,
    embedding_length=896,
    head_count=14,
    head_count_kv=2,
)
HEADER = Header(
    version=3,
    byte_order="<",
    key_values=(),
    tensors=(
        TensorInfo(
            name="token_embd.weight",
            shape=(896, 150000),
            type=0,
            offset=0,
            length=GIB,
            span=Span(offset=0, length=0),
        ),
    ),
    alignment=32,
    data_offset=0,
    file_size=0,
)


def methods(target: int, **fields: Any) -> list[str]:
    model = replace(MODEL, **fields)
    return [option.method for option in advise(HEADER, model, target_context=target).options]


def test_within_reach_nothing_is_to_be_done() -> None:
    found = advise(HEADER, MODEL, target_context=8192)
    assert [option.method for option in found.options] == ["as it is"]
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        (16384, {}, ["NTK-aware", "YaRN", "linear"]),
        (32768, {}, ["YaRN", "NTK-aware", "linear"]),
        (32768, {"scaling_type": "linear", "factor": 2.0}, ["linear", "YaRN", "NTK-aware"]),
        (
            16384,
            {"scaling_type": "yarn", "factor": 4.0, "original_context": 2048},
            ["YaRN", "NTK-aware", "linear"],
        ),
        (
            32768,
            {"architecture": "llama"},
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
        ),
        (
            131072,
            {"architecture": "llama"},
            ["searched factors", "YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
        ),
        (16384, {"architecture": "llama4"}, ["raise the context length"]),
    ],
)
def test_the_order(target: int, fields: dict[str, Any], expected: list[str]) -> None:
    assert methods(target, **fields) == expected


def test_a_scaled_model_is_scaled_from_its_original_context() -> None:
    model = replace(MODEL, scaling_type="yarn", factor=4.0, original_context=2048)
    found = advise(HEADER, model, target_context=16384)
    assert (found.original_context, found.ratio) == (2048, 8.0)
    assert "--target-ctx 16384 --orig-ctx 2048" in found.options[0].commands[1]


def test_native_factors_are_scaled_from_the_context_they_reach() -> None:
    factors = FactorTensor(name="rope_freqs.weight", length=32, values=np.ones(32))
    model = replace(MODEL, architecture="llama", original_context=2048, factor_tensors=(factors,))
    assert advise(HEADER, model, target_context=16384).ratio == 2.0


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3", "gemma3", "granite"])
def test_every_scaling_that_is_advised_can_be_written(name: str) -> None:
    model = replace(MODEL, architecture=name, sliding_window=512)
    for option in advise(HEADER, model, target_context=65536).options:
        if option.scaling is not None:
            express(option.scaling, model, context_length=65536)
        assert option.reasons
        assert option.commands


def test_far_targets_are_warned_of() -> None:
    (warning,) = advise(HEADER, MODEL, target_context=131072).warnings
    assert "16 times the original context is far" in warning


def test_memory_names_the_cache_that_fits() -> None:
    found = advise(HEADER, MODEL, target_context=32768, memory_bytes=int(1.6 * GIB))
    sizes = [need.total_bytes for need in found.memory]
    assert sizes == sorted(sizes, reverse=True)
    assert any("f16 does not fit 1.6 GiB: use a q8_0/q8_0 cache" in w for w in found.warnings)
    small = advise(HEADER, MODEL, target_context=32768, memory_bytes=int(1.35 * GIB))
    assert any("the longest context that fits is" in warning for warning in small.warnings)
    tiny = advise(HEADER, MODEL, target_context=32768, memory_bytes=GIB)
    assert any("no context at all fits" in warning for warning in tiny.warnings)


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"architecture": "mamba"}, 16384, "no layer of this mamba model rotates"),
        ({"context_length": None}, 16384, "context_length is missing"),
        ({}, 0, "target context 0"),
    ],
)
def test_what_cannot_be_advised(fields: dict[str, Any], target: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        advise(HEADER, replace(MODEL, **fields), target_context=target)
