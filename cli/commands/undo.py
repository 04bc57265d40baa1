"""`ggufrope undo`: the last in-place edit, taken back bit for bit."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import FileArgument, JsonOption


def command(
    file: FileArgument,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="GUARD", help="Override a guard by its name; repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take the last in-place edit of a file back, bit for bit."""
    from ggufrope.container.recovery import undo

    from ..files import model_path
    from ..output import console, emit_json
    from ..progress import bytes_bar
    from ..views.parts import shown

    with bytes_bar("restoring") as progress:
        receipt = undo(model_path(file), force=force or (), progress=progress)
    if json:
        emit_json({"file": receipt.path, "file_size": receipt.header.file_size})
    else:
        console().print(f"{shown(receipt.path)} is again what it was before its last edit")
