"""The files a command is given: a model to read, repaired first where an edit of it was
interrupted, and a new file to write."""

from __future__ import annotations

from pathlib import Path


def model_path(name: str) -> Path:
    """Locate the model called `name`; repair it, and say so, where an edit was interrupted."""
    from ggufrope.container.location import locate
    from ggufrope.container.recovery import recover

    path = locate(name)
    repaired = recover(path)
    if repaired is not None:
        from .output import talk
        from .text import safe

        talk().print(safe(repaired.message), style="yellow")
    return path


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet."""
    from ggufrope._files import storage
    from ggufrope.errors import StorageError

    if path.exists():
        raise StorageError(f"{path} exists already; name a new file")
    with storage("write", path), path.open("xb") as file:
        file.write(data)
