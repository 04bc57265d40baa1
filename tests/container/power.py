"""What a power cut may leave of a folder: a model of the disk behind the page cache.

`RecordingFiles` does its work and keeps a log. `disks` yields folders as they may be found when the
power fails after the first N operations of the log. Of a file, everything up to its last fsync is
there. Of what was written since, any part may be missing, each write whole or in sectors of 512
bytes, and each change of its size; such changes happen in order. Of the names, everything up to the
last fsync of the folder is there, and any part of what was changed since.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, BinaryIO

from tests.container.faults import CapableFiles, Stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SECTOR = 512
SUBSETS = 6
"""Of so many unsynced operations every subset is tried; of more, random ones."""
DRAWS = 12


@dataclass(frozen=True)
class Operation:
    """One operation that reaches the disk later: on the data of an inode, or on names."""

    kind: str
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    names: tuple[str, ...] = ()

    @property
    def changes_size(self) -> bool:
        return self.kind in ("resize", "insert", "collapse")


@dataclass
class Disk:
    """Names, and the bytes of each inode."""

    names: dict[str, int] = field(default_factory=dict)
    data: dict[int, bytearray] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Disk:
        paths = list(folder.iterdir())
        return cls(
            {path.name: path.stat().st_ino for path in paths},
            {path.stat().st_ino: bytearray(path.read_bytes()) for path in paths},
        )

    def copy(self) -> Disk:
        return Disk(dict(self.names), {key: bytearray(value) for key, value in self.data.items()})

    def files(self) -> dict[str, bytes]:
        return {name: bytes(self.data.get(inode, b"")) for name, inode in self.names.items()}

    def put(self, folder: Path) -> None:
        """Make the folder what the disk has."""
        for path in folder.iterdir():
            path.unlink()
        for name, data in self.files().items():
            (folder / name).write_bytes(data)

    def do(self, operation: Operation, sectors: random.Random | None = None) -> None:
        """Carry out an operation; with `sectors`, only some sectors of a write."""
        if operation.kind == "link":
            self.names[operation.names[0]] = operation.inode
        elif operation.kind == "rename":
            source, target = operation.names
            if source in self.names:
                self.names[target] = self.names.pop(source)
        elif operation.kind == "unlink":
            self.names.pop(operation.names[0], None)
        else:
            self._write(operation, sectors)

    def _write(self, operation: Operation, sectors: random.Random | None) -> None:
        data = self.data.setdefault(operation.inode, bytearray())
        at, length = operation.offset, len(operation.data)
        if operation.kind == "resize":
            del data[at:]
            data.extend(bytes(at - len(data)))
        elif operation.kind == "insert":
            data[at:at] = operation.data
        elif operation.kind == "collapse":
            del data[at : at + length]
        else:
            data.extend(bytes(max(at + length - len(data), 0)))
            for start in range(at - at % SECTOR, at + length, SECTOR):
                low, high = max(start, at), min(start + SECTOR, at + length)
                if sectors is None or sectors.random() < 0.5:
                    data[low:high] = operation.data[low - at : high - at]


class RecordingFiles(CapableFiles):
    """Files that keep a log of what they do, and of what was made durable.

    With `kill_after`, the process ends after that many operations, until `revive` is called.
    """

    def __init__(self, kill_after: int | None = None) -> None:
        self.log: list[Operation] = []
        self._kill_after = kill_after

    def revive(self) -> None:
        self._kill_after = None

    @property
    def _killed(self) -> bool:
        return self._kill_after is not None and len(self.log) >= self._kill_after

    def _note(self, operation: Operation) -> None:
        self.log.append(operation)
        self._live()

    def _live(self) -> None:
        if self._killed:
            raise Stop

    def create(self, path: Path) -> BinaryIO:
        self._live()
        file = super().create(path)
        try:
            self._note(Operation("link", inode=_inode(file), names=(path.name,)))
        except Stop:
            file.close()
            raise
        return file

    def read(self, file: BinaryIO, offset: int, length: int) -> bytes:
        self._live()
        return super().read(file, offset, length)

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> int:
        self._live()
        count = super().write(file, offset, data)
        self._note(Operation("write", _inode(file), offset, bytes(data[:count])))
        return count

    def copy(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> int:
        data = self.read(source, source_offset, min(length, 1 << 14))
        return self.write(target, offset, data) if data else 0

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        self.write(target, offset, self.read(source, source_offset, length))

    def resize(self, file: BinaryIO, size: int) -> None:
        self._live()
        super().resize(file, size)
        self._note(Operation("resize", _inode(file), size))

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        self._live()
        super().insert_range(file, offset, length)
        self._note(Operation("insert", _inode(file), offset, bytes(length)))

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        self._live()
        super().collapse_range(file, offset, length)
        self._note(Operation("collapse", _inode(file), offset, bytes(length)))

    def replace(self, source: Path, target: Path) -> None:
        self._live()
        super().replace(source, target)
        self._note(Operation("rename", names=(source.name, target.name)))

    def place(self, source: Path, target: Path) -> None:
        self._live()
        super().place(source, target)
        self._note(Operation("rename", names=(source.name, target.name)))

    def remove(self, path: Path) -> None:
        self._live()
        if path.exists():
            super().remove(path)
            self._note(Operation("unlink", names=(path.name,)))

    def sync(self, file: BinaryIO) -> None:
        self._live()
        self._note(Operation("fsync", _inode(file)))

    def sync_directory(self, path: Path) -> None:
        self._live()
        self._note(Operation("sync names"))


def disks(start: Disk, log: list[Operation], chance: random.Random) -> Iterator[tuple[int, Disk]]:
    """Yield (operations done, disk) for every prefix of a log and what of it may be missing."""
    for done in range(len(log) + 1):
        durable, names, data = _split(log[:done])
        base = start.copy()
        for operation in durable:
            base.do(operation)
        for kept in _subsets(names, chance):
            disk = base.copy()
            for operation in kept:
                disk.do(operation)
            for operation in _reached(data, chance):
                torn = operation.kind == "write" and chance.random() < 0.5
                disk.do(operation, chance if torn else None)
            yield done, disk


def _split(
    log: list[Operation],
) -> tuple[list[Operation], list[Operation], list[Operation]]:
    """Return what is durable, and what is not: of names, and of data."""
    synced = {each.inode: at for at, each in enumerate(log) if each.kind == "fsync"}
    named = max((at for at, each in enumerate(log) if each.kind == "sync names"), default=-1)
    durable: list[Operation] = []
    names: list[Operation] = []
    data: list[Operation] = []
    for at, operation in enumerate(log):
        if operation.kind in ("fsync", "sync names"):
            continue
        if operation.names:
            (durable if at < named else names).append(operation)
        else:
            (durable if at < synced.get(operation.inode, -1) else data).append(operation)
    return durable, names, data


def _subsets(operations: list[Operation], chance: random.Random) -> Iterable[list[Operation]]:
    if len(operations) <= SUBSETS:
        for choice in product((True, False), repeat=len(operations)):
            # Several times each, as chance decides what of the data is there.
            for _ in range(DRAWS):
                yield [each for each, kept in zip(operations, choice, strict=True) if kept]
        return
    for _ in range(DRAWS):
        yield [each for each in operations if chance.random() < 0.5]


def _reached(operations: list[Operation], chance: random.Random) -> Iterator[Operation]:
    """Yield a random part of unsynced data; of changes of a size, the first few of each file."""
    share = chance.choice((0.0, 0.3, 0.7, 1.0))
    stopped: set[int] = set()
    for operation in operations:
        if operation.changes_size and operation.inode not in stopped and chance.random() > share:
            stopped.add(operation.inode)
        if operation.inode not in stopped if operation.changes_size else chance.random() < share:
            yield operation


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
