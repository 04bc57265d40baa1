"""What the installed runtime is and can do, as `ggufrope doctor` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.runtime import library
from ggufrope.runtime.library import Device, Versions
from ggufrope.runtime.memory import CacheSupport, cache_support, free_memory

if TYPE_CHECKING:
    from ggufrope.runtime.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """Versions, devices and abilities of the installed llama.cpp.

    `free_bytes` is the memory free by device name, limits of a container counted in. `caches` has
    every cache type for both K and V on the model asked about, and is empty without one.
    `advice` says how to get what is missing, a line each.
    """

    versions: Versions
    devices: tuple[Device, ...]
    free_bytes: dict[str, int]
    can_offload: bool
    caches: tuple[CacheSupport, ...]
    advice: tuple[str, ...]


def report(model: Model | None = None) -> RuntimeReport:
    """Look at the installed runtime; MissingDependencyError where there is none."""
    devices = library.devices()
    can_offload = library.can_offload()
    advice = []
    if not can_offload:
        advice.append(
            f"this build computes on the CPU only; with an NVIDIA GPU and the CUDA compiler: "
            f"{library.CUDA_INSTALL_COMMAND}"
        )
    elif not any(device.kind in ("gpu", "igpu") for device in devices):
        advice.append(
            "this build can use a GPU and sees none: check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES"
        )
    return RuntimeReport(
        versions=library.versions(),
        devices=devices,
        free_bytes=free_memory(),
        can_offload=can_offload,
        caches=() if model is None else tuple(cache_support(model, t, t) for t in CACHE_TYPES),
        advice=tuple(advice),
    )
