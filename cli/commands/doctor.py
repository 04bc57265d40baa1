"""`ggufrope doctor`: what is installed, what it can do, and how to get what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import JsonOption

if TYPE_CHECKING:
    from ggufrope.runtime.doctor import RuntimeReport


def command(
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also test every KV cache type on this model."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show versions, devices, GPU offload, and the KV cache types that this build can run."""
    from ggufrope.runtime.doctor import report
    from ggufrope.runtime.model import Model

    from ..errors import outlive_aborts
    from ..output import emit_json
    from ..values import model_path

    outlive_aborts()
    if not json:
        show_ggufrope()
    if model is None:
        result = report()
    else:
        with Model.open(model_path(model)) as loaded:
            result = report(loaded)
    if json:
        emit_json(payload(result))
    else:
        show(result)


def payload(result: RuntimeReport) -> dict[str, Any]:
    """Return the JSON object of `doctor`."""
    from ggufrope.rope.architectures import source

    return {
        "versions": result.versions,
        "table_commit": source().commit,
        "table_matches": _matches(result),
        "devices": result.devices,
        "free_bytes": result.free_bytes,
        "can_offload": result.can_offload,
        "caches": result.caches,
        "advice": result.advice,
    }


def show_ggufrope() -> None:
    """Print the versions that are known even without llama-cpp-python."""
    import platform

    from ggufrope import __version__

    from ..output import console

    console().print(f"ggufrope {__version__} on Python {platform.python_version()}")


def show(result: RuntimeReport) -> None:
    """Print versions, devices, cache types and advice."""
    from ggufrope._format import byte_size
    from ggufrope.rope.architectures import source

    from ..output import console
    from ..tables import heading, row, shown, table

    out = console()
    versions = table("part", "version")
    row(versions, "llama-cpp-python", result.versions.llama_cpp_python)
    row(versions, "llama.cpp", f"{result.versions.llama_cpp} ({result.versions.commit})")
    row(versions, "architecture table", source().commit[:9])
    out.print(versions)
    if not _matches(result):
        out.print(
            "The architecture table was made from another llama.cpp than the one installed, so "
            "predictions may be wrong. `ggufrope probe FILE` measures the rotation.",
            style="yellow",
        )
    devices = table("device", "kind", "description", "free", "total", numeric=["free", "total"])
    for device in result.devices:
        free = result.free_bytes.get(device.name, device.memory_free)
        cells = (device.name, device.kind, device.description, byte_size(free))
        row(devices, *cells, byte_size(device.memory_total))
    out.print(devices)
    out.print(f"GPU offload: {'yes' if result.can_offload else 'no'}")
    if result.caches:
        _show_caches(result)
    for line in result.advice:
        out.print(heading("advice"))
        out.print(shown(line), soft_wrap=True)


def _show_caches(result: RuntimeReport) -> None:
    from ..output import console
    from ..tables import row, table

    caches = table("KV cache", "bytes/token", "runs", numeric=["bytes/token"])
    for support in result.caches:
        verdict = "yes" if support.refusal is None else f"no: {support.refusal}"
        if support.falls_back:
            verdict = "yes, but slow: some operations fall back to the CPU"
        cache = support.cache
        size = None if cache is None else f"{cache.bytes_per_token:,.1f}"
        row(caches, support.type_k, size, verdict)
    console().print(caches)


def _matches(result: RuntimeReport) -> bool:
    """Whether the architecture table was made from the installed llama.cpp."""
    from ggufrope.rope.architectures import source

    commit = result.versions.commit.partition("-")[0]  # a package build calls itself "-dirty"
    return bool(commit) and source().commit.startswith(commit)
