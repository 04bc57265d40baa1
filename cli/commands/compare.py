"""`ggufrope compare`: the same tasks under several schemes, with nothing written."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from ..options import FileArgument, JsonOption, grouped
from ..options_run import RunOptions
from ..options_scaling import ScalingOptions


@grouped
def command(
    file: FileArgument, run: RunOptions, scaling: ScalingOptions, json: JsonOption = False
) -> None:
    """Run the same tasks under several schemes: --scaling none,linear,ntk,yarn."""
    from ggufrope.patching.request import SCHEMES, Scheme

    from ..running import carry_out
    from ..values import words

    names = words(scaling.scaling or "none,linear,ntk,yarn", "--scaling", SCHEMES)
    common = replace(scaling, scaling=None).request()
    requests = tuple(replace(common, scaling=cast("Scheme", name)) for name in names)
    carry_out(run.plan(file, requests), out=run.out, json=json)
