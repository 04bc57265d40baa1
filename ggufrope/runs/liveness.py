"""Whether a worker is alive, told by a lock that the operating system drops when it dies.

Process ids come round again and heartbeats need clocks; a locked file needs neither: it is free
exactly when its holder is gone, however it went.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class LifeLine:
    """Held by a worker for as long as it lives: `folder`/`name`.alive, locked."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.alive"
        try:
            folder.mkdir(exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot create: {error.strerror}") from error
        _try_lock(self._descriptor)

    def __enter__(self) -> LifeLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go: the worker is no more."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the worker `name` still holds its life line."""
    try:
        descriptor = os.open(folder / f"{name}.alive", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)
