"""File layers that fail on purpose, and one that offers on any disk what only some can do."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING, BinaryIO

from ggufrope.container.filesystem import FileLayer

if TYPE_CHECKING:
    from pathlib import Path


class Stop(BaseException):
    """The process has ended: nothing that it would have done afterwards happens."""


class CapableFiles(FileLayer):
    """Files whose ranges are inserted, removed and shared by copying, in blocks of 4096 bytes.

    Syncing does nothing: these tests take the page cache for the disk, which is faster.
    """

    def sync(self, file: BinaryIO) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass

    def block_size(self, path: Path) -> int:
        return 4096

    def insert_refusal(self, path: Path) -> str | None:
        return None

    def clone_refusal(self, path: Path) -> str | None:
        return None

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        tail = self._tail(file, offset, length)
        os.pwrite(file.fileno(), bytes(length) + tail, offset)

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        tail = self._tail(file, offset, length)
        os.pwrite(file.fileno(), tail[length:], offset)
        os.ftruncate(file.fileno(), offset + len(tail) - length)

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        assert (source_offset | offset | length) % 4096 == 0
        data = os.pread(source.fileno(), length, source_offset)
        assert len(data) == length
        os.pwrite(target.fileno(), data, offset)

    def _tail(self, file: BinaryIO, offset: int, length: int) -> bytes:
        size = os.fstat(file.fileno()).st_size
        assert (offset | length) % 4096 == 0
        assert offset < size
        return os.pread(file.fileno(), size - offset, offset)


class CloningFiles(CapableFiles):
    """Files that are cloned whole, as on macOS; a plain copy stands for shared blocks."""

    def insert_refusal(self, path: Path) -> str | None:
        return "not on this system"

    @property
    def clones_whole_files(self) -> bool:
        return True

    def clone_file(self, source: Path, target: Path) -> None:
        with target.open("xb") as file:
            file.write(source.read_bytes())


class FaultyFiles(CapableFiles):
    """Files that work until operation number `at`, counted from 0.

    `fail`: that one fails with an I/O error. `short`: it does half of its work, then fails.
    `stop`: the process ends before it. `torn`: it does half, then the process ends.
    `power`: the power fails; of all that was not synced, a random part never reached the disk.
    """

    def __init__(self, mode: str, at: int, seed: int = 0) -> None:
        self.mode, self.at, self.seen = mode, at, 0
        self._stopped = False
        self._random = random.Random(seed)
        self._unsynced: list[tuple[int, int, int, bytes]] = []

    @property
    def struck(self) -> bool:
        return self.seen > self.at

    def _step(self, half: bool = False) -> bool:
        """Count an operation; return True if half of it is to be done before it fails."""
        if self._stopped:
            raise Stop
        self.seen += 1
        if self.seen - 1 != self.at:
            return False
        if half and self.mode in ("short", "torn", "power"):
            return True
        self._strike()
        return False

    def _strike(self) -> None:
        if self.mode in ("fail", "short"):
            raise OSError(errno.EIO, "Input/output error")
        self._stopped = True
        if self.mode == "power":
            self._lose()
        raise Stop

    def _lose(self) -> None:
        for fd, _, offset, old in reversed(self._unsynced):
            if offset < os.fstat(fd).st_size and self._random.random() < 0.5:
                os.pwrite(fd, old, offset)
            os.close(fd)
        self._unsynced.clear()

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> int:
        half = self._step(half=True)
        piece = data[: len(data) // 2] if half else data
        if self.mode == "power":
            fd = os.dup(file.fileno())
            old = os.pread(fd, len(piece), offset)
            inode = os.fstat(fd).st_ino
            self._unsynced.append((fd, inode, offset, old + bytes(len(piece) - len(old))))
        written = super().write(file, offset, piece)
        if half:
            self._strike()
        return written

    def copy(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> int:
        half = self._step(half=True)
        copied = super().copy(
            source, source_offset, length // 2 if half else length, target, offset
        )
        if half:
            self._strike()
        return copied

    def allocate(self, file: BinaryIO, size: int) -> None:
        self._step()
        super().allocate(file, size)

    def sync(self, file: BinaryIO) -> None:
        self._step()
        super().sync(file)
        inode = os.fstat(file.fileno()).st_ino
        for fd, *_ in (entry for entry in self._unsynced if entry[1] == inode):
            os.close(fd)
        self._unsynced = [entry for entry in self._unsynced if entry[1] != inode]

    def close(self) -> None:
        for fd, *_ in self._unsynced:
            os.close(fd)
        self._unsynced.clear()

    def open(self, path: Path, mode: object) -> BinaryIO:
        self._step()
        return super().open(path, mode)  # type: ignore[arg-type]

    def create(self, path: Path) -> BinaryIO:
        self._step()
        return super().create(path)

    def resize(self, file: BinaryIO, size: int) -> None:
        self._step()
        super().resize(file, size)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def place(self, source: Path, target: Path) -> None:
        self._step()
        super().place(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        self._step()
        super().insert_range(file, offset, length)

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        self._step()
        super().collapse_range(file, offset, length)

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        self._step()
        super().clone_range(source, source_offset, length, target, offset)

    def clone_file(self, source: Path, target: Path) -> None:
        self._step()
        super().clone_file(source, target)

    def read(self, file: BinaryIO, offset: int, length: int) -> bytes:
        if self._stopped:
            raise Stop
        return super().read(file, offset, length)


class WindowsFiles(FaultyFiles):
    """Files as on Windows: no name of an open file changes or goes, a file that is open for reading
    cannot be synced, there are no locks, and neither insertion nor shared blocks."""

    def __init__(self, mode: str = "fail", at: int = 1 << 30) -> None:
        super().__init__(mode, at)
        self._opened: list[BinaryIO] = []

    def insert_refusal(self, path: Path) -> str | None:
        return "not on this system"

    def clone_refusal(self, path: Path) -> str | None:
        return "not on this system"

    def try_lock(self, file: BinaryIO, *, shared: bool) -> bool:
        return True

    def open(self, path: Path, mode: object) -> BinaryIO:
        self._opened.append(super().open(path, mode))
        return self._opened[-1]

    def create(self, path: Path) -> BinaryIO:
        self._opened.append(super().create(path))
        return self._opened[-1]

    def release(self, *opened: BinaryIO) -> None:
        for file in opened:
            file.close()

    def sync(self, file: BinaryIO) -> None:
        if not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._require_closed(source, target)
        super().replace(source, target)

    def place(self, source: Path, target: Path) -> None:
        self._require_closed(source, target)
        super().place(source, target)

    def remove(self, path: Path) -> None:
        self._require_closed(path)
        super().remove(path)

    def _require_closed(self, *paths: Path) -> None:
        for path in (each for each in paths if each.exists()):
            for file in (each for each in self._opened if not each.closed):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    raise PermissionError(errno.EACCES, "The process cannot access the file", path)
