"""What the installed runtime is and can do, for `ggufrope doctor`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.errors import MissingDependencyError
from ggufrope.runtime import library, machine, rpc
from ggufrope.runtime.attention import USUAL_HEADS, PairSupport, heads_of, pair_support
from ggufrope.runtime.cards import Card, cards, install_command, missing_tool, wheel_command
from ggufrope.runtime.engine import INSTALL_COMMAND
from ggufrope.runtime.library import Device, Versions
from ggufrope.runtime.memory import CacheSupport, cache_support, free_memory
from ggufrope.runtime.selfcheck import SelfCheck, self_check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.runtime.model import Model

_NO_GPU = frozenset({"CPU", "BLAS", "RPC", "ZenDNN"})
"""Backends that use no GPU of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """Versions, devices and abilities of the installed llama.cpp.

    `versions` is None where it is not installed. `self_check` is what is read of the llama.cpp that
    is loaded, seen on a small model. `cards` are the graphics cards of the machine,
    whatever llama.cpp can do with them. `free_bytes` is the memory free by device name, with the
    limit of a container applied. `backends` are those that this build has. `attention` says how
    each device runs each pair of cache types, on the heads of the model, else on usual ones.
    `caches` has every cache type, for K and V alike, on the model of the report; it is empty
    without a model, and for one that has no cache. `environment` has the variables that are set and
    change llama.cpp, and what they do. `extras` says of each optional part of ggufrope whether its
    packages are installed. `advice` has one line per problem and says how to solve it; `install` is
    the command that builds llama-cpp-python for the cards, where the one installed does not do, and
    `wheel` the command that installs a built one.
    """

    versions: Versions | None
    self_check: SelfCheck | None
    cards: tuple[Card, ...]
    devices: tuple[Device, ...]
    free_bytes: dict[str, int]
    can_offload: bool
    backends: tuple[str, ...]
    attention: tuple[PairSupport, ...]
    caches: tuple[CacheSupport, ...]
    environment: dict[str, str]
    extras: dict[str, bool]
    advice: tuple[str, ...]
    install: str | None
    wheel: str | None


def report(model: Model | None = None, *, servers: Sequence[str] = ()) -> RuntimeReport:
    """Examine what is installed, and what these RPC servers have.

    Works without llama-cpp-python, and says how to install it. Raises BackendError where a server
    does not answer, MissingDependencyError where llama.cpp is built without RPC.
    """
    seen = cards()
    try:
        versions = library.versions()
    except MissingDependencyError as error:
        reason, _, _ = str(error).partition(INSTALL_COMMAND)
        return RuntimeReport(
            versions=None,
            self_check=None,
            cards=seen,
            devices=(),
            free_bytes={},
            can_offload=False,
            backends=(),
            attention=(),
            caches=(),
            environment=machine.environment(),
            extras=extras(),
            advice=(_to_build(reason.strip(" :"), seen),),
            install=install_command(seen, again="not installed" not in reason),
            wheel=wheel_command(seen),
        )
    rpc.register(servers)
    devices, backends = library.devices(servers), library.backends()
    keeps_cache = model is None or model.purpose.keeps_cache
    attention: tuple[PairSupport, ...] = ()
    if keeps_cache:
        attention = pair_support(USUAL_HEADS if model is None else heads_of(model), servers)
    rebuild = _faults_of_the_build(versions, seen, backends)
    rebuild += _lacking_kernels(attention)
    lines = [_to_build(problem, seen) if versions.own else problem for problem in rebuild]
    checked = self_check()
    if not versions.own and not versions.tested:
        lines.append(
            f"ggufrope was not tested with llama.cpp {versions.llama_cpp} ({versions.commit}) "
            f"(tested: {', '.join(library.TESTED_BUILDS)})"
        )
    lines += _self_check_problems(checked)
    able = [name for name in backends if name not in _NO_GPU]
    if able and not library.can_offload():
        lines.append(
            f"{', '.join(able)} of this build finds no GPU; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES"
        )
    if model is not None and not model.purpose.generates:
        lines.append(_purpose_advice(model))
    return RuntimeReport(
        versions=versions,
        self_check=checked,
        cards=seen,
        devices=devices,
        free_bytes=free_memory(servers),
        can_offload=any(device.kind in ("gpu", "igpu") for device in devices),
        backends=backends,
        attention=attention,
        caches=_caches(model) if model is not None and keeps_cache else (),
        environment=machine.environment(),
        extras=extras(),
        advice=tuple(lines),
        install=install_command(seen, again=True) if rebuild and versions.own else None,
        wheel=wheel_command(seen) if rebuild and versions.own else None,
    )


def _faults_of_the_build(
    versions: Versions, seen: tuple[Card, ...], backends: tuple[str, ...]
) -> list[str]:
    """Return why another build would serve this machine better: version, backends, CPU."""
    faults = []
    if versions.own and not versions.tested:
        faults.append(version_problem(versions.llama_cpp_python))
    if seen and set(backends) <= _NO_GPU:
        faults.append(f"this build has no backend for a GPU (it has {', '.join(backends)})")
    able = machine.cpu_features()
    built = machine.built_features(versions.system_info)
    if able is not None and built:
        if lacking := sorted(able - built):
            faults.append(
                f"this build does not use {', '.join(lacking)} of the CPU, which makes it slower"
            )
        if missing := sorted(built - able):
            faults.append(
                f"this build uses {', '.join(missing)}, which this CPU lacks: it may end the "
                "process with an illegal instruction"
            )
    return faults


def _lacking_kernels(attention: tuple[PairSupport, ...]) -> list[str]:
    """Return what is converted or leaves the device for want of kernels that a build can have.

    CUDA has none for iq4_nl, whatever it is built with.
    """
    pairs = [pair for pair in attention if "iq4_nl" not in (pair.type_k, pair.type_v)]
    lacking = Counter(pair.device for pair in pairs if pair.runs in ("converted", "cpu"))
    total = Counter(pair.device for pair in pairs)
    return [
        f"{count} of {total[device]} pairs of K/V cache types have no attention kernel in this "
        f"build on {device}: they are converted for every token, or leave it (GGML_CUDA_FA_QUANTS)"
        for device, count in lacking.items()
    ]


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


def _self_check_problems(checked: SelfCheck) -> Iterator[str]:
    """Yield what the self-check found that measurements suffer from."""
    if checked.failure is not None:
        yield f"the self-check failed on this llama.cpp: {checked.failure}"
    elif checked.rotation_error is not None and not checked.rotation_right:
        yield (
            "the self-check measured another rotation than its model declares (largest relative "
            f"error {checked.rotation_error:.2g}): this llama.cpp rotates in another way, or "
            "is read wrongly"
        )
    if checked.unread:
        yield (
            f"the log of this llama.cpp does not say in a known form {', '.join(checked.unread)}: "
            "reports show these as not known"
        )


def version_problem(installed: str) -> str:
    """Return what may be wrong with a version of llama-cpp-python that was not tested."""
    first, beyond = library.TESTED_VERSIONS
    return (
        f"ggufrope was not tested with llama-cpp-python {installed} (tested: {first} or newer, "
        f"below {beyond}), so measured rotations and cache sizes may be missing or wrong"
    )


def _caches(model: Model) -> tuple[CacheSupport, ...]:
    return tuple(cache_support(model, kind, kind) for kind in CACHE_TYPES)


def _purpose_advice(model: Model) -> str:
    meant = model.purpose
    cache = "" if meant.keeps_cache else "; llama.cpp keeps no K/V cache for it"
    return (
        f"{model.path.name} is {meant.reason}{cache}; validate, compare and search measure models "
        "that generate text token by token, so name another"
    )
