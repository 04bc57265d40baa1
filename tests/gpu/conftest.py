"""Tests of devices that take layers: GPUs of this machine, and those of two RPC servers.

The first need a GPU and a build of llama.cpp that can use it, the others a build with RPC.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufrope.runtime import library
from ggufrope.runtime.library import Device
from ggufrope.runtime.rpc import register
from tools.random_model import Shape, write

SHAPE = Shape(layers=8, width=512, heads=8, kv_heads=2, hidden=1024, vocabulary=4096)
LAYERS = SHAPE.layers + 1
"""As llama.cpp counts layers: the output is one of them."""


@pytest.fixture(scope="session", autouse=True, params=["gpu", "rpc"])
def servers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The RPC servers of a test, none for the GPUs of this machine."""
    if request.param == "rpc":
        addresses: tuple[str, ...] = request.getfixturevalue("two_servers")
        return addresses
    if not library.can_offload():
        pytest.skip("this build of llama.cpp cannot use a GPU")
    return ()


@pytest.fixture(scope="session")
def gpus(servers: tuple[str, ...]) -> tuple[Device, ...]:
    """The devices that take layers, in the order of llama.cpp."""
    register(servers)
    found = [device for device in library.devices(servers) if device.kind == "gpu"]
    if not found:
        pytest.skip("llama.cpp finds no GPU")
    return tuple(sorted(found, key=lambda device: device.server is None))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    path = tmp_path_factory.mktemp("gpu") / "random.gguf"
    write(path, SHAPE)
    return path


@pytest.fixture(scope="session")
def too_large(gpus: tuple[Device, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1.5 times the memory of all GPUs, which takes no space on the disk."""
    wide = {"width": 8192, "heads": 64, "kv_heads": 8, "hidden": 131072, "vocabulary": 4096}
    layer_bytes = 3_580_000_000  # of those sizes in q8_0; llama.cpp takes at most 512 layers
    layers = int(1.5 * sum(gpu.memory_total for gpu in gpus) / layer_bytes) + 2
    path = tmp_path_factory.mktemp("gpu") / "too-large.gguf"
    write(path, Shape(layers=layers, **wide), hollow=True)
    return path
