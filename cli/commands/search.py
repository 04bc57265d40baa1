"""`ggufrope search`: find factors that reach further than the known schemes do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import FileArgument, JsonOption, grouped
from ..options_search import SearchOptions


@grouped
def command(
    file: FileArgument,
    search: SearchOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder that keeps every candidate and the best; the same call resumes.",
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", metavar="DIR", help="Where working files go for the time."),
    ] = None,
    kv: Annotated[str, typer.Option("--kv", metavar="TYPE", help="Cache type, K or K/V.")] = "f16",
    gpu_layers: Annotated[
        str, typer.Option("--gpu-layers", metavar="N", help="Layers on the GPU: all or a number.")
    ] = "all",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Threads; default: every CPU."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search RoPE factors, or YaRN's parameters, for a longer context; nothing is retrained."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.runs.plan import KvTypes
    from ggufrope.search.session import run_search

    from ..files import model_path
    from ..output import emit_json
    from ..searching import LlamaRuntime, SearchBoard
    from ..values import layers
    from ..views import search as view

    model = read_model(model_path(file))
    plan = search.plan()
    types = KvTypes.parse(kv)
    runtime = LlamaRuntime(
        gpu_layers=layers(gpu_layers), type_k=types.k, type_v=types.v, threads=threads
    )
    folder = out or Path(f"{model.path.stem}-search-{plan.target_context}")
    with SearchBoard() as board, view.interruption(folder):
        result = run_search(
            model,
            plan,
            runtime,
            folder=folder,
            working=work_dir,
            settings={"type_k": runtime.type_k, "type_v": runtime.type_v},
            watch=board.watch,
        )
    if json:
        emit_json(view.payload(result))
    else:
        view.show(result, folder)
