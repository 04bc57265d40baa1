"""The folder of a run: the lock of the one process that carries it out, and what others left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ggufrope._files import remove_abandoned, storage, try_lock
from ggufrope.errors import StorageError

DATABASE, PLAN, LOCK = RUN_FILES = ("run.sqlite", "plan.toml", "run.lock")
"""The files of a run."""
_PID_BYTES = 32


class FolderLock:
    """A run's folder, locked for this process until `close`, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder, made where it is missing.

        Raises StorageError where it cannot be written or another process has it.
        """
        self._folder = folder
        with storage("write a run in", folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = _lock(folder)

    def check(self) -> None:
        """Raise StorageError unless the folder is still there and nobody else has taken it.

        A lock is a file: whoever removes it lets another process have the folder. It is locked anew
        where nobody has.
        """
        with storage("write a run in", self._folder):
            if not self._is_in_place():
                renewed = _lock(self._folder)
                self.close()
                self._descriptor = renewed

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            found = (self._folder / LOCK).lstat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left in a run's folder, and working copies of theirs.

    The caller has the lock on the folder.
    """
    remove_abandoned()
    remove_abandoned(folder)
    with storage("write", folder):
        for leftover in (*folder.glob(f"{DATABASE}.building*"), *folder.glob(f".{PLAN}.*")):
            leftover.unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    """Return the open file that holds the lock on a folder. Raises OSError, StorageError."""
    path = folder / LOCK
    # The file is written to, so it must be nobody else's under this name.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        status = os.fstat(descriptor)
        regular = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not regular or status.st_size > _PID_BYTES:
            raise StorageError(
                f"{path} is not the lock of a run; remove it, or give another folder"
            )
        if try_lock(descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise StorageError(
        f"{folder}: another ggufrope process{_holder(path)} is running this folder; wait for it, "
        "or give another folder"
    )


def _holder(path: Path) -> str:
    """The process that has the lock, as it wrote it down; "" where that cannot be read."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (pid {text})" if text.isdecimal() else ""
