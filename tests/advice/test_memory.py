"""Against figures llama.cpp logs, and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ggufrope.advice.memory import cache_needs, kv_bytes, longest_context, memory_need
from ggufrope.container.types import ArrayValue, Header, KeyValue, Span, TensorInfo, ValueType
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.metadata import RopeMetadata

MIB = 1 << 20
NOWHERE = Span(offset=0, length=0)
SMOLLM2 = RopeMetadata(
    architecture="llama",
    context_length=8192,
    block_count=30,
    embedding_length=576,
    head_count=9,
    head_count_kv=3,
)
GEMMA3 = RopeMetadata(
    architecture="gemma3",
    context_length=32768,
    block_count=12,
    embedding_length=1024,
    head_count=4,
    head_count_kv=1,
    key_length=256,
    value_length=256,
    sliding_window=512,
)


def header(weights: int = 98 * MIB, vocabulary: int = 49152) -> Header:
    tokens = ArrayValue(item_type=ValueType.STRING, count=vocabulary, span=NOWHERE)
    return Header(
        version=3,
        byte_order="<",
        key_values=(
            KeyValue(key="tokenizer.ggml.tokens", type=ValueType.ARRAY, value=tokens, span=NOWHERE),
        ),
        tensors=(TensorInfo(name="w", shape=(1,), type=0, offset=0, length=weights, span=NOWHERE),),
        alignment=32,
        data_offset=0,
        file_size=0,
    )


@pytest.mark.parametrize(("tokens", "mebibytes"), [(2048, 45), (8192, 180), (32768, 720)])
def test_the_cache_llama_cpp_logs_for_smollm2(tokens: int, mebibytes: int) -> None:
    assert kv_bytes(SMOLLM2, context_tokens=tokens) == mebibytes * MIB


@pytest.mark.parametrize(
    ("tokens", "flash", "mebibytes"),
    [(2048, False, 99.38), (8192, False, 166.38), (32768, False, 646.38), (32768, True, 98.25)],
)
def test_the_compute_buffer_llama_cpp_logs_for_smollm2(
    tokens: int, flash: bool, mebibytes: float
) -> None:
    need = memory_need(header(), SMOLLM2, context_tokens=tokens, flash_attention=flash)
    assert need.compute_bytes / MIB == pytest.approx(mebibytes, rel=0.05)


def test_quantized_caches_by_hand() -> None:
    row = 3 * 64
    mixed = kv_bytes(SMOLLM2, context_tokens=256, k_type="q8_0", v_type="q4_0")
    assert mixed == 30 * 256 * (row // 32 * 34 + row // 32 * 18)


def test_sliding_layers_keep_their_window_and_a_batch() -> None:
    row = 2 * 256 * 2
    assert kv_bytes(GEMMA3, context_tokens=32768) == row * (2 * 32768 + 10 * 1024)
    assert kv_bytes(GEMMA3, context_tokens=32768, full_window=True) == row * 12 * 32768
    assert kv_bytes(GEMMA3, context_tokens=512) == row * 12 * 512


def test_heads_per_layer_and_layers_without_a_cache() -> None:
    hybrid = replace(SMOLLM2, architecture="granitehybrid", block_count=3, head_count_kv=(0, 2, 0))
    assert kv_bytes(hybrid, context_tokens=256) == 256 * 2 * (2 * 64 * 2)
    shared = replace(GEMMA3, architecture="gemma3n", block_count=10, shared_kv_layers=5)
    every = replace(shared, shared_kv_layers=None)
    halved = kv_bytes(shared, context_tokens=256)
    assert 2 * halved == kv_bytes(every, context_tokens=256)


def test_latent_attention_keeps_one_compressed_row() -> None:
    deepseek = RopeMetadata(
        architecture="deepseek2",
        context_length=4096,
        block_count=2,
        embedding_length=2048,
        head_count=16,
        head_count_kv=1,
        key_length=576,
        value_length=512,
        key_length_mla=192,
        value_length_mla=128,
        kv_lora_rank=512,
        dimension_count=64,
    )
    assert kv_bytes(deepseek, context_tokens=256) == 256 * 2 * 576 * 2
    assert pairs(deepseek) == ["f16/f16", "q8_0/q8_0", "q4_0/q4_0"]
    whole_heads = replace(deepseek, key_length_mla=None, value_length_mla=None, head_count_kv=16)
    assert len(pairs(replace(whole_heads, key_length=192, value_length=128))) == 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"]),
        ({"key_length": 80, "value_length": 80}, ["f16/f16"]),
        ({"key_length": 100, "value_length": 100, "head_count_kv": 8}, ["f16/f16"]),
        ({"key_length": 128, "value_length": 80}, ["f16/f16", "q8_0/f16"]),
        ({"architecture": "gemma3", "sliding_window": 512, "key_length_swa": 80}, ["f16/f16"]),
        ({"architecture": "grok"}, ["f16/f16", "q8_0/f16"]),
        ({"architecture": "deepseek4"}, ["f16/f16", "q8_0/q8_0", "q4_0/q4_0"]),
    ],
)
def test_only_pairs_that_the_model_runs_with_are_proposed(
    fields: dict[str, Any], expected: list[str]
) -> None:
    assert pairs(replace(SMOLLM2, **fields)) == expected


def test_pairs_that_the_build_runs_slowly_are_left_out() -> None:
    slow = {("q8_0", "q4_0"), ("q8_0", "q5_0")}
    needs = cache_needs(header(), SMOLLM2, context_tokens=1024, slow_pairs=slow)
    assert [f"{need.k_type}/{need.v_type}" for need in needs] == [
        "f16/f16",
        "q8_0/q8_0",
        "q4_0/q4_0",
    ]
    unknown = cache_needs(header(), SMOLLM2, context_tokens=1024)
    fast = cache_needs(header(), SMOLLM2, context_tokens=1024, slow_pairs=())
    assert [
        any("FA_QUANTS" in note for need in each for note in need.notes) for each in (unknown, fast)
    ] == [True, False]


def pairs(model: RopeMetadata) -> list[str]:
    needs = cache_needs(header(), model, context_tokens=1024)
    assert all(need.risk is not None for need in needs)
    return [f"{need.k_type}/{need.v_type}" for need in needs]


def test_contexts_are_rounded_up_as_allocated() -> None:
    assert kv_bytes(SMOLLM2, context_tokens=1) == kv_bytes(SMOLLM2, context_tokens=256)


@pytest.mark.parametrize(
    ("fields", "given", "error", "message"),
    [
        ({}, {"k_type": "q2_k"}, RequestError, "cache type 'q2_k' is unknown"),
        ({"key_length": 80}, {"k_type": "q8_0"}, RequestError, "do not divide the head size 80"),
        ({}, {"context_tokens": 0}, RequestError, "a context of 0 tokens"),
        ({"head_count": None}, {}, FileError, "head_count are both missing"),
    ],
)
def test_what_cannot_be_counted(
    fields: dict[str, Any], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = replace(SMOLLM2, head_count_kv=1, **fields)
    with pytest.raises(error, match=message):
        kv_bytes(model, **{"context_tokens": 256, **given})


@pytest.mark.parametrize("mebibytes", [300, 500, 1000, 10_000])
def test_the_longest_context_fits_and_the_next_does_not(mebibytes: int) -> None:
    budget = mebibytes * MIB
    found = longest_context(header(), SMOLLM2, budget_bytes=budget)
    assert found > 0
    assert memory_need(header(), SMOLLM2, context_tokens=found).total_bytes <= budget
    assert memory_need(header(), SMOLLM2, context_tokens=found + 256).total_bytes > budget
    assert longest_context(header(), SMOLLM2, budget_bytes=MIB) == 0
