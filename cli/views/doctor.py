"""How `doctor` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufrope._format import byte_size

from ..output import console
from .parts import heading, row, shown, table

if TYPE_CHECKING:
    from ggufrope.runtime.doctor import RuntimeReport


def payload(found: RuntimeReport) -> dict[str, Any]:
    """The JSON of `doctor`."""
    from ggufrope.rope.architectures import source

    return {
        "versions": found.versions,
        "table_commit": source().commit,
        "table_matches": _matches(found),
        "devices": found.devices,
        "free_bytes": found.free_bytes,
        "can_offload": found.can_offload,
        "caches": found.caches,
        "advice": found.advice,
    }


def show_ggufrope() -> None:
    """What is known of ggufrope itself, also where there is no runtime to look at."""
    import platform

    from ggufrope import __version__

    console().print(f"ggufrope {__version__} on Python {platform.python_version()}")


def show(found: RuntimeReport) -> None:
    """Versions, devices, cache types, advice."""
    from ggufrope.rope.architectures import source

    out = console()
    versions = table("part", "version")
    row(versions, "llama-cpp-python", found.versions.llama_cpp_python)
    row(versions, "llama.cpp", f"{found.versions.llama_cpp} ({found.versions.commit})")
    row(versions, "architecture table", source().commit[:9])
    out.print(versions)
    if not _matches(found):
        out.print(
            "the architecture table describes another llama.cpp than the one installed: "
            "predictions may differ, `ggufrope probe` measures",
            style="yellow",
        )
    devices = table("device", "kind", "description", "free", "total", numeric=["free", "total"])
    for device in found.devices:
        free = found.free_bytes.get(device.name, device.memory_free)
        cells = (device.name, device.kind, device.description, byte_size(free))
        row(devices, *cells, byte_size(device.memory_total))
    out.print(devices)
    out.print(f"offload to a GPU: {'yes' if found.can_offload else 'no'}")
    if found.caches:
        _show_caches(found)
    for line in found.advice:
        out.print(heading("advice"))
        out.print(shown(line), soft_wrap=True)


def _show_caches(found: RuntimeReport) -> None:
    caches = table("K/V cache", "bytes/token", "runs", numeric=["bytes/token"])
    for support in found.caches:
        verdict = "yes" if support.refusal is None else f"no: {support.refusal}"
        if support.falls_back:
            verdict = "slowly: it leaves the GPU where f16 stays on it"
        cache = support.cache
        row(caches, support.type_k, None if cache is None else cache.bytes_per_token, verdict)
    console().print(caches)


def _matches(found: RuntimeReport) -> bool:
    """Whether the installed llama.cpp is the one the architecture table was made from."""
    from ggufrope.rope.architectures import source

    commit = found.versions.commit.partition("-")[0]  # a package build calls itself "-dirty"
    return bool(commit) and source().commit.startswith(commit)
