"""What an edit in place could harm beside the file itself."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A reason not to edit in place; `name` is what force takes to do it all the same."""

    name: str
    message: str


GUARDS = (
    "symlink", "hard-link", "ollama-store", "huggingface-cache", "read-only", "in-use", "exists",
)  # fmt: skip
"""Every name that force takes; "exists" stands before an output that is already there."""


def check_names(force: Collection[str]) -> None:
    """Raises RequestError for a name that no guard has."""
    for name in force:
        if name not in GUARDS:
            raise RequestError(f"no guard is called {name!r}: expected one of {', '.join(GUARDS)}")


def find_guards(path: str | os.PathLike[str]) -> tuple[Guard, ...]:
    """Every guard that stands before an in-place edit of the file at `path`.

    Whether another process uses the file is known on Linux only, and there only of processes this
    user may look into. Raises StorageError where the file is not there.
    """
    path = Path(path)
    return tuple(_guards(path, _status(path), ()))


def check_guards(path: str | os.PathLike[str], force: Collection[str] = ()) -> None:
    """Raises GuardError for the first guard that `force` does not name, RequestError for a name of
    none."""
    check_names(force)
    path = Path(path)
    for guard in _guards(path, _status(path), force):
        raise GuardError(
            f"{guard.message}; write a new file, or force {guard.name!r}", guard=guard.name
        )


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _guards(path: Path, status: os.stat_result, force: Collection[str]) -> Iterator[Guard]:
    """The guards that `force` does not name; asking all processes is the expensive one."""
    for guard in _standing(path, status):
        if guard.name not in force:
            yield guard
    if "in-use" not in force and (users := _users(path.resolve(), status)):
        yield Guard(name="in-use", message=f"{path} is open in process {', '.join(users)}")


def _standing(path: Path, status: os.stat_result) -> Iterator[Guard]:
    real = path.resolve()
    if path.is_symlink():
        yield Guard(name="symlink", message=f"{path} is a link to {real}")
    if status.st_nlink > 1:
        yield Guard(
            name="hard-link",
            message=f"{path} has {status.st_nlink} names, and an edit changes them all",
        )
    store = _content_store(real)
    if store is not None:
        yield store
    if not status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        yield Guard(name="read-only", message=f"{path} is read-only")


def _content_store(real: Path) -> Guard | None:
    """Stores that name files by their content: an edit makes the name a lie.

    Ollama: `blobs/sha256-SHA`. Hugging Face: `models--OWNER--NAME/blobs/SHA`, and where links are
    not to be had the file itself in `models--OWNER--NAME/snapshots/COMMIT/`.
    """
    if real.parent.name == "blobs" and real.name.startswith(("sha256-", "sha256:")):
        return Guard(name="ollama-store", message=f"{real} is a blob of an Ollama store")
    parts = real.parts
    for folder, inside in pairwise(parts):
        if folder.startswith("models--") and inside in ("blobs", "snapshots"):
            return Guard(name="huggingface-cache", message=f"{real} is in a Hugging Face cache")
    return None


def _users(real: Path, status: os.stat_result) -> list[str]:
    """Processes that have the file open or mapped, as "PID (name)"."""
    if sys.platform != "linux":
        return []
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    marks = (f" {device} {status.st_ino} ".encode(), f" {real}\n".encode("utf-8", "replace"))
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (_has_open(process, status) or _has_mapped(process, marks)):
            found.append(f"{process.name} ({_name(process)})")
    return sorted(found)


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
    """By device and inode, and by name: on btrfs the maps show another device than stat does."""
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
