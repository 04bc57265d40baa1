"""One editor at a time: an advisory lock on the open file, gone when it is closed or killed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def lock(file: BinaryIO, path: Path) -> None:
    """Takes the exclusive lock of `file`, or raises StorageError where another editor has it.

    Without `fcntl` (Windows) nothing is locked: there an open file cannot be replaced anyway.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"{path} is being edited by another ggufrope process; try again when it is done"
        ) from None


def same_file(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
