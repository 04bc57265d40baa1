"""`ggufrope diff`: what two files say differently."""

from __future__ import annotations

from ..options import FileArgument, JsonOption, OtherFileArgument


def command(file: FileArgument, other: OtherFileArgument, json: JsonOption = False) -> None:
    """Show what differs between two files in metadata and tensors, not in tensor bytes."""
    from ggufrope.container.compare import diff

    from ..files import model_path
    from ..output import emit_json
    from ..views import difference as view

    found = diff(model_path(file), model_path(other))
    if json:
        emit_json(view.payload(found))
    else:
        view.show(found)
