"""One file a command: parse, one library call, one view call."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import typer

from . import (
    advise,
    compare,
    diff,
    doctor,
    export,
    factors,
    inspect,
    patch,
    probe,
    report,
    run,
    search,
    undo,
    validate,
    verify,
)

_EXAMPLES: dict[str, tuple[ModuleType, str]] = {
    "inspect": (inspect, "ggufrope inspect model.gguf --ctx 32768"),
    "patch": (
        patch,
        "ggufrope patch model.gguf -o long.gguf --scaling yarn --target-ctx 32768",
    ),
    "undo": (undo, "ggufrope undo model.gguf"),
    "diff": (diff, "ggufrope diff model.gguf long.gguf"),
    "verify": (verify, "ggufrope verify model.gguf long.gguf"),
    "factors": (factors, "ggufrope factors model.gguf --export factors.json"),
    "probe": (probe, "ggufrope probe long.gguf --ctx 32768"),
    "advise": (advise, "ggufrope advise model.gguf --target-ctx 65536 --memory 24GiB"),
    "export": (export, "ggufrope export long.gguf --to llama-server"),
    "validate": (validate, "ggufrope validate long.gguf --ctx 8k,16k,32k --kv f16,q8_0"),
    "run": (run, "ggufrope run night.toml --dry-run"),
    "doctor": (doctor, "ggufrope doctor --model model.gguf"),
    "report": (report, "ggufrope report runs/night --html night.html --junit night.xml"),
    "search": (search, "ggufrope search model.gguf --target-ctx 16k --budget 2h"),
    "compare": (compare, "ggufrope compare model.gguf --ctx 8k,16k --scaling none,linear,ntk,yarn"),
}


def register(app: typer.Typer) -> None:
    """Give `app` every command, under the name of its module."""
    for name, (module, example) in _EXAMPLES.items():
        command: Callable[..., Any] = module.command
        app.command(name, epilog=f"Example: {example}")(command)
