"""What the installed runtime is and can do, for `ggufrope doctor`."""

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

    `free_bytes` is the memory free by device name, with the limit of a container applied. `caches`
    has every cache type, for K and V alike, on the model of the report; it is empty without a
    model, and for one that has no cache. `advice` has one line per problem and says how to solve
    it.
    """

    versions: Versions
    devices: tuple[Device, ...]
    free_bytes: dict[str, int]
    can_offload: bool
    caches: tuple[CacheSupport, ...]
    advice: tuple[str, ...]


def report(model: Model | None = None) -> RuntimeReport:
    """Examine the installed runtime. Raises MissingDependencyError where there is none."""
    versions = library.versions()
    devices = library.devices()
    can_offload = library.can_offload()
    return RuntimeReport(
        versions=versions,
        devices=devices,
        free_bytes=free_memory(),
        can_offload=can_offload,
        caches=() if model is None else _caches(model),
        advice=tuple(
            line
            for line in (
                version_advice(versions.llama_cpp_python),
                _device_advice(devices, can_offload=can_offload),
                None if model is None else _purpose_advice(model),
            )
            if line is not None
        ),
    )


def version_advice(installed: str) -> str | None:
    """Return what to do where this version of llama-cpp-python was not tested, else None."""
    if library.is_tested(installed):
        return None
    first, beyond = library.TESTED_VERSIONS
    return (
        f"ggufrope was not tested with llama-cpp-python {installed} (tested: {first} or newer, "
        f"below {beyond}), so measured rotations and cache sizes may be missing or wrong; "
        f"install a tested version: {library.INSTALL_COMMAND}"
    )


def _caches(model: Model) -> tuple[CacheSupport, ...]:
    if not model.purpose.keeps_cache:
        return ()
    return tuple(cache_support(model, kind, kind) for kind in CACHE_TYPES)


def _purpose_advice(model: Model) -> str | None:
    meant = model.purpose
    if meant.generates:
        return None
    cache = "" if meant.keeps_cache else "; llama.cpp keeps no K/V cache for it"
    return (
        f"{model.path.name} is {meant.reason}{cache}; validate, compare and search measure models "
        "that generate text token by token, so name another"
    )


def _device_advice(devices: tuple[Device, ...], *, can_offload: bool) -> str | None:
    if not can_offload:
        return (
            f"this build computes on the CPU only; with an NVIDIA GPU and the CUDA compiler, "
            f"install one that can use it: {library.CUDA_INSTALL_COMMAND}"
        )
    if not any(device.kind in ("gpu", "igpu") for device in devices):
        return (
            "this build can use a GPU but finds none; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES"
        )
    return None
