"""`ggufrope patch`: make a model reach further, at the cost of the change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import FileArgument, JsonOption, grouped
from ..options_scaling import ScalingOptions


@grouped
def command(
    file: FileArgument,
    scaling: ScalingOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Write the result to this new file."),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Edit the file itself; `undo` takes it back.")
    ] = False,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="overwrite, reserve, grow, clone or stream."),
    ] = None,
    reserve: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=0, help="Leave header space for later edits."),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="GUARD", help="Override a guard by its name; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, write nothing.")
    ] = False,
    hash_weights: Annotated[
        bool, typer.Option("--hash-weights", help="Hash the tensors of an in-place result too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write RoPE scaling into a file: to a copy, or in place."""
    from ggufrope.container.strategies import Strategy
    from ggufrope.errors import RequestError
    from ggufrope.patching.plan import apply, plan_patch

    from ..files import model_path
    from ..output import emit_json
    from ..progress import bytes_bar
    from ..values import strategy_named
    from ..views import patching as view

    if (output is None) is not in_place:
        raise RequestError("say where the result goes: -o OUT for a copy, or --in-place")
    plan = plan_patch(
        model_path(file),
        scaling.request(),
        output=output,
        strategy=strategy_named(strategy),
        force=force or (),
        reserve=reserve,
    )
    if not json:
        view.show_plan(plan)
    receipt = None
    if not dry_run:
        with bytes_bar("writing") as progress:
            hashed = hash_weights or plan.strategy is Strategy.STREAM
            receipt = apply(plan, hash_weights=hashed, progress=progress)
    if json:
        emit_json(view.payload(plan, receipt))
    elif receipt is None:
        view.show_dry_run(plan)
    else:
        view.show_receipt(receipt)
