"""`ggufrope export`: the same settings in other tools' words."""

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
        token_option("--ctx", "Context length to run at; default: the file's."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say the file's RoPE settings in another tool's words, and what it cannot express."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.rope.export import export

    from ..files import model_path
    from ..output import console, emit_json, talk
    from ..views.parts import shown

    metadata = read_model(model_path(file)).metadata
    exported = export(metadata, cast("Any", to), context_tokens=ctx)
    if json:
        emit_json(
            {"tool": exported.tool, "text": exported.text, "inexpressible": exported.inexpressible}
        )
        return
    console().print(exported.text, soft_wrap=True)
    for sentence in exported.inexpressible:
        talk().print(f"not expressed: {shown(sentence)}", style="yellow")
