"""The `ggufrope` command: one Typer app, one file per command under `commands/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .commands import EXAMPLES, register
from .errors import OptionError, run


def build(asked: str | None = None) -> typer.Typer:
    """Return the app with all its commands, or with the one that `asked` names.

    Typer makes the parameters of every command it has before it runs one, which takes longer than
    showing a header.
    """
    app = typer.Typer(
        name="ggufrope",
        help="Make a GGUF model reach further, prove that it did, and never break the file.",
        no_args_is_help=True,
        add_completion=asked not in {*EXAMPLES, "--version"},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    register(app, asked)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = words[0] if words else None

    def call() -> None:
        if any("\0" in word for word in words):
            raise OptionError("an argument has a NUL character, which no file or value has")
        build(name)(args=words, prog_name="ggufrope", standalone_mode=True)

    sys.exit(run(call, flags=name != "run"))


def _version(asked: bool) -> None:
    if asked:
        from ggufrope import __version__

        typer.echo(f"ggufrope {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a GGUF model reach further, prove that it did, and never break the file."""
