"""The FILE of a command as a path, with an interrupted edit of it repaired first."""

from __future__ import annotations

from pathlib import Path


def model_path(name: str) -> Path:
    """Locate the model called `name`; repair it, and say so, where an edit was interrupted."""
    from ggufrope.container import locate, recover

    path = locate(name)
    repaired = recover(path)
    if repaired is not None:
        from .output import talk
        from .text import safe

        talk().print(safe(repaired.message), style="yellow")
    return path
