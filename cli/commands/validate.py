"""`ggufrope validate`: measure a model at its target lengths, and judge it."""

from __future__ import annotations

from ..options import FileArgument, JsonOption, grouped
from ..options_run import RunOptions
from ..options_scaling import ScalingOptions


@grouped
def command(
    file: FileArgument, run: RunOptions, scaling: ScalingOptions, json: JsonOption = False
) -> None:
    """Measure recall, quality and cache types at target lengths; exit 1 if a check fails."""
    from ..running import carry_out

    carry_out(run.plan(file, (scaling.request(),)), out=run.out, json=json)
