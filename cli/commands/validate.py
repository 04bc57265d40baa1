"""`ggufrope validate`: measure a model at its target lengths, and judge it."""

from __future__ import annotations

from ..errors import OptionError
from ..options import JsonOption, ServedFileArgument, grouped
from ..options_run import GridsOption, RunOptions
from ..options_scaling import ScalingOptions


@grouped
def command(
    run: RunOptions,
    scaling: ScalingOptions,
    file: ServedFileArgument = None,
    grids: GridsOption = False,
    json: JsonOption = False,
) -> None:
    """Measure recall, quality and cache types, and judge them.

    Exit code 1: a check fails or is undecided.
    """
    from ..running import carry_out
    from ..showing import View

    if "," in (scaling.scaling or ""):
        raise OptionError(f"--scaling {scaling.scaling}: for several schemes use `compare`")
    view = View(json=json, grids=grids, flags=True)
    carry_out(run.plan(file, (scaling.request(),)), view, out=run.out)
