"""What the installed runtime is and can do, for `ggufrope doctor`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.errors import MissingDependencyError
from ggufrope.runtime import library, rpc
from ggufrope.runtime.cards import Card, cards, install_command, missing_tool
from ggufrope.runtime.library import Device, Versions
from ggufrope.runtime.memory import CacheSupport, cache_support, free_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.runtime.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """Versions, devices and abilities of the installed llama.cpp.

    `versions` is None where it is not installed. `cards` are the graphics cards of the machine,
    whatever llama.cpp can do with them. `free_bytes` is the memory free by device name, with the
    limit of a container applied. `caches` has every cache type, for K and V alike, on the model of
    the report; it is empty without a model, and for one that has no cache. `extras` says of each
    optional part of ggufrope whether its packages are installed. `advice` has one line per problem
    and says how to solve it; `install` is the command that builds llama-cpp-python for the cards,
    where the one installed does not do.
    """

    versions: Versions | None
    cards: tuple[Card, ...]
    devices: tuple[Device, ...]
    free_bytes: dict[str, int]
    can_offload: bool
    caches: tuple[CacheSupport, ...]
    extras: dict[str, bool]
    advice: tuple[str, ...]
    install: str | None


def report(model: Model | None = None, *, servers: Sequence[str] = ()) -> RuntimeReport:
    """Examine what is installed, and what these RPC servers have.

    Works without llama-cpp-python, and says how to install it. Raises BackendError where a server
    does not answer, MissingDependencyError where llama.cpp is built without RPC.
    """
    seen = cards()
    try:
        versions = library.versions()
    except MissingDependencyError as error:
        reason, _, _ = str(error).partition(library.INSTALL_COMMAND)
        return RuntimeReport(
            versions=None,
            cards=seen,
            devices=(),
            free_bytes={},
            can_offload=False,
            caches=(),
            extras=extras(),
            advice=(_to_build(reason.strip(" :"), seen),),
            install=install_command(seen, again="not installed" not in reason),
        )
    rpc.register(servers)
    devices = library.devices(servers)
    can_offload = library.can_offload()
    install, lines = None, []
    if not library.is_tested(versions.llama_cpp_python):
        lines.append(_to_build(version_problem(versions.llama_cpp_python), seen))
        install = install_command(seen, again=True)
    elif seen and not can_offload:
        lines.append(_to_build("this build computes on the CPU only", seen))
        install = install_command(seen, again=True)
    if can_offload and not any(device.kind in ("gpu", "igpu") for device in devices):
        lines.append(
            "this build can use a GPU but finds none; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES"
        )
    if model is not None and not model.purpose.generates:
        lines.append(_purpose_advice(model))
    return RuntimeReport(
        versions=versions,
        cards=seen,
        devices=devices,
        free_bytes=free_memory(servers),
        can_offload=any(device.kind in ("gpu", "igpu") for device in devices),
        caches=() if model is None else _caches(model),
        extras=extras(),
        advice=tuple(lines),
        install=install,
    )


def _to_build(problem: str, seen: tuple[Card, ...]) -> str:
    """Return what to do where llama.cpp is missing or cannot use the cards."""
    lacking = missing_tool(seen)
    first = "" if lacking is None else f"install {lacking}, then "
    place = f" for {seen[0].name}" if seen else ""
    return f"{problem}; {first}build llama-cpp-python{place}, which takes minutes"


def extras() -> dict[str, bool]:
    """Return whether the packages of each optional part of ggufrope are installed, nothing where
    ggufrope itself runs from its source."""
    found: dict[str, bool] = {}
    for requirement in (metadata.requires("ggufrope") or ()) if _is_installed("ggufrope") else ():
        matched = re.match(r"""([\w.-]+).*;.*extra == ["'](\w+)["']""", requirement)
        if matched is not None and matched[2] != "dev":
            found[matched[2]] = found.get(matched[2], True) and _is_installed(matched[1])
    return found


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def version_problem(installed: str) -> str:
    """Return what may be wrong with a version of llama-cpp-python that was not tested."""
    first, beyond = library.TESTED_VERSIONS
    return (
        f"ggufrope was not tested with llama-cpp-python {installed} (tested: {first} or newer, "
        f"below {beyond}), so measured rotations and cache sizes may be missing or wrong"
    )


def _caches(model: Model) -> tuple[CacheSupport, ...]:
    if not model.purpose.keeps_cache:
        return ()
    return tuple(cache_support(model, kind, kind) for kind in CACHE_TYPES)


def _purpose_advice(model: Model) -> str:
    meant = model.purpose
    cache = "" if meant.keeps_cache else "; llama.cpp keeps no K/V cache for it"
    return (
        f"{model.path.name} is {meant.reason}{cache}; validate, compare and search measure models "
        "that generate text token by token, so name another"
    )
