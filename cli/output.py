"""Where output goes, and in what form: data on stdout, remarks on stderr, text made safe.

A string of a file must not move the cursor or pose as ours: whatever is shown goes through `safe`.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope._format import safe

if TYPE_CHECKING:
    from rich.console import Console

    from ggufrope.container.remote import Place

SCHEMA = 1
MARKS = {
    "✓": "+",
    "✕": "x",
    "✗": "x",
    "×": "x",
    "·": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "±": "+/-",
    "≥": ">=",
    "≤": "<=",
    "◀": "<",
    "′": "'",
    "²": "2",
    "₂": "2",
    "⌊": "[",
    "⌋": "]",
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
}
"""What stands for a mark of ours where the encoding of the output lacks it."""


def open_streams() -> None:
    """Lead the standard streams that the process was started without to nowhere.

    Else a model opened later gets the number of one, and what is written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def write_anything() -> None:
    """Let the output have characters that its encoding lacks: a mark of ours by what is in MARKS,
    any other as an escape. A terminal that says it has no columns has said nothing."""
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    codecs.register_error("ggufrope", _written_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ggufrope")


def _written_otherwise(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    texts = (
        MARKS.get(character) or character.encode("ascii", "backslashreplace").decode()
        for character in error.object[error.start : error.end]
    )
    return "".join(texts), error.end


@cache
def console() -> Console:
    """Return the console for data. Color and width follow the terminal; markup is off."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


@cache
def stderr_console() -> Console:
    """Return the console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def emit_json(payload: dict[str, Any], *places: Place) -> None:
    """Print the one object a `--json` call answers with; `remote` in it says how much was read of
    those of the files that are on a server."""
    from ggufrope._plain import decodable, encode

    remote = [
        {
            "file": str(place),
            "size": place.size,
            "bytes_read": place.bytes_read,
            "requests": place.requests,
        }
        for place in places
        if not isinstance(place, Path)
    ]
    payload |= {"remote": remote} if remote else {}
    answer = {"schema": SCHEMA} | decodable(encode(payload, nulls=True))
    json.dump(answer, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def one_line(text: str, limit: int = 60) -> str:
    """Return `safe` text on one line, cut at `limit` characters."""
    # Cut first: escaping 16 MiB takes seconds, and makes a text longer, never shorter.
    line = safe(text[: limit + 1]).replace("\n", "\\n")
    return line if len(line) <= limit else line[: limit - 1] + "…"
