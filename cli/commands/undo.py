"""`ggufrope undo`: restore a file to its state before the last in-place edit."""

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
    """Undo the last in-place edit of a file, bit for bit."""
    from ggufrope.container.recovery import undo

    from ..output import console, emit_json
    from ..progress import bytes_bar
    from ..tables import shown_path
    from ..values import model_path

    with bytes_bar("restoring") as progress:
        receipt = undo(model_path(file), force=force or (), progress=progress)
    if json:
        emit_json({"file": receipt.path, "file_size": receipt.header.file_size})
    else:
        restored = (
            f"Restored {shown_path(receipt.path)} to its state before the last in-place edit."
        )
        console().print(restored, soft_wrap=True)
