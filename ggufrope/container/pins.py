"""Files that a run measures with, pinned to their content: models, texts, templates and factors.

A file is pinned by its SHA-256 before anything is measured with it, together with what the
operating system says of it. While that stays the same the content is taken to be the same; where
it differs the file is read and hashed again. Every worker checks the pins of a job before it begins
and again before each result leaves it, and a search those of its model before it keeps a candidate,
so that neither mixes two contents of one file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ggufrope._files import sha256_of, storage
from ggufrope.container.shards import shard_paths
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

FileState: TypeAlias = tuple[int, ...]
"""Size, times, inode and device of a file; `()` for one that could not be read."""

_TICK_NS = 20_000_000
"""Longer than a tick of the clock that file systems write times with."""


class FileChangedError(StorageError):
    """A file is not the one that the results of a run were measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A file and its content. `sha256` is empty for a file that could not be read."""

    path: str
    sha256: str
    state: FileState


def file_state(path: Path) -> FileState:
    """Return what changes whenever a file is written or exchanged. Raises StorageError."""
    with storage("read", path):
        status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_size, *times, status.st_ino, status.st_dev


def pin(path: Path) -> Pin:
    """Return the pin of a file, whose whole content is read.

    Raises StorageError where it cannot be read, FileChangedError where it changes meanwhile.
    """
    state = file_state(path)
    # A file written in this tick of the clock could be written again with the same times.
    if abs(time.time_ns() - max(state[1:3])) < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        state = file_state(path)
    sha256 = sha256_of(path)
    if file_state(path) != state:
        raise FileChangedError(f"{path} changed while it was read; wait for what writes it")
    return Pin(path=str(path), sha256=sha256, state=state)


def model_paths(path: str) -> tuple[Path, ...]:
    """Return every file of the model whose only or first file is at `path`."""
    return shard_paths(Path(path))


def pin_model(path: str) -> tuple[Pin, ...]:
    """Return the pins of every file of a model; an empty one for a file that cannot be read.

    Raises FileChangedError where a file changes meanwhile.
    """
    pins = []
    for file in model_paths(path):
        try:
            pins.append(pin(file))
        except FileChangedError:
            raise
        except StorageError:
            pins.append(Pin(path=str(file), sha256="", state=()))
    return tuple(pins)


def renewed(found: Pin) -> Pin:
    """Return the pin of a file as it stands now, the same where nothing has touched it.

    Raises FileChangedError where its content is another, StorageError where it cannot be read.
    """
    path = Path(found.path)
    if file_state(path) == found.state:
        return found
    now = pin(path)
    if now.sha256 != found.sha256:
        raise FileChangedError(
            f"{path} has changed since this run began: its SHA-256 is {now.sha256[:16]}…, results "
            f"were measured with {found.sha256[:16] or 'none'}…; put that file back, or give "
            "another folder"
        )
    return now


class PinChecks:
    """The checks of one worker, which reads a file again only where it was touched."""

    def __init__(self) -> None:
        self._renewed: dict[Pin, Pin] = {}

    def check(self, pins: Iterable[Pin]) -> Path | None:
        """Return a file that was touched since the last check, None where none was.

        It has the same content again; what was read of it in between may have been another. Raises
        FileChangedError where a file has another content, StorageError where none.
        """
        touched = None
        for each in pins:
            before = self._renewed.get(each, each)
            self._renewed[each] = now = renewed(before)
            if now is not before:
                touched = Path(each.path)
        return touched
