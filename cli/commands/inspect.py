"""`ggufrope inspect`: what a file says about RoPE, and what llama.cpp will do with it."""

from __future__ import annotations

from typing import Annotated

from ..options import FileArgument, JsonOption, token_option


def command(
    file: FileArgument,
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context length to predict for; default: the file's."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show declared and effective RoPE, and what is wrong with it."""
    from ggufrope.patching.inspection import inspect

    from ..files import model_path
    from ..output import emit_json
    from ..views import inspection as view

    inspection = inspect(model_path(file), context_tokens=ctx)
    if json:
        emit_json(view.payload(inspection))
    else:
        view.show(inspection)
