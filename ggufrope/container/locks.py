"""One editor at a time: an advisory lock on the open file, gone when it is closed or killed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def lock(file: BinaryIO, path: Path, *, shared: bool = False) -> None:
    """Locks `file`, opened by `path`, for an editor, or `shared` for a reader that must not see it
    edited. Raises StorageError where another process is in the way.

    Without `fcntl` (Windows) nothing is locked: there an open file cannot be replaced anyway.
    """
    try:
        import fcntl
    except ImportError:
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"{path} is being edited by another ggufrope process; try again when it is done"
        ) from None
    # Between opening and locking, the editor that had the lock may have renamed another file here.
    if not same_file(file, path):
        raise StorageError(f"{path} was replaced a moment ago; try again")


def same_file(file: BinaryIO, path: Path) -> bool:
    """Whether `path` names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
