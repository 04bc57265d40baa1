"""`ggufrope export`: the same settings in the words of another tool."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from ..options import FileArgument, JsonOption, token_option


def command(
    file: FileArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TOOL",
            help="llama-server, llama-cpp-python, huggingface, vllm, ollama, koboldcpp or axolotl.",
        ),
    ],
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context length to run at, in tokens (default: the file's)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the RoPE settings of a file for another tool, and what that tool cannot express."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.rope.export import export

    from ..output import console, emit_json, stderr_console
    from ..tables import shown
    from ..values import model_path

    metadata = read_model(model_path(file)).metadata
    exported = export(metadata, cast("Any", to), context_tokens=ctx)
    if json:
        emit_json(
            {"tool": exported.tool, "text": exported.text, "inexpressible": exported.inexpressible}
        )
        return
    console().print(exported.text, soft_wrap=True)
    for sentence in exported.inexpressible:
        stderr_console().print(f"not expressed: {shown(sentence)}", style="yellow")
