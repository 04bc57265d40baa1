"""`ggufrope run`: a batch of models, schemes, lengths and cache types, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import JsonOption


def command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN.toml", help="The plan.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the run; default: runs/NAME."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=PATTERN",
            help="Do only jobs whose model, scaling, kv, task or seed matches; repeatable.",
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do the I-th of N shares, for CI.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed jobs again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the matrix with its cost, do nothing.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Carry it out on Ray: RAY_ADDRESS, or this machine.")
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(metavar="TOKENS/S", help="Prefill speed to estimate the time with."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Carry out a plan, each job in a process of its own; the same call resumes it."""
    from ggufrope.runs.jobs import Selection
    from ggufrope.runs.plan import read_plan

    from .. import running
    from ..views import batch

    wanted = read_plan(plan)
    selection = Selection.parse(tuple(only or ()), shard)
    if dry_run:
        batch.show_matrix(running.matrix(wanted, selection, tokens_per_second=speed), json=json)
        return
    folder = out or Path("runs") / wanted.name
    running.carry_out_batch(
        wanted, folder, selection=selection, retry_failed=retry_failed, ray=ray, json=json
    )
