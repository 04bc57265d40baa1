"""`ggufrope run`: a batch of models, schemes, lengths and cache types, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import RPC_HELP, JsonOption, LlamaLibOption
from ..options_run import GridsOption

if TYPE_CHECKING:
    from ggufrope.runs.estimate import JobEstimate


def command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN.toml", help="The plan, a TOML file.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the run; default: runs/NAME."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=PATTERN",
            help="Run only jobs whose model, scaling, kv, task or seed matches; repeatable.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Run the I-th of N shares of the jobs, for CI."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed jobs again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the jobs and their cost, run nothing.")
    ] = False,
    rpc: Annotated[
        str | None,
        typer.Option("--rpc", metavar="HOST:PORT,…", help=f"{RPC_HELP} Default: the plan's."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on Ray: the cluster at RAY_ADDRESS, or this machine.")
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(metavar="TOKENS/S", help="Prefill speed, for the estimate of the time."),
    ] = None,
    llama_lib: LlamaLibOption = None,
    grids: GridsOption = False,
    json: JsonOption = False,
) -> None:
    """Run a plan of many measurements; the same command resumes it.

    Each job has its own process. Exit code 1: a check fails or is undecided.
    """
    from ggufrope.runs.jobs import Selection
    from ggufrope.runs.plan import read_plan

    from ..running import carry_out_batch
    from ..showing import View
    from ..start import estimate_jobs
    from ..values import llama_lib as folder_of_llama
    from ..values import servers

    wanted = read_plan(plan)
    if wanted.runtime.server is None or llama_lib is not None:
        named = folder_of_llama(llama_lib, wanted.runtime.llama_lib)
        wanted = replace(wanted, runtime=replace(wanted.runtime, llama_lib=named))
    if rpc is not None:
        wanted = replace(wanted, runtime=replace(wanted.runtime, rpc=servers(rpc)))
    selection = Selection.parse(tuple(only or ()), shard)
    if dry_run:
        show_jobs(estimate_jobs(wanted, selection, tokens_per_second=speed), json=json)
        return
    folder = out or Path("runs") / wanted.folder_name
    carry_out_batch(
        wanted,
        View(json=json, grids=grids),
        folder=folder,
        selection=selection,
        retry_failed=retry_failed,
        ray=ray,
    )


def show_jobs(jobs: tuple[JobEstimate, ...], *, json: bool) -> None:
    """Print one row per job, and the sums."""
    from ggufrope._format import byte_column, duration

    from ..output import console, emit_json
    from ..tables import row, table

    seconds = [job.seconds for job in jobs if job.seconds is not None]
    tokens = sum(job.tokens for job in jobs)
    if json:
        emit_json(
            {
                "jobs": [
                    {
                        "id": entry.job.id,
                        "label": entry.job.label,
                        "cells": len(entry.job.cells),
                        "tokens": entry.tokens,
                        "memory_bytes": entry.memory_bytes,
                        "seconds": entry.seconds,
                    }
                    for entry in jobs
                ],
                "tokens": tokens,
                "seconds": sum(seconds) if seconds else None,
            }
        )
        return
    total = f"{len(jobs)} job{'s' * (len(jobs) != 1)}, at most {tokens:,} tokens"
    total += f", {duration(sum(seconds))} on one worker" if seconds else ""
    out = console()
    out.print(f"{total}; nothing run")
    needs = [entry.memory_bytes for entry in jobs if entry.memory_bytes is not None]
    unit, size = byte_column(needs)
    columns = ("job", "cells", "tokens", f"memory, {unit}", *(("time",) if seconds else ()))
    made = table(*columns, numeric=columns[1:])
    for entry in jobs:
        memory = None if entry.memory_bytes is None else size(entry.memory_bytes)
        cells = (entry.job.label, len(entry.job.cells), f"{entry.tokens:,}", memory)
        row(made, *cells, *(() if entry.seconds is None else (duration(entry.seconds),)))
    out.print(made)
    if not seconds:
        out.print("--speed N, the prefill speed in tokens per second, adds the time.", style="dim")
