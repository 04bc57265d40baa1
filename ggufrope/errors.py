"""Every error that ggufrope raises on purpose.

    GgufRopeError
    ├── RequestError               the request contradicts itself, the file or the arithmetic;
    │                              also a ValueError
    ├── FileError                  the file, or the place it lives in, is the problem
    │   ├── MalformedError         not GGUF, truncated, or inconsistent; carries the byte offset
    │   ├── StorageError           the operating system refused: space, permission, I/O
    │   └── GuardError             an edit that would harm something else; carries the guard's name
    ├── MissingDependencyError     an optional dependency or device is needed and absent
    └── BackendError               the runtime failed
        ├── LoadError              the model cannot be loaded
        ├── InsufficientMemoryError   the model, its cache or its buffers do not fit
        ├── UnsupportedCacheError  this build cannot run that K/V cache combination
        └── DecodeError            evaluation of a batch failed

A message is one line: what went wrong, where (path, key, byte offset), and what to do when there
is something to do. The command line turns the class into an exit code; nothing else does.
"""

from __future__ import annotations


class GgufRopeError(Exception):
    """Base class: catching it catches every failure ggufrope foresees."""


class RequestError(GgufRopeError, ValueError):
    """The request contradicts itself, the file it is made of, or arithmetic."""


class FileError(GgufRopeError):
    """The file, or the place it lives in, is the problem."""


class MalformedError(FileError):
    """The bytes are not a GGUF file that can be read; `offset` is where that showed."""

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at byte {offset})")
        self.offset = offset


class StorageError(FileError):
    """The operating system refused: no space, no permission, an I/O error."""


class GuardError(FileError):
    """An edit that would harm something beside the file; `guard` is the name --force takes."""

    def __init__(self, message: str, *, guard: str) -> None:
        super().__init__(message)
        self.guard = guard


class MissingDependencyError(GgufRopeError):
    """An optional dependency, tool or device is needed and absent."""


class BackendError(GgufRopeError):
    """The runtime failed."""


class LoadError(BackendError):
    """The model cannot be loaded."""


class InsufficientMemoryError(BackendError):
    """The model, its cache or its compute buffers do not fit."""


class UnsupportedCacheError(BackendError):
    """This build of llama.cpp cannot run the K/V cache combination."""


class DecodeError(BackendError):
    """Evaluation of a batch failed."""
