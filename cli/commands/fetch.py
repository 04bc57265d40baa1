"""`ggufrope fetch`: a model of the Hugging Face Hub, brought into its cache."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import JsonOption


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="hf:OWNER/REPO/FILE, or with @REV behind it; of a split model its first file.",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Download a model of the Hugging Face Hub into its cache, where every command finds it.

    A download that was interrupted goes on. The file there is not to be edited: `patch -o` copies.
    """
    from ggufrope._files import model_status
    from ggufrope._format import byte_size
    from ggufrope.container.hub import fetch

    from ..output import console, emit_json
    from ..progress import plain_lines
    from ..tables import shown

    with plain_lines(lambda: f"fetching {name}"):
        paths = fetch(name)
    size = sum(model_status(path).st_size for path in paths)
    if json:
        emit_json({"name": name, "files": paths, "bytes": size})
        return
    for path in paths:
        console().print(shown(path), soft_wrap=True)
    console().print(
        f"{byte_size(size)}; `ggufrope inspect {shown(name)}` finds it.", soft_wrap=True
    )
