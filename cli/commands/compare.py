"""`ggufrope compare`: the same tasks under several schemes, with nothing written."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..options import JsonOption, ServedFileArgument, grouped
from ..options_run import GridsOption, RunOptions
from ..options_scaling import ScalingOptions
from ..values import completion, schemes, word

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

    --scaling names several, with factors of their own where they have them: none,yarn,yarn-3x.

    Exit code 1: not all could be measured, or --require is not met.
    """
    from ..running import carry_out
    from ..showing import View

    served = run.server is not None and scaling.scaling is None
    requests = (scaling.request(),) if served else _requests(scaling, file)
    if require is not None:
        known: dict[str, str] = {each.scaling: each.name for each in reversed(requests)}
        known |= {each.name: each.name for each in requests}
        require = known[word(require, "--require", tuple(known))]
    view = View(json=json, grids=grids, gate=require is not None, flags=True)
    carry_out(run.plan(file, requests, require=require), view, out=run.out)


def _requests(scaling: ScalingOptions, file: str | None) -> tuple[ScalingRequest, ...]:
    """Return a request per scheme. The parameters given are those of the schemes: `none` and
    `file`, what these are compared with, have none. A name may have a factor of its own.

    Of a file that is scaled, and not by us, `none` has nothing to take back: it is `file`.
    """
    from ggufrope.patching.request import ScalingRequest

    asked = [_parted(each) for each in (scaling.scaling or "none,linear,ntk,yarn").split(",")]
    names = [word(name, "--scaling", ("file", *schemes())) for name, _ in asked]
    if "none" in names and len(names) > 1 and file is not None and _is_scaled(file):
        asked = [pair for pair, name in zip(asked, names, strict=True) if name != "file"]
        names = ["file" if name == "none" else name for name in names if name != "file"]
    given = replace(scaling, scaling=None).request()
    bare = set(names) & {"none", "file"} if set(names) - {"none", "file"} else set()
    requests = []
    for name, (_, factor) in zip(names, asked, strict=True):
        request = ScalingRequest(scaling="file") if name in bare else given
        scheme, own = cast("ScalingName", name), request.factor if factor is None else factor
        requests.append(replace(request, scaling=scheme, factor=own))
    return tuple(requests)


def _is_scaled(file: str) -> bool:
    from ggufrope.patching.inspection import read_model
    from ggufrope.rope.trained import declared_scaling

    from ..values import model_path

    metadata = read_model(model_path(file)).metadata
    return metadata.trained is None and declared_scaling(metadata) is not None


def _parted(text: str) -> tuple[str, float | None]:
    """Return the scheme and the factor of a name such as `yarn-3x`, which reports have."""
    found = re.fullmatch(r"\s*(.+)-(\d+(?:\.\d+)?)x\s*", text, re.IGNORECASE)
    return (text, None) if found is None else (found[1], float(found[2]))
