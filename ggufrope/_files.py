"""Files, read and written whole: what the operating system refuses becomes a StorageError.

Edits of models have a layer of their own, `container.filesystem`. This is for everything else.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope.errors import RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 1 << 20
_SEPARATORS = "/\\" if os.name != "nt" else "/\\:"
_MOST_NAME_BYTES = 255
MAX_READ_BYTES = 1 << 28
"""Of a file that is read whole: a text, a list of factors, a settings file."""


@contextmanager
def storage(doing: str, path: object) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done and where.

    `doing` is an infinitive: "read", "write beside".
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {error.strerror or error}") from error
    except ValueError as error:
        if not (isinstance(error, UnicodeEncodeError) or str(error).startswith("embedded null")):
            raise
        raise StorageError(f"cannot {doing} {path}: {error}") from error


def is_component(word: str) -> bool:
    """Return whether a word names one entry of a folder, and nothing outside of it."""
    if word in ("", ".", "..") or len(os.fsencode(word)) > _MOST_NAME_BYTES:
        return False
    return not any(character in _SEPARATORS or not character.isprintable() for character in word)


def model_status(path: Path) -> os.stat_result:
    """Return what the system says of a model's file.

    Raises StorageError where there is none, or no regular file.
    """
    with storage("read", path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise StorageError(f"{path} is {kind}; expected a GGUF file")
    return status


def read_bytes(path: Path, *, most: int = MAX_READ_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises StorageError."""
    with storage("read", path):
        # Not opened before it is known: to open a pipe waits for whoever writes to it.
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise StorageError(f"cannot read {path}: not a regular file")
        if status.st_size > most:
            raise StorageError(f"{path} has {status.st_size} bytes, at most {most} are read")
        return path.read_bytes()


def read_text(path: Path, *, most: int = MAX_READ_BYTES) -> str:
    """Return the text of a UTF-8 file of at most `most` bytes.

    Raises StorageError, RequestError where it is not text.
    """
    try:
        return read_bytes(path, most=most).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: not UTF-8 text (at byte {error.start}); convert it or give another file"
        ) from None


def read_json(path: Path, *, most: int = MAX_READ_BYTES) -> Any:
    """Return what a JSON file of at most `most` bytes says.

    Raises StorageError, RequestError where it is not JSON.
    """
    text = read_text(path, most=most).removeprefix(codecs.BOM_UTF8.decode())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}: not JSON: {error}") from None
    except ValueError:  # Python's limit on the digits of a number
        raise RequestError(f"{path}: not usable: a number in it has too many digits") from None
    except RecursionError:
        raise RequestError(f"{path}: not usable: its JSON is nested too deeply") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one piece, in place of what was there: a crash leaves the old or the new.

    Text is written as UTF-8, line ends as they are, and bytes of a name that are not UTF-8 as
    escapes. A link stays, and what it leads to is replaced. A pipe, a device and the standard
    output, by whatever name, are written to. Raises StorageError, RequestError where a model would
    be replaced.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with storage("write", path):
        try:
            status = path.stat()
        except FileNotFoundError:
            status = None
        if status is not None:
            stream = standard_stream(status)
            if stream is not None or not stat.S_ISREG(status.st_mode):
                with open(path if stream is None else os.dup(stream), "wb") as file:
                    file.write(data)
                return
            with path.open("rb") as file:
                if file.read(4) == b"GGUF":
                    raise RequestError(f"{path} is a model; name another file to write")
        _replace(path.resolve(), data)


def standard_stream(status: os.stat_result) -> int | None:
    """Return the descriptor of standard output or error that has this status; None for others."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _replace(path: Path, data: bytes) -> None:
    """Write a regular file beside `path`, and give it that name. Raises OSError."""
    import tempfile  # slow to import, and most commands write nothing

    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(_mode(path))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: Path, length: int | None = None) -> str:
    """Return the SHA-256, in hexadecimal, of a file or of its first `length` bytes.

    Raises StorageError.
    """
    import hashlib

    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with storage("read", path):
        left = path.stat().st_size if length is None else length
        with path.open("rb", buffering=0) as stream:
            while left and (count := stream.readinto(buffer[:left])):
                digest.update(buffer[:count])
                left -= count
    return digest.hexdigest()


if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Lock an open file for this process alone, without waiting; return whether it is ours.

        The operating system lets go when the descriptor is closed, however the process ends.
        Raises OSError where the file system has no locks.
        """
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:

    def try_lock(descriptor: int) -> bool:
        """Lock an open file for this process alone, without waiting; return whether it is ours.

        The operating system lets go when the descriptor is closed, however the process ends.
        Raises OSError where the file system has no locks.
        """
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, else what the process gives to new files."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


_WORKING = "ggufrope-work-"
_OWNER, _STARTING = ".owner", ".owner-starting"
_STARTING_SECONDS = 60
"""A working folder this young may not be locked yet by the process that made it."""


@contextmanager
def working_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder in `parent`, the system's where None; remove it at the end.

    A process that is killed leaves its folder behind, with a model's copy in it perhaps. Whoever
    makes the next one beside it, or takes up a run, removes those whose owner is gone. Raises
    StorageError.
    """
    import tempfile

    parent = _parent(parent)
    with storage("make a working folder in", parent):
        remove_abandoned(parent)
        temporary = tempfile.TemporaryDirectory(prefix=_WORKING, dir=parent)
    with temporary as name, _owner(Path(name)):
        yield Path(name)


def _parent(parent: Path | None) -> Path:
    import tempfile

    return Path(tempfile.gettempdir()) if parent is None else parent


@contextmanager
def _owner(folder: Path) -> Iterator[None]:
    """Hold a lock on a working folder. The file gets its name when it is locked, where the system
    renames open files, so that nobody finds it unlocked meanwhile."""
    named = folder / _OWNER
    first = named if sys.platform == "win32" else folder / _STARTING
    with first.open("wb") as owner:
        with suppress(OSError):  # without locks there, nobody will take it for abandoned
            if try_lock(owner.fileno()) and first != named:
                first.rename(named)
        yield


def remove_abandoned(parent: Path | None = None) -> None:
    """Remove the working folders in `parent`, the system's where None, whose owner is gone."""
    import shutil

    for folder in _parent(parent).glob(f"{_WORKING}*"):
        with suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder is of this user, has an owner's file and nobody holds its lock; while that
    has its first name, one that was just made is not. Raises OSError."""
    import time

    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        return False
    named = folder / _OWNER
    owner = named if named.exists() else folder / _STARTING
    settled = owner == named and sys.platform != "win32"
    if not settled and time.time() - found.st_mtime < _STARTING_SECONDS:
        return False
    # A link or a pipe under that name must not be followed or waited for.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(owner, flags)
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and try_lock(descriptor)
    finally:
        os.close(descriptor)
