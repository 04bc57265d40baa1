"""Layers are on the devices that were chosen; weights that do not fit are refused unloaded."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from ggufrope import Context, RuntimeSettings, open_model
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import InsufficientMemoryError
from ggufrope.patching.request import ScalingRequest
from ggufrope.runtime.library import Device
from ggufrope.runtime.loading import LoadOptions
from ggufrope.runtime.model import Model
from ggufrope.runtime.placement import fitting_layers, free_on_gpus, weights_need
from ggufrope.runtime.settings import ContextSettings
from tests.gpu.conftest import LAYERS, SHAPE
from tools.random_model import write

pytestmark = pytest.mark.llama

MIB = 1024 * 1024


def on(model: Model, device: Device) -> int:
    """Return the bytes of weights on a device."""
    return model.placement.weights_on(device.name)


def test_all_layers_are_on_the_gpus(
    model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    with Model.open(model_path, rpc=servers) as model:
        assert model.placement.layers_on_gpu == model.placement.layers == LAYERS
        held = sum(on(model, gpu) for gpu in gpus)
        assert 0.8 * model.size_bytes < held <= model.size_bytes


@pytest.mark.parametrize("layers", [0, 1, 4, LAYERS])
def test_as_many_layers_are_on_the_gpus_as_requested(
    layers: int, model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    options = LoadOptions(gpu_layers=layers, rpc=servers)
    predicted = {b.device: b.size_bytes for b in weights_need(model_path, options)}
    with Model.open(model_path, gpu_layers=layers, rpc=servers) as model:
        assert model.placement.layers_on_gpu == layers
        for gpu in gpus:
            assert on(model, gpu) == pytest.approx(predicted.get(gpu.name, 0), abs=MIB)


def test_weights_take_memory_of_the_gpu(model_path: Path, servers: tuple[str, ...]) -> None:
    if servers:
        pytest.skip("the CPU that the servers lend does not say what is free of it")
    before = sum(free_on_gpus().values())
    with Model.open(model_path, rpc=servers) as model:
        assert before - sum(free_on_gpus().values()) > 0.5 * model.size_bytes


def test_a_main_gpu_has_the_whole_model(
    model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    for number, gpu in enumerate(gpus):
        with Model.open(model_path, main_gpu=number, rpc=servers) as model:
            assert on(model, gpu) > 0.8 * model.size_bytes
            assert all(on(model, other) == 0 for other in gpus if other != gpu)


def test_a_tensor_split_divides_the_model(
    model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    if len(gpus) < 2:
        pytest.skip("a tensor split needs two GPUs")
    shares = (2.0, 1.0, *[0.0] * (len(gpus) - 2))
    with Model.open(model_path, tensor_split=shares, rpc=servers) as model:
        first, second, *others = (on(model, gpu) for gpu in gpus)
        assert first > second > 0
        assert not any(others)


def test_weights_that_do_not_fit_are_refused_and_allocate_nothing(
    too_large: Path, servers: tuple[str, ...]
) -> None:
    before = free_on_gpus(servers)
    assert before
    with pytest.raises(InsufficientMemoryError, match=r"GiB are free: set gpu_layers lower"):
        Model.open(too_large, rpc=servers)
    for name, free in free_on_gpus(servers).items():
        assert free == pytest.approx(before[name], abs=256 * MIB)


def test_fewer_layers_fit_with_a_longer_context(too_large: Path, servers: tuple[str, ...]) -> None:
    options = LoadOptions(rpc=servers)
    few = fitting_layers(too_large, ContextSettings(n_ctx=65536), options)
    more = fitting_layers(too_large, ContextSettings(n_ctx=1024), options)
    assert 0 < few <= more
    options = LoadOptions(gpu_layers=more, rpc=servers)
    free = free_on_gpus(servers)
    assert all(
        b.size_bytes <= free.get(b.device, b.size_bytes) for b in weights_need(too_large, options)
    )


def test_auto_is_all_layers_where_they_fit(
    model_path: Path, gpus: tuple[Device, ...], servers: tuple[str, ...]
) -> None:
    subject = open_model(model_path, RuntimeSettings(gpu_layers="auto", rpc=servers))
    kv = KvTypes.parse("f16")
    try:
        opened = subject.contexts(ScalingRequest(scaling="file"), kv, largest=1024)(1024)
        with closing(opened) as context:
            assert context.n_ctx >= 1024
        assert isinstance(subject.model, Model)
        assert subject.model.placement.layers_on_gpu == LAYERS
        assert subject.details["layers on GPU"] == f"{LAYERS} of {LAYERS}"
        assert gpus[0].description in subject.details[gpus[0].name]
    finally:
        subject.close()


@pytest.mark.parametrize("chosen", [1, "all"])
def test_experts_stay_on_the_cpu(
    chosen: int | Literal["all"],
    servers: tuple[str, ...],
    gpus: tuple[Device, ...],
    tmp_path: Path,
) -> None:
    shape = replace(SHAPE, experts=4)
    path = tmp_path / "mixture.gguf"
    write(path, shape)
    experts = 3 * shape.experts * shape.hidden * shape.width // 32 * 34  # in q8_0, one layer
    moved = experts * (shape.layers if chosen == "all" else chosen)
    options = LoadOptions(rpc=servers, experts_on_cpu=chosen)
    predicted = {b.device: b.size_bytes for b in weights_need(path, options)}
    with Model.open(path, rpc=servers) as model:
        whole = sum(on(model, gpu) for gpu in gpus)
    with Model.open(path, rpc=servers, experts_on_cpu=chosen) as model:
        assert whole - sum(on(model, gpu) for gpu in gpus) == pytest.approx(moved, abs=MIB)
        for gpu in gpus:
            assert on(model, gpu) == pytest.approx(predicted.get(gpu.name, 0), abs=MIB)
        with Context(model, ContextSettings(n_ctx=1024)) as context:
            tokens = model.tokenize("the mill")
            assert sum(len(rows) for rows in context.logits(tokens)) == len(tokens)
