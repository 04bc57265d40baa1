"""llama.cpp as llama-cpp-python ships it: the library, its versions, devices and log, and Ctrl-C.

The library is loaded on first use, so the other modules of the runtime import without it.
llama.cpp logs to one process-wide callback. Here that callback feeds every `capture` that is open,
and errors quote what was captured.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope.errors import MissingDependencyError
from ggufrope.runtime.engine import imported, loaded, package_version, symbols

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

TESTED_VERSIONS = ("0.3.36", "0.3.37")
"""The first version of llama-cpp-python that ggufrope was tested with, and the first it was not.

The same bounds as in pyproject.toml. The runtime reads llama.cpp's log and its saved states, and
their formats change without notice.
"""
TESTED_BUILDS = ("0c1e570", "b11434")
"""The commits and tags of llama.cpp that ggufrope was tested with (docs/llama-builds.md)."""

CPU = "CPU"
"""ggml's name of the CPU as a device."""
DeviceKind: TypeAlias = Literal["cpu", "gpu", "igpu", "accelerator"]
# enum ggml_backend_dev_type, ggml/include/ggml-backend.h
_DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accelerator")

_DEBUG, _ERROR, _CONTINUED = 1, 4, 5  # enum ggml_log_level, ggml/include/ggml.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that ggml can compute on.

    Memory is in bytes. A CPU reports the memory of the machine.
    """

    name: str
    description: str
    kind: DeviceKind
    memory_free: int
    memory_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What llama.cpp is: enough to find its source, and to tell two builds apart.

    `commit` is what the build calls itself, "unknown" for one outside a git repository. `library`
    is the path of libllama with `~` for the user's home folder, `own` whether llama-cpp-python
    brought it, and `tested` whether ggufrope was tested with it.
    """

    llama_cpp_python: str
    llama_cpp: str
    commit: str
    system_info: str
    library: str
    library_sha256: str
    own: bool
    tested: bool

    @property
    def shown(self) -> str:
        """Version and commit, and that it was not tested where it was not."""
        untested = "" if self.tested else ", not tested with ggufrope"
        return f"{self.llama_cpp} ({self.commit}){untested}"


@dataclass(slots=True, eq=False)
class Log:
    """The lines that llama.cpp logged inside a `capture`; debug lines only if requested."""

    debug: bool = False
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        """The first error, without function names; the errors after it are usually its effects."""
        if not self.errors:
            return None
        return re.sub(r"^(\w+: )(error loading model: )?(\w+: )?", "", self.errors[0])

    def search(self, pattern: str) -> list[re.Match[str]]:
        """Return the first match of `pattern` in each line that has one."""
        return [match for line in self.lines if (match := re.search(pattern, line))]


on_abort: Callable[[str], object] | None = None
"""Called with the reason before llama.cpp ends the process, on an assertion that does not hold say;
it cannot go on. None: the reason goes to standard error. Where it is set before `load`, it is
called for an exception of C++ that nothing catches too, on Linux."""

_captures: list[Log] = []
_unfinished: tuple[int, str] | None = None
# llama.cpp keeps only the pointers, so these references must live.
_callback: object = None
_abort_callback: object = None
_terminate_callback: object = None


@contextmanager
def capture(*, debug: bool = False) -> Iterator[Log]:
    """Collect what llama.cpp logs inside the `with` block. Captures nest."""
    # Other users of the library in this process may have set a callback of their own.
    load().llama_log_set(_callback, ctypes.c_void_p(0))
    log = Log(debug=debug)
    _captures.append(log)
    try:
        yield log
    finally:
        _captures.remove(log)


def _on_log(level: int, text: bytes | None, _user_data: object) -> None:
    """Assemble lines from pieces; a piece of level CONT continues the one before it."""
    global _unfinished
    if level == _CONTINUED and _unfinished is not None:
        level, begun = _unfinished
    else:
        begun = ""
    if level == _DEBUG and not any(log.debug for log in _captures):
        return
    *lines, rest = (begun + (text or b"").decode("utf-8", "replace")).split("\n")
    _unfinished = (level, rest) if rest else None
    for line in lines:
        for log in _captures:
            if level != _DEBUG or log.debug:
                log.lines.append(line)
            if level == _ERROR:
                log.errors.append(line)


def _on_abort(message: bytes | None) -> None:
    """Hand on why ggml ends the process, the source file without its folders."""
    reason = re.sub(r"^\S*[/\\](?=[\w.-]+:\d+: )", "", _text(message).strip())
    if on_abort is None:
        os.write(2, f"{reason}\n".encode())
    else:
        on_abort(reason)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back inside the block: the yielded function returns whether it was pressed.

    Leaving the block then raises KeyboardInterrupt. An exception cannot cross llama.cpp's frames,
    so its callbacks ask the yielded function and end the call. This works in the main thread only,
    and does nothing where a program handles SIGINT in its own way.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted.is_set():
            raise KeyboardInterrupt


@cache
def load() -> ModuleType:
    """Return the module `llama_cpp.llama_cpp`, llama.cpp's C functions, ready for use.

    Raises MissingDependencyError where llama-cpp-python or the library is absent, does not load, or
    does not fit what the runtime passes to it.
    """
    library = imported()
    global _callback, _abort_callback
    _callback = library.llama_log_callback(_on_log)
    library.llama_log_set(_callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    _abort_callback = kind(_on_abort)
    ggml_function("ggml_set_abort_callback", kind, kind)(_abort_callback)
    if on_abort is not None:
        _answer_exceptions()
    _load_backends()
    return library


def _load_backends() -> None:
    """Load the backends of a build that has each in a library of its own, as llama.cpp's releases.

    Raises MissingDependencyError where there is none.
    """
    count = ggml_function("ggml_backend_dev_count", ctypes.c_size_t)
    if count():
        return
    engine = loaded(imported())
    load_from = ggml_function("ggml_backend_load_all_from_path", None, ctypes.c_char_p)
    load_from(os.fsencode(engine.path.parent))
    if not count():
        raise MissingDependencyError(
            f"{engine.shown} has no backend to compute with: put libggml-cpu beside it"
        )


def _answer_exceptions() -> None:
    """Have an exception of C++ that nothing catches told as an assertion that fails."""
    global _terminate_callback
    _terminate_callback = ctypes.CFUNCTYPE(None)(lambda: _on_abort(b"an exception of C++"))
    with suppress(OSError, AttributeError):
        # std::set_terminate
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(_terminate_callback)


def versions() -> Versions:
    """Return the versions of llama-cpp-python and of the llama.cpp that it loaded."""
    library = load()
    engine = loaded(library)
    package, commit = package_version(), _text(ggml_function("ggml_commit", ctypes.c_char_p)())
    return Versions(
        llama_cpp_python=package,
        llama_cpp=_text(library.llama_version()),
        commit=commit,
        system_info=_text(library.llama_print_system_info()).strip(" |"),
        library=engine.shown,
        library_sha256=engine.sha256,
        own=engine.own,
        tested=is_tested(package) if engine.own else commit.startswith(TESTED_BUILDS),
    )


def is_tested(version: str) -> bool:
    """Return whether ggufrope was tested with this version of llama-cpp-python.

    A suffix, as of a build or a candidate, is not looked at.
    """
    first, beyond = map(_release, TESTED_VERSIONS)
    return first <= _release(version) < beyond


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def can_offload() -> bool:
    """Return whether this build can put layers on a GPU."""
    return bool(load().llama_supports_gpu_offload())


def devices() -> tuple[Device, ...]:
    """Return the devices of all ggml backends of this build, in ggml's order."""
    return tuple(map(_device, device_handles()))


def backends() -> tuple[str, ...]:
    """Return the names of the backends of this build, also of those that find no device."""
    load()
    count = ggml_function("ggml_backend_reg_count", ctypes.c_size_t)
    get = ggml_function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    return tuple(_text(name(get(index))) for index in range(count()))


def device_handles() -> tuple[ctypes.c_void_p, ...]:
    """Return the `ggml_backend_dev_t` of each of `devices`, for the other modules of the runtime.

    Raises MissingDependencyError as `load` does.
    """
    load()
    count = ggml_function("ggml_backend_dev_count", ctypes.c_size_t)
    get = ggml_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return tuple(ctypes.c_void_p(get(index)) for index in range(count()))


def _device(handle: ctypes.c_void_p) -> Device:
    pointer = ctypes.POINTER(ctypes.c_size_t)
    name = ggml_function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = ggml_function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    kind = ggml_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    memory = ggml_function("ggml_backend_dev_memory", None, ctypes.c_void_p, pointer, pointer)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    known = kind(handle)
    return Device(
        name=_text(name(handle)),
        description=_text(description(handle)),
        kind=_DEVICE_KINDS[known] if known < len(_DEVICE_KINDS) else "accelerator",
        memory_free=free.value,
        memory_total=total.value,
    )


def ggml_function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of ggml's C API, which llama-cpp-python ships but does not bind."""
    function = next((part[name] for part in _ggml_libraries() if hasattr(part, name)), None)
    if function is None:
        raise MissingDependencyError(
            f"{loaded(imported()).shown} is too old a llama.cpp: it has no function {name}"
        )
    function.restype, function.argtypes = result, arguments
    return function


@cache
def _ggml_libraries() -> tuple[ctypes.CDLL, ...]:
    """Return where ggml's functions are: the libraries that libllama is linked to."""
    if sys.platform == "win32":  # which looks into no library but the one that is named
        return ctypes.CDLL("ggml"), ctypes.CDLL("ggml-base")
    return (symbols(loaded(imported()).path),)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")
