"""`ggufrope advise`: what to try, and whether it fits."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import FileArgument, JsonOption, token_option
from ..values import byte_count


def command(
    file: FileArgument,
    target_ctx: Annotated[
        int,
        token_option("--target-ctx", "Context to reach: 16384 or 16k."),
    ],
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory there is, e.g. 24GiB.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Rank the ways to a target context, with reasons, memory and the commands to run next."""
    from ggufrope.advice.advise import advise
    from ggufrope.patching.inspection import read_model

    from ..files import model_path
    from ..output import emit_json
    from ..views import advice as view

    model = read_model(model_path(file))
    advice = advise(
        model.header,
        model.metadata,
        target_context=target_ctx,
        memory_bytes=None if memory is None else byte_count(memory, "--memory"),
        file=file,
    )
    if json:
        emit_json(view.payload(advice))
    else:
        view.show(advice)
