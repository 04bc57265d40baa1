"""`ggufrope compare`: the same tasks under several schemes, with nothing written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..options import JsonOption, ServedFileArgument, grouped
from ..options_run import GridsOption, RunOptions
from ..options_scaling import ScalingOptions
from ..values import completion, schemes, word, words

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingName, ScalingRequest


@grouped
def command(
    run: RunOptions,
    scaling: ScalingOptions,
    file: ServedFileArgument = None,
    require: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help="Exit 1 unless this scheme passes every check, up to the longest context.",
            rich_help_panel="Verdict",
            autocompletion=completion(schemes),
        ),
    ] = None,
    grids: GridsOption = False,
    json: JsonOption = False,
) -> None:
    """Say which scheme holds to which length; nothing is written. With --server: which model.

    Exit code 1: not all could be measured, or --require is not met.
    """
    from ..running import carry_out
    from ..showing import View

    served = run.server is not None and scaling.scaling is None
    requests = (scaling.request(),) if served else _requests(scaling)
    if require is not None:
        require = word(require, "--require", [request.scaling for request in requests])
    view = View(json=json, grids=grids, gate=require is not None, flags=True)
    carry_out(run.plan(file, requests, require=require), view, out=run.out)


def _requests(scaling: ScalingOptions) -> tuple[ScalingRequest, ...]:
    """Return a request per scheme. The parameters given are those of the schemes: `none` and
    `file`, what these are compared with, have none."""
    from ggufrope.patching.request import ScalingRequest

    asked = scaling.scaling or "none,linear,ntk,yarn"
    names = words(asked, "--scaling", ("file", *schemes()))
    given = replace(scaling, scaling=None).request()
    bare = set(names) & {"none", "file"} if set(names) - {"none", "file"} else set()
    return tuple(
        ScalingRequest(scaling=cast("ScalingName", name))
        if name in bare
        else replace(given, scaling=cast("ScalingName", name))
        for name in names
    )
