"""Linux file operations the standard library does not have: fallocate ranges and reflinks.

Numbers from the kernel's uapi headers (linux/falloc.h, linux/fs.h). Import this on Linux only.
Every function raises OSError as its system call does; EOPNOTSUPP means the file system cannot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from ggufrope._files import storage
from ggufrope.errors import StorageError

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


# One editor at a time: an advisory lock on the open file, gone when it is closed or killed.


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


# The hidden files that stand beside a model while and after it is edited in place.
#
# .NAME.ggufrope-partial a new file that grows; worthless until it is renamed .NAME.ggufrope-record
# a journal that grows; likewise .NAME.ggufrope-journal an edit in progress, or one that was
# interrupted .NAME.ggufrope-undo the last finished edit
#
# Each has one name and not a random one, so that what a crash leaves is found and removed.


def partial_path(path: Path) -> Path:
    """Return the name of a new file while it grows."""
    return _sibling(path, "partial")


def record_path(path: Path) -> Path:
    """Return the name of a journal while it grows."""
    return _sibling(path, "record")


def journal_path(path: Path) -> Path:
    """Return the name of the journal of an edit in progress, or of one that was interrupted."""
    return _sibling(path, "journal")


def undo_path(path: Path) -> Path:
    """Return the name of the record of the last finished edit."""
    return _sibling(path, "undo")


def _sibling(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.ggufrope-{word}")


# The one file operation of macOS the standard library does not have: cloning a whole file.
#
# See clonefile(2). Import this on macOS only.


def clone_file(source: Path, target: Path) -> None:
    """Makes `target`, which must not exist, a copy that shares all blocks. Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).clonefile
    call.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32)
    if call(os.fsencode(source), os.fsencode(target), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Every file operation an edit performs, in one small class.
#
# The store and the journal touch files through a `FileLayer` alone, so that a test can pass one
# that fails, falls short or stops for good at the N-th operation, and see what is left on disk.

Mode: TypeAlias = Literal["rb", "r+b"]

COPY_CHUNK = 32 << 20
_BUFFER = 1 << 20

UNSUPPORTED = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EXDEV}
)
"""What a system call answers where the file system or the pair of files does not allow it."""


class RefusedError(Exception):
    """The system turned an operation down before anything changed: there is another way.

    It never leaves the store.
    """


class FileLayer:
    """The operating system's files. Offsets are absolute; nothing relies on a file position."""

    @property
    def clones_whole_files(self) -> bool:
        """Whether `clone_file` is to be used, and not `clone_range`."""
        return sys.platform == "darwin"

    def open(self, path: Path, mode: Mode) -> BinaryIO:
        return path.open(mode, buffering=0)

    def create(self, path: Path) -> BinaryIO:
        """Opens for reading and writing, creating the file, never through a link."""
        flags = os.O_RDWR | os.O_CREAT
        for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
            flags |= getattr(os, flag, 0)
        return os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)

    def read(self, file: BinaryIO, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        file.seek(offset)
        pieces = []
        while length and (piece := file.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> int:
        """Writes some of `data` and says how many bytes; `write_all` writes the rest."""
        file.seek(offset)
        return file.write(data)

    def resize(self, file: BinaryIO, size: int) -> None:
        file.truncate(size)

    def sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """Makes names in a directory durable. Windows has no such call, and needs none."""
        if os.name == "nt":
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def copy(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> int:
        """Copies some of `length` bytes between files, in the kernel where it can be, and says
        how many; 0 only at the end of the source."""
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(
                    source.fileno(), target.fileno(), length, source_offset, offset
                )
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        data = self.read(source, source_offset, min(length, _BUFFER))
        return self.write(target, offset, data) if data else 0

    def block_size(self, path: Path) -> int:
        """The unit in which ranges are inserted, collapsed and shared near `path`."""
        return os.statvfs(path.parent).f_bsize if hasattr(os, "statvfs") else 4096

    def free_bytes(self, path: Path) -> int:
        """What may still be written beside `path`."""
        if hasattr(os, "statvfs"):
            status = os.statvfs(path.parent)
            return status.f_bavail * status.f_frsize
        import shutil

        return shutil.disk_usage(path.parent).free

    def insert_refusal(self, path: Path) -> str | None:
        """Why the file at `path` cannot grow from within, or None where it can."""
        if sys.platform != "linux":
            return "only Linux has fallocate"

        return insert_refusal(path.parent, self.block_size(path))

    def clone_refusal(self, path: Path) -> str | None:
        """Why files beside `path` cannot share blocks of a file there, or None where they can.

        macOS is taken at its word: APFS clones, and another file system refuses when asked to.
        """
        if sys.platform == "darwin":
            return None
        if sys.platform != "linux":
            return "this system shares no blocks between files"

        return clone_refusal(path.parent, self.block_size(path))

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        _require_linux()

        insert_range(file.fileno(), offset, length)

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        _require_linux()

        collapse_range(file.fileno(), offset, length)

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        _require_linux()

        clone_range(source.fileno(), source_offset, length, target.fileno(), offset)

    def clone_file(self, source: Path, target: Path) -> None:
        """Makes `target`, which must not exist, a file that shares all blocks of `source`."""
        if sys.platform != "darwin":
            raise OSError(errno.EOPNOTSUPP, "only macOS clones whole files")

        clone_file(source, target)


LOCAL = FileLayer()


def write_all(files: FileLayer, file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset`, however little a call takes."""
    view = memoryview(data)
    while view:
        written = files.write(file, offset, view)
        if not written:
            raise OSError(errno.EIO, "the file takes no more bytes")
        view = view[written:]
        offset += written


def require_room(files: FileLayer, path: Path, needed: int) -> None:
    """Asks before writing, not during. Raises StorageError where `needed` bytes do not fit."""
    with storage("write beside", path):
        free = files.free_bytes(path)
    if free < needed:
        raise StorageError(
            f"{path.parent} has {free} bytes free, the edit needs {needed}; make room first"
        )


def _require_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "only Linux has this operation")
