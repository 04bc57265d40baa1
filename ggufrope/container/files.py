"""Every file operation an edit performs, in one small class.

The store and the journal touch files through a `FileLayer` alone, so that a test can pass one that
fails, falls short or stops for good at the N-th operation, and see what is left on disk.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
        from ggufrope.container import linux

        return linux.insert_refusal(path.parent, self.block_size(path))

    def clone_refusal(self, path: Path) -> str | None:
        """Why files beside `path` cannot share blocks of a file there, or None where they can.

        macOS is taken at its word: APFS clones, and another file system refuses when asked to.
        """
        if sys.platform == "darwin":
            return None
        if sys.platform != "linux":
            return "this system shares no blocks between files"
        from ggufrope.container import linux

        return linux.clone_refusal(path.parent, self.block_size(path))

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        _require_linux()
        from ggufrope.container import linux

        linux.insert_range(file.fileno(), offset, length)

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        _require_linux()
        from ggufrope.container import linux

        linux.collapse_range(file.fileno(), offset, length)

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        _require_linux()
        from ggufrope.container import linux

        linux.clone_range(source.fileno(), source_offset, length, target.fileno(), offset)

    def clone_file(self, source: Path, target: Path) -> None:
        """Makes `target`, which must not exist, a file that shares all blocks of `source`."""
        if sys.platform != "darwin":
            raise OSError(errno.EOPNOTSUPP, "only macOS clones whole files")
        from ggufrope.container import macos

        macos.clone_file(source, target)


LOCAL = FileLayer()


def write_all(files: FileLayer, file: BinaryIO, offset: int, data: bytes) -> None:
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


@contextmanager
def storage(doing: str, path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into a StorageError that says what and where."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}") from error


def _require_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "only Linux has this operation")
