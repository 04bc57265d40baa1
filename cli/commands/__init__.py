"""One file a command: parse, one library call, one view call."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import typer

from . import inspect, patch

_EXAMPLES: dict[str, tuple[ModuleType, str]] = {
    "inspect": (inspect, "ggufrope inspect model.gguf --ctx 32768"),
    "patch": (
        patch,
        "ggufrope patch model.gguf -o long.gguf --scaling yarn --target-ctx 32768",
    ),
}


def register(app: typer.Typer) -> None:
    """Give `app` every command, under the name of its module."""
    for name, (module, example) in _EXAMPLES.items():
        command: Callable[..., Any] = module.command
        app.command(name, epilog=f"Example: {example}")(command)
