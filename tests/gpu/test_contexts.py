"""Caches on the GPU: where they are, their size, and that the GPU computes the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufrope import Context, ContextSettings, Model, inspect
from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.errors import InsufficientMemoryError
from ggufrope.runtime.attention import heads_of, pair_support
from ggufrope.runtime.library import Device, device_of
from ggufrope.runtime.memory import cache_support, context_need, require_fit
from ggufrope.runtime.probe import compare, probe

pytestmark = pytest.mark.llama

MIB = 1024 * 1024
TEXT = "Long ago, in a valley between two rivers, there stood a mill that never stopped." * 4


@pytest.fixture(scope="module")
def model(model_path: Path, servers: tuple[str, ...]) -> Iterator[Model]:
    with Model.open(model_path, rpc=servers) as opened:
        yield opened


def cache_devices(context: Context) -> set[str]:
    """Return the devices that hold a part of the K/V cache."""
    found = (re.search(r"(\S+) KV buffer size", line) for line in context.log)
    return {device_of(line[1]) for line in found if line}


def logits(model: Model, **settings: Any) -> NDArray[np.float32]:
    """Return the log-probabilities after every token of the text, `[tokens, vocabulary]`."""
    with Context(model, ContextSettings(n_ctx=1024, **settings)) as context:
        rows = np.concatenate(list(context.logits(model.tokenize(TEXT))))
    return rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)


def divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the mean Kullback-Leibler divergence, in nat per token."""
    return float((np.exp(one) * (one - other)).sum(axis=1).mean())


def test_the_cache_is_on_the_gpu(model: Model, gpus: tuple[Device, ...]) -> None:
    with Context(model, ContextSettings(n_ctx=1024)) as context:
        assert cache_devices(context) <= {gpu.name for gpu in gpus}
        assert gpus[0].name in cache_devices(context)


def test_the_cache_is_on_the_cpu_with_offload_kqv_off(model: Model) -> None:
    with Context(model, ContextSettings(n_ctx=1024, offload_kqv=False)) as context:
        assert cache_devices(context) == {"CPU"}


def test_the_cache_of_a_layer_is_on_the_device_of_the_layer(
    model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    with (
        Model.open(model_path, gpu_layers=4, main_gpu=0, rpc=servers) as model,
        Context(model, ContextSettings(n_ctx=1024)) as context,
    ):
        assert cache_devices(context) == {"CPU", gpus[0].name}


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_the_need_on_each_gpu_is_what_the_context_allocates(
    kind: str, model: Model, gpus: tuple[Device, ...]
) -> None:
    settings = ContextSettings(n_ctx=16384, type_k=kind, type_v=kind)
    predicted = {buffer.device: buffer.size_bytes for buffer in context_need(model, settings)}
    with Context(model, settings) as context:
        for gpu in gpus:
            taken = sum(b.size_bytes for b in context.buffers if b.device == gpu.name)
            assert predicted.get(gpu.name, 0) == pytest.approx(taken, rel=0.05, abs=MIB)


def test_a_cache_that_does_not_fit_is_refused_with_the_name_of_the_gpu(
    model: Model, gpus: tuple[Device, ...]
) -> None:
    free = {gpu.name: 8 * MIB for gpu in gpus} | {"CPU": 2**40}
    with pytest.raises(InsufficientMemoryError, match=rf"on {gpus[0].name}, but 8.0 MiB are free"):
        require_fit(model, ContextSettings(n_ctx=65536), free)


def test_the_gpu_computes_what_the_cpu_does(model: Model, model_path: Path) -> None:
    with Model.open(model_path, gpu_layers=0) as on_cpu:
        expected = logits(on_cpu, offload_kqv=False)
    assert divergence(expected, logits(model)) < 1e-3


def test_flash_attention_computes_what_plain_attention_does(model: Model) -> None:
    plain = logits(model, flash_attention=False)
    assert divergence(plain, logits(model, flash_attention=True)) < 1e-3


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_common_cache_types_stay_on_the_gpu(kind: str, model: Model) -> None:
    support = cache_support(model, kind, kind)
    assert support.refusal is None
    assert not support.falls_back


def test_the_rotation_on_the_gpu_is_the_predicted_one(model: Model, model_path: Path) -> None:
    predicted = inspect(model_path).effective
    assert predicted is not None
    assert compare(probe(model), predicted).agrees


def test_a_pair_leaves_the_gpu_where_the_backend_refuses_it(
    model: Model, servers: tuple[str, ...], gpus: tuple[Device, ...]
) -> None:
    said = {
        (pair.type_k, pair.type_v): pair.runs
        for pair in pair_support(heads_of(model), servers)
        if pair.device == gpus[0].name
    }
    assert len(said) == len(CACHE_TYPES) ** 2
    if servers:
        assert set(said.values()) == {"unknown"}  # the server decides
        return
    assert said["f16", "f16"] == "native"
    # One kind of V with all of K, and one of K with all of V: each pair takes a context.
    pairs = {(kind, "q8_0") for kind in CACHE_TYPES} | {("q8_0", kind) for kind in CACHE_TYPES}
    for k, v in sorted(pairs):
        support = cache_support(model, k, v)
        assert support.refusal is None
        assert support.falls_back == (said[k, v] == "cpu"), (k, v, said[k, v])


@pytest.mark.parametrize("pair", ["q8_0/q4_0", "f16/q8_0", "q5_1/f16"])
def test_a_mixed_pair_computes_what_the_cpu_does(pair: str, model: Model, model_path: Path) -> None:
    k, v = pair.split("/")
    with Model.open(model_path, gpu_layers=0) as on_cpu:
        expected = logits(on_cpu, offload_kqv=False, type_k=k, type_v=v)
    assert divergence(expected, logits(model, type_k=k, type_v=v)) < 5e-3
