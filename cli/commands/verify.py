"""`ggufrope verify`: whether two files hold the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ..options import FileArgument, JsonOption, OtherFileArgument

if TYPE_CHECKING:
    from ggufrope.container.compare import Verification


def command(file: FileArgument, other: OtherFileArgument, json: JsonOption = False) -> None:
    """Say whether two files hold the same weights, by hash.

    Exit code 1: a shared tensor differs, or none is shared.
    """
    from ggufrope.container.compare import verify

    from ..errors import CHECK_FAILED
    from ..output import emit_json
    from ..progress import bytes_bar
    from ..values import model_path

    with bytes_bar("hashing") as progress:
        verification = verify(model_path(file), model_path(other), progress=progress)
    if json:
        emit_json(payload(verification))
    else:
        show(verification)
    if verification.differing or not verification.old:
        raise typer.Exit(CHECK_FAILED)


def payload(verification: Verification) -> dict[str, Any]:
    """Return the JSON object of `verify`."""
    return {
        "same": bool(verification.old) and not verification.differing,
        "shared": len(verification.old),
        "differing": verification.differing,
        "only_first": verification.only_old,
        "only_second": verification.only_new,
    }


def show(verification: Verification) -> None:
    """Print the names of tensors that differ, and the conclusion."""
    from ..output import console
    from ..tables import shown

    out = console()
    for name in verification.differing:
        out.print(f"differs: {shown(name)}", style="bold red")
    sides = (("first", verification.only_old), ("second", verification.only_new))
    for which, names in sides:
        if names:
            out.print(f"only in the {which}: {shown(', '.join(names))}")
    count, differing = len(verification.old), len(verification.differing)
    if not count:
        out.print("the files share no tensor", style="bold red")
    elif differing:
        out.print(f"{differing} of {count} shared tensors differ", style="bold red")
    else:
        out.print(f"all {count} shared tensors have the same bytes", style="bold green")
