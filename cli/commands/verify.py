"""`ggufrope verify`: whether two files hold the same weights."""

from __future__ import annotations

import typer

from ..options import FileArgument, JsonOption, OtherFileArgument


def command(file: FileArgument, other: OtherFileArgument, json: JsonOption = False) -> None:
    """Hash the tensors two files share; exit 1 unless all their bytes are equal."""
    from ggufrope.container.compare import verify

    from ..errors import CHECK_FAILED
    from ..files import model_path
    from ..output import emit_json
    from ..progress import bytes_bar
    from ..views import difference as view

    with bytes_bar("hashing") as progress:
        found = verify(model_path(file), model_path(other), progress=progress)
    if json:
        emit_json(view.verification_payload(found))
    else:
        view.show_verification(found)
    if found.differing or not found.old:
        raise typer.Exit(CHECK_FAILED)
