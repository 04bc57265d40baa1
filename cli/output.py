"""Where output goes: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1


@cache
def console() -> Console:
    """The console for data. Color and width follow the terminal; nothing is parsed as markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


@cache
def talk() -> Console:
    """The console for progress and remarks, on stderr."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def emit_json(payload: dict[str, Any]) -> None:
    """Print the one object a `--json` call answers with."""
    from ggufrope._plain import encode

    answer = {"schema": SCHEMA} | encode(payload, nulls=True)
    json.dump(answer, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
