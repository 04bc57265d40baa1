"""The `ggufrope` command: one Typer app, one file a command under `commands/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .commands import register
from .errors import run

app = typer.Typer(
    name="ggufrope",
    help="Make a GGUF model reach further, prove that it did, and never break the file.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(app)


def _version(asked: bool) -> None:
    if asked:
        from ggufrope import __version__

        typer.echo(f"ggufrope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command's name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(lambda: app(args=arguments, prog_name="ggufrope", standalone_mode=True)))
