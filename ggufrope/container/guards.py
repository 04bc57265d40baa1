"""Guards: what an edit in place could harm beside the file itself.

A link or a second name, a store that names files by their content, a process that has the file
open. Each guard has a name, by which a caller forces the edit all the same.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._files import model_status
from ggufrope.errors import GuardError, RequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A reason not to edit in place; `name` is what `force` takes to edit anyway."""

    name: str
    message: str


GUARDS = (
    "symlink", "hard-link", "ollama-store", "huggingface-cache", "read-only", "in-use", "exists",
    "changed",
)  # fmt: skip
"""Every name that `force` takes. "exists" guards an output file that exists already, "changed" an
undo of a file that may have been changed since the edit."""


def check_names(force: Collection[str]) -> None:
    """Raise RequestError for a name that no guard has."""
    for name in force:
        if name not in GUARDS:
            raise RequestError(f"unknown guard {name!r}; expected one of {', '.join(GUARDS)}")


def find_guards(path: str | os.PathLike[str]) -> tuple[Guard, ...]:
    """Return every guard against an in-place edit of the file at `path`.

    Whether another process uses the file is known on Linux only, and there only for processes that
    this user may inspect. Raises StorageError where the file does not exist.
    """
    path = Path(path)
    return tuple(_guards(path, model_status(path), ()))


def check_guards(
    path: str | os.PathLike[str],
    force: Collection[str] = (),
    *,
    instead: str = "write a copy (`output`), or ",
) -> None:
    """Raise GuardError for the first guard that `force` does not name.

    `instead` is what else the caller can do, in words that go before the rest. Raises RequestError
    where `force` has a name that is no guard's.
    """
    check_names(force)
    path = Path(path)
    for guard in _guards(path, model_status(path), force):
        raise GuardError(
            f"{guard.message}; {instead}pass `force` {guard.name!r} to change it all the same",
            guard=guard.name,
        )


def _guards(path: Path, status: os.stat_result, force: Collection[str]) -> Iterator[Guard]:
    """Yield the guards that `force` does not name; the dearest to find, "in-use", comes last."""
    for guard in _file_guards(path, status):
        if guard.name not in force:
            yield guard
    if "in-use" not in force and (users := _users(path.resolve(), status)):
        yield Guard(name="in-use", message=f"{path} is open in process {', '.join(users)}")


def _file_guards(path: Path, status: os.stat_result) -> Iterator[Guard]:
    """Yield the guards that the file itself shows."""
    real = path.resolve()
    if path.is_symlink():
        yield Guard(name="symlink", message=f"{path} is a link to {real} (name that file)")
    if status.st_nlink > 1:
        yield Guard(
            name="hard-link",
            message=f"{path} has {status.st_nlink} hard links: an edit inside the file changes "
            "them all, a new file in its place (strategies clone and stream) this one alone",
        )
    store = _content_store(real)
    if store is not None:
        yield store
    if not status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        yield Guard(name="read-only", message=f"{path} is read-only")


def _content_store(real: Path) -> Guard | None:
    """Return the guard of a store that names files by their content, which an edit would falsify.

    Ollama: `blobs/sha256-SHA`. Hugging Face: `models--OWNER--NAME/blobs/SHA`, or where there are no
    links the file itself in `models--OWNER--NAME/snapshots/COMMIT/`.
    """
    if real.parent.name == "blobs" and real.name.startswith(("sha256-", "sha256:")):
        return Guard(name="ollama-store", message=f"{real} is a blob of an Ollama store")
    parts = real.parts
    for folder, inside in pairwise(parts):
        if folder.startswith("models--") and inside in ("blobs", "snapshots"):
            return Guard(name="huggingface-cache", message=f"{real} is in a Hugging Face cache")
    return None


def _users(real: Path, status: os.stat_result) -> list[str]:
    """Return the processes that have the file open or mapped, as "PID (name)"."""
    if sys.platform != "linux" or _is_free(real, status):
        return []
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    marks = (f" {device} {status.st_ino} ".encode(), f" {real}\n".encode("utf-8", "replace"))
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (_has_open(process, status) or _has_mapped(process, marks)):
            found.append(f"{process.name} ({_name(process)})")
    return sorted(found)


def _is_free(real: Path, status: os.stat_result) -> bool:
    """Return whether nobody else has the file open or mapped, as far as the kernel says so at once.

    It leases a file for writing to its only user. That takes no time, and a look at every process
    does. Where no device is under the file system, another one may be, on which a mapping counts.
    """
    if sys.platform != "linux" or not os.major(status.st_dev):
        return False
    import fcntl

    try:
        descriptor = os.open(real, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Whoever opens the file meanwhile causes this signal, which nothing happens by.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)  # ends the lease
    return True


def _has_open(process: Path, status: os.stat_result) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.path.samestat(descriptor.stat(), status):
                return True
        except OSError:
            continue
    return False


def _has_mapped(process: Path, marks: Iterable[bytes]) -> bool:
    """Look for device and inode, and for the name: on btrfs, maps and stat differ in the device."""
    try:
        maps = (process / "maps").read_bytes()
    except OSError:
        return False
    return any(mark in maps for mark in marks)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"
