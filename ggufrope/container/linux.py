"""Linux file operations the standard library does not have: fallocate ranges and reflinks.

Numbers from the kernel's uapi headers (linux/falloc.h, linux/fs.h). Import this on Linux only.
Every function raises OSError as its system call does; EOPNOTSUPP means the file system cannot.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_COLLAPSE_RANGE = 0x08
_INSERT_RANGE = 0x20
_FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range), 32 bytes


def insert_range(fd: int, offset: int, length: int) -> None:
    """Makes room: bytes from `offset` on move up by `length`. Whole file-system blocks only."""
    _fallocate(fd, _INSERT_RANGE, offset, length)


def collapse_range(fd: int, offset: int, length: int) -> None:
    """Takes bytes out: those behind move down by `length`. Whole file-system blocks only."""
    _fallocate(fd, _COLLAPSE_RANGE, offset, length)


def clone_range(source: int, source_offset: int, length: int, target: int, offset: int) -> None:
    """Shares blocks of one file with another. Whole blocks, or up to the end of the source."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, offset))


def insert_refusal(directory: Path, block: int) -> str | None:
    """Why files in `directory` cannot grow from within, or None: asked of a nameless file."""
    return _refusal(directory, block, lambda fd: insert_range(fd, 0, block))


def clone_refusal(directory: Path, block: int) -> str | None:
    """Why files in `directory` cannot share blocks, or None: asked of a nameless file."""
    return _refusal(directory, block, lambda fd: clone_range(fd, 0, block, fd, 2 * block))


def _refusal(directory: Path, block: int, attempt: Callable[[int], None]) -> str | None:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.pwrite(fd, bytes(2 * block), 0)
            attempt(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return f"the file system refuses: {error.strerror}"
    return None


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
