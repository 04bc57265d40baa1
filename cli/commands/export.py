"""`ggufrope export`: the same settings in the words of another tool."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from ..options import HeaderArgument, JsonOption, WholeOption, grouped, token_option
from ..options_scaling import ScalingOptions
from ..values import completion, tools


@grouped
def command(
    file: HeaderArgument,
    scaling: ScalingOptions,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TOOL",
            autocompletion=completion(tools),
            help="llama-server, llama-cpp-python, huggingface, vllm, sglang, ollama, lmstudio, "
            "koboldcpp or axolotl.",
        ),
    ],
    ctx: Annotated[
        int | None,
        token_option(
            "--ctx", "Context length to run at, in tokens (default: the file's, or --target-ctx)."
        ),
    ] = None,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Print RoPE settings for another tool.

    They are the file's own, or those of a scaling that is not in it.
    """
    from ggufrope._format import safe
    from ggufrope.errors import RequestError
    from ggufrope.patching.exporting import export_model
    from ggufrope.patching.inspection import naming

    from ..output import console, emit_json, stderr_console
    from ..tables import show_download
    from ..values import model_place, word

    request = scaling.request()
    if request.is_file and any(scaling.parameters.values()):
        raise RequestError("missing `scaling`: the other options of a scaling belong to it")
    tool = cast("Any", word(to, "--to", tools()))
    with model_place(file, whole=whole) as place, naming(place):
        exported = export_model(place, tool, request=request, context_tokens=ctx)
    if json:
        emit_json(
            {
                "tool": exported.tool,
                "text": exported.text,
                "inexpressible": exported.inexpressible,
                "notes": exported.notes,
            },
            place,
        )
        return
    console().print(safe(exported.text), soft_wrap=True)
    for sentence in exported.notes:
        stderr_console().print(safe(sentence), style="dim", soft_wrap=True)
    for sentence in exported.inexpressible:
        stderr_console().print(f"not expressed: {safe(sentence)}", style="yellow", soft_wrap=True)
    show_download(place, stderr_console())
