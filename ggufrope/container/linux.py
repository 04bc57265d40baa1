"""Linux file operations the standard library does not have: fallocate ranges and reflinks.

Numbers from the kernel's uapi headers (linux/falloc.h, linux/fs.h). Import this on Linux only.
Every function raises OSError as its system call does; EOPNOTSUPP means the file system cannot.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

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


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
