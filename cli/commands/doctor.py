"""`ggufrope doctor`: what is installed, what it can do, and how to get what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import JsonOption


def command(
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also try every cache type on this model."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show versions and devices, what this build can offload, and which cache types it can run."""
    from ggufrope.runtime.doctor import report
    from ggufrope.runtime.model import Model

    from ..files import model_path
    from ..output import emit_json
    from ..views import doctor as view

    if not json:
        view.show_ggufrope()
    if model is None:
        found = report()
    else:
        with Model.open(model_path(model)) as loaded:
            found = report(loaded)
    if json:
        emit_json(view.payload(found))
    else:
        view.show(found)
