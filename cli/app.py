"""The `ggufrope` command: one Typer app, one file per command under `commands/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from . import errors
from .commands import COMMANDS, register
from .errors import OptionError, run


def build(asked: str | None = None) -> typer.Typer:
    """Return the app with all its commands, or with the one that `asked` names.

    Typer makes the parameters of every command it has before it runs one, which takes longer than
    showing a header.
    """
    app = typer.Typer(
        name="ggufrope",
        help="Make a GGUF model reach further, prove that it did, and never break the file.",
        add_completion=asked not in {*COMMANDS, *_VERSION},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    register(app, asked if asked not in _VERSION else "diff")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    errors.own_process = arguments is None
    given = sys.argv[1:] if arguments is None else list(arguments)
    words = [word for word in given if word != _TRACEBACK]
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    name = words[0] if words else None

    def call() -> object:
        if any("\0" in word for word in words):
            raise OptionError("an argument has a NUL character, which no file or value has")
        for before, word in pairwise(("", *words)):
            if word == "" and before.startswith("-"):  # as an unset variable of a script
                raise OptionError(f"the value after {before} is empty: give one, or leave both out")
        if name is not None and _is_model(name):
            from ggufrope.patching.command import command_line

            # An address may have a password in it.
            said = "an address" if "://" in name else name
            meant = command_line("inspect", "ADDRESS" if "://" in name else name)
            raise OptionError(f"{said} is no command; did you mean `{meant}`?")
        return build(name)(args=words or ["--help"], prog_name="ggufrope", standalone_mode=False)

    code = run(call, flags=name != "run", traceback=_TRACEBACK in given)
    sys.exit(code if words else code or 2)


_TRACEBACK = "--traceback"
_VERSION = ("--version", "-V")


def _is_model(word: str) -> bool:
    """Return whether the word where a command belongs is the name of a model instead."""
    if word in COMMANDS or word.startswith("-"):
        return False
    return word.lower().endswith(".gguf") or ":" in word or "/" in word or Path(word).exists()


def _version(asked: bool) -> None:
    if asked:
        from ggufrope import __version__

        typer.echo(f"ggufrope {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(*_VERSION, callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="Show where an error is from; goes with any command.")
    ] = False,
) -> None:
    """Make a GGUF model reach further, prove that it did, and never break the file."""
