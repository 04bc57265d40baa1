"""`ggufrope doctor`: what is installed, what it can do, and how to get what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import JsonOption, LlamaLibOption

if TYPE_CHECKING:
    from ggufrope.runtime.attention import Attention
    from ggufrope.runtime.doctor import RuntimeReport
    from ggufrope.runtime.selfcheck import SelfCheck

_RUNS: dict[Attention, tuple[str, str]] = {
    "native": ("yes", "runs"),
    "plain": ("plain", "runs without flash attention"),
    "converted": ("f16", "runs, converted to f16 for every token: slower in a long cache"),
    "cpu": ("CPU", "runs, but slowly: attention leaves the device"),
    "unknown": ("?", "the server decides"),
}
"""The mark of each way to run attention, and what it means."""


def command(
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also test every KV cache type on this model."),
    ] = None,
    llama_lib: LlamaLibOption = None,
    rpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…", help="Show the devices of llama.cpp's RPC servers too."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what is installed, and how to get what is missing."""
    from ggufrope.runtime import library
    from ggufrope.runtime.doctor import report
    from ggufrope.runtime.engine import use_llama
    from ggufrope.runtime.model import Model

    from ..errors import outlive_aborts
    from ..output import emit_json
    from ..values import llama_lib as folder_of_llama
    from ..values import model_path, servers

    outlive_aborts()
    if folder := folder_of_llama(llama_lib):
        use_llama(folder)
        library.load()  # what was named is wrong, rather than missing
    addresses = servers(rpc)
    if model is None:
        result = report(servers=addresses)
    else:
        with Model.open(model_path(model), rpc=addresses) as loaded:
            result = report(loaded, servers=addresses)
    if json:
        emit_json(payload(result))
    else:
        show(result)


def payload(result: RuntimeReport) -> dict[str, Any]:
    """Return the JSON object of `doctor`."""
    from ggufrope.rope.architectures import current_table

    described = current_table()
    return {
        "versions": result.versions,
        "self_check": result.self_check,
        "cards": result.cards,
        "extras": result.extras,
        "table_commit": described.source.commit,
        "table_matches": _matches(result),
        "table": {
            "source": described.source,
            "file": described.path,
            "reason": described.reason,
        },
        "devices": result.devices,
        "free_bytes": result.free_bytes,
        "can_offload": result.can_offload,
        "backends": result.backends,
        "attention": result.attention,
        "environment": result.environment,
        "caches": result.caches,
        "advice": result.advice,
        "install": result.install,
        "wheel": result.wheel,
    }


def show(result: RuntimeReport) -> None:
    """Print versions, devices, cache types and advice."""
    import platform

    from ggufrope import __version__
    from ggufrope.rope.architectures import current_table

    from ..output import console
    from ..tables import heading, row, shown, table

    out = console()
    versions = table("part", "version")
    row(versions, "ggufrope", f"{__version__} on Python {platform.python_version()}")
    if result.versions is None:
        row(versions, "llama-cpp-python", "not usable")
    else:
        row(versions, "llama-cpp-python", result.versions.llama_cpp_python)
        row(versions, "llama.cpp", result.versions.shown)
        if not result.versions.own:
            row(versions, "libllama", result.versions.library)
    if result.self_check is not None:
        row(versions, "self-check", _checked(result.self_check))
    described = current_table()
    predicted = f"llama.cpp {described.source.commit[:9]} (the table {described.reason})"
    row(versions, "predictions for", predicted)
    for name, installed in result.extras.items():
        row(
            versions,
            f"extra [{name}]",
            "installed" if installed else f'pip install "ggufrope[{name}]"',
        )
    out.print(versions)
    if result.versions is not None and not _matches(result):
        out.print(
            "The predictions were not made from the very llama.cpp that is installed, so they may "
            "be wrong. `ggufrope probe FILE` measures the rotation; docs/architectures.md says how "
            "to make a table of another llama.cpp.",
            style="yellow",
        )
    if result.devices:
        _show_devices(result)
    for card in result.cards:
        words = (
            card.capability and f"capability {card.capability}",
            card.cuda and f"driver runs CUDA {card.cuda}",
        )
        out.print(f"Card: {', '.join([shown(card.name), *filter(None, words)])}")
    if result.attention:
        _show_attention(result)
    if result.caches:
        _show_caches(result)
    if result.environment:
        out.print(heading("environment variables that change llama.cpp"))
    for name, what in result.environment.items():
        out.print(f"{shown(name)}: {what}")
    if result.advice:
        out.print(heading("advice"))
    for line in result.advice:
        out.print(shown(line))
    if result.install is not None:
        out.print(f"  $ {result.install}", style="cyan", soft_wrap=True)
    if result.wheel is not None:
        out.print(
            "or install a built wheel, where there is one of that version (it has the attention "
            "kernels of few cache types):"
        )
        out.print(f"  $ {result.wheel}", style="cyan", soft_wrap=True)


def _checked(check: SelfCheck) -> str:
    """Return what the self-check read, in a few words; the advice has the rest."""
    states = "unknown" if check.state_version is None else f"version {check.state_version}"
    if check.failure is not None:
        return f"failed; saved states: {states}"
    rotation = "as declared" if check.rotation_right else "DIFFERS"
    log = "read" if not check.unread else "partly read"
    return f"rotation {rotation}; saved states {states}; log {log}"


def _show_devices(result: RuntimeReport) -> None:
    from ggufrope._format import byte_column

    from ..output import console
    from ..tables import row, table

    unit, written = byte_column(device.memory_total for device in result.devices)
    numeric = [f"free, {unit}", f"total, {unit}"]
    devices = table("device", "kind", "description", *numeric, numeric=numeric)
    for device in result.devices:
        free = result.free_bytes.get(device.name, device.memory_free)
        cells = (device.name, device.kind, device.description, written(free))
        row(devices, *cells, written(device.memory_total))
    console().print(devices)
    console().print(f"GPU offload: {'yes' if result.can_offload else 'no'}")


def _show_attention(result: RuntimeReport) -> None:
    """Print how each device runs each pair of cache types: a line where all are alike."""
    from ..output import console
    from ..tables import row, shown, table

    out = console()
    seen: dict[str, str] = {}
    for device in dict.fromkeys(pair.device for pair in result.attention):
        runs = {
            (pair.type_k, pair.type_v): pair.runs
            for pair in result.attention
            if pair.device == device
        }
        if len(kinds := set(runs.values())) == 1:
            (only,) = kinds
            out.print(
                f"Attention on {shown(device)}, all pairs of K/V cache types: {_RUNS[only][1]}"
            )
            continue
        seen |= {_RUNS[kind][0]: _RUNS[kind][1] for kind in kinds}
        values = dict.fromkeys(v for _, v in runs)
        grid = table(f"{device}: K \\ V", *values)
        for k in dict.fromkeys(k for k, _ in runs):
            row(grid, k, *(_RUNS[runs[k, v]][0] for v in values))
        out.print(grid)
    for mark, meaning in seen.items():
        out.print(f"{mark}: {meaning}", style="dim")


def _show_caches(result: RuntimeReport) -> None:
    from ggufrope._format import byte_column

    from ..output import console
    from ..tables import row, table

    sizes = [each.cache.bytes_per_token for each in result.caches if each.cache is not None]
    unit, written = byte_column(sizes)
    column = f"{unit}/token"
    caches = table("KV cache", column, "runs", numeric=[column])
    for support in result.caches:
        verdict = "yes" if support.refusal is None else f"no: {support.refusal}"
        if support.refusal is None and support.falls_back is None:
            verdict = "yes; whether some operations fall back to the CPU is not known"
        if support.falls_back:
            verdict = "yes, but slow: some operations fall back to the CPU"
        cache = support.cache
        size = None if cache is None else written(cache.bytes_per_token)
        row(caches, support.type_k, size, verdict)
    console().print(caches)


def _matches(result: RuntimeReport) -> bool:
    """Whether the architecture table was made from the installed llama.cpp."""
    from ggufrope.rope.architectures import source

    if result.versions is None:
        return False
    commit = result.versions.commit.partition("-")[0]  # a package build calls itself "-dirty"
    return bool(commit) and source().commit.startswith(commit)
