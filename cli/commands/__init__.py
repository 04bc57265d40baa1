"""One file per command: parse, one library call, and its own view."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from ..options import predicting

_PANELS = {
    "Look at a file": {
        "inspect": "ggufrope inspect model.gguf --ctx 32768",
        "check": "ggufrope check models/ --config config.json",
        "advise": "ggufrope advise model.gguf --target-ctx 65536 --memory 24GiB",
        "export": "ggufrope export model.gguf --to llama-server --scaling yarn --target-ctx 32k",
        "factors": "ggufrope factors model.gguf --export factors.json",
        "diff": "ggufrope diff model.gguf long.gguf",
        "verify": "ggufrope verify model.gguf long.gguf",
        "fetch": "ggufrope fetch hf:OWNER/REPO/model.gguf",
    },
    "Change a file": {
        "patch": "ggufrope patch model.gguf -o long.gguf --scaling yarn --target-ctx 32k",
        "undo": "ggufrope undo model.gguf",
    },
    "Measure a model": {
        "probe": "ggufrope probe long.gguf --ctx 32768",
        "validate": "ggufrope validate long.gguf --ctx 8k,16k,32k --kv f16,q8_0",
        "compare": "ggufrope compare model.gguf --ctx 8k,16k --scaling none,linear,ntk,yarn",
        "search": "ggufrope search model.gguf --target-ctx 16k --budget 2h",
        "run": "ggufrope run night.toml --dry-run",
        "report": "ggufrope report runs/night --html night.html --junit night.xml",
        "doctor": "ggufrope doctor --model model.gguf",
    },
}
"""The commands in the order of the help, by the names of their modules, each with an example."""
_WITHOUT_PREDICTIONS = {"verify", "undo", "report"}
COMMANDS = {name: panel for panel, examples in _PANELS.items() for name in examples}


class _Command(TyperCommand):
    """A command whose usage has its arguments as they are given, without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def register(app: typer.Typer, asked: str | None = None) -> None:
    """Add the commands to `app`: the one that `asked` names, else all."""
    for name in [asked] if asked in COMMANDS else COMMANDS:
        command = import_module(f".{name}", __name__).command
        app.command(
            name,
            cls=_Command,
            epilog=f"Example: {_PANELS[COMMANDS[name]][name]}",
            rich_help_panel=COMMANDS[name],
        )(command if name in _WITHOUT_PREDICTIONS else predicting(command))
