"""`ggufrope factors`: the factor arrays in a file, shown or extracted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import FileArgument, JsonOption


def command(
    file: FileArgument,
    export: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Write them to this .json, .csv or .npy file."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the RoPE factor tensors of a file, or extract them."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.patching.request import factor_format
    from ggufrope.rope.factors import format_factors

    from ..files import model_path, write_new
    from ..output import console, emit_json
    from ..views import factors as view

    tensors = read_model(model_path(file)).metadata.factor_tensors
    if export is not None:
        write_new(export, format_factors(view.factor_set(tensors), form=factor_format(export)))
    if json:
        emit_json(view.payload(tensors, export))
    else:
        view.show(tensors)
        if export is not None:
            console().print(f"written to {export}")
