"""`ggufrope probe`: the rotation the installed runtime really applies."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import FileArgument, JsonOption, token_option


def command(
    file: FileArgument,
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context length to measure for; default: the file's."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure the rotation in every layer; exit 1 where it is not as predicted."""
    from ggufrope.patching.inspection import inspect
    from ggufrope.runtime import probe
    from ggufrope.runtime.model import Model

    from ..errors import CHECK_FAILED
    from ..files import model_path
    from ..output import emit_json
    from ..views import probe as view

    path = model_path(file)
    predicted = inspect(path, context_tokens=ctx)
    with Model.open(path, gpu_layers=0) as model:
        measured = probe.probe(model, context_tokens=ctx)
    agreement = None
    if predicted.effective is not None:
        agreement = probe.compare(measured, predicted.effective)
    if json:
        emit_json(view.payload(path, measured, agreement))
    else:
        view.show(measured, predicted.effective, agreement)
    if agreement is None or not agreement.agrees:
        raise typer.Exit(CHECK_FAILED)
