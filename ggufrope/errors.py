"""Every error ggufrope raises on purpose.

    GgufRopeError
    ├── WishError             the request contradicts itself, the file or the arithmetic
    ├── FileError             the file, or the place it lives in, is the problem
    │   ├── MalformedError    not GGUF, truncated, or inconsistent; carries the byte offset
    │   ├── StorageError      the operating system refused: space, permission, I/O
    │   └── GuardError        an edit that would harm something else; carries the guard's name
    ├── MissingPartError      an optional dependency or device is needed and absent
    └── RuntimeFailure        llama.cpp could not do what was asked
        ├── LoadError         the model cannot be loaded
        ├── MemoryNeedError   the model, cache or buffers do not fit
        ├── CacheTypeError    this build cannot run that K/V cache combination
        └── DecodeError       evaluation of a batch failed

A message is one line: what went wrong, where (path, key, byte offset), and what to do when
there is something to do. The command line turns the class into an exit code, nothing else does.
"""

from __future__ import annotations


class GgufRopeError(Exception):
    """Base class: catching it catches every failure ggufrope foresees."""


class WishError(GgufRopeError):
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


class MissingPartError(GgufRopeError):
    """An optional dependency, tool or device is needed and absent."""


class RuntimeFailure(GgufRopeError):
    """llama.cpp could not do what was asked."""


class LoadError(RuntimeFailure):
    """The model cannot be loaded."""


class MemoryNeedError(RuntimeFailure):
    """The model, its cache or its compute buffers do not fit."""


class CacheTypeError(RuntimeFailure):
    """This build of llama.cpp cannot run the K/V cache combination."""


class DecodeError(RuntimeFailure):
    """Evaluation of a batch failed."""
