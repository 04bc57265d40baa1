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
    from collections.abc import Callable, Collection, Iterator, Sequence
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

    Memory is in bytes. A CPU reports the memory of the machine. `server` is the address of the RPC
    server that has the device, None for a device of this machine.
    """

    name: str
    description: str
    kind: DeviceKind
    memory_free: int
    memory_total: int
    server: str | None = None


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
    """Have an exception of C++ that nothing catches reported as an assertion that fails."""
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
    """Return whether this machine has a device that llama.cpp puts layers on.

    llama.cpp's own answer is yes for each build with RPC, with servers or without.
    """
    return any(found.kind in ("gpu", "igpu") and not found.server for found in found_devices())


def backends() -> tuple[str, ...]:
    """Return the names of the ggml backends of this build, such as "CPU", "CUDA" and "RPC", also of
    those that find no device."""
    load()
    count = ggml_function("ggml_backend_reg_count", ctypes.c_size_t)
    get = ggml_function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    names = (_text(name(get(index))) for index in range(count()))
    return tuple(each for each in names if "[" not in each)  # "RPC[host:port]", a server


def devices(servers: Collection[str] = ()) -> tuple[Device, ...]:
    """Return the devices of this machine and of these RPC servers, in ggml's order.

    The servers are registered (`rpc.register`); a device of another one is left out, for its server
    may be gone, and asking for its memory would end the process.
    """
    return tuple(
        _device(found) for found in found_devices() if not found.server or found.server in servers
    )


def device_of(buffer: str) -> str:
    """Return the device that a buffer is on, by the name that llama.cpp's log gives the buffer.

    "CUDA0" is on CUDA0, "CPU_Mapped" and "CUDA_Host" on the CPU, and "RPC0[host:port]" on the first
    device of that server, whatever its number among the devices of all.
    """
    for found in found_devices():
        if buffer == found.buffer or buffer.startswith(f"{found.buffer}_"):
            return found.name
    return CPU if buffer.endswith("_Host") else buffer


def chosen_devices(servers: Sequence[str]) -> list[ctypes.c_void_p] | None:
    """Return the devices for a model on these RPC servers, in the order in which llama.cpp takes
    them; None where that is its own choice, because these servers are the registered ones.

    Its choice is the servers, then the GPUs of this machine, integrated ones where there are no
    others.
    """
    found = found_devices()
    registered = dict.fromkeys(each.server for each in found if each.server)
    if list(registered) == list(servers):
        return None
    remote = [each for server in servers for each in found if each.server == server]
    local = [each for each in found if not each.server]
    gpus = [each for each in local if each.kind == "gpu"]
    chosen = remote + (gpus or [each for each in local if each.kind == "igpu"])
    return [each.handle for each in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDevice:
    """A device as ggml lists it: its `ggml_backend_dev_t`, and the name of its buffers."""

    handle: ctypes.c_void_p
    name: str
    description: str
    kind: DeviceKind
    server: str | None
    buffer: str


def found_devices() -> list[FoundDevice]:
    """Return the devices that ggml lists, of RPC servers too; asks no server."""
    load()
    count = ggml_function("ggml_backend_dev_count", ctypes.c_size_t)
    get = ggml_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = ggml_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    backend = ggml_function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    backend_name = ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    texts = [
        ggml_function(f"ggml_backend_dev_{which}", ctypes.c_char_p, ctypes.c_void_p)
        for which in ("name", "description")
    ]
    found: list[FoundDevice] = []
    for index in range(count()):
        handle = ctypes.c_void_p(get(index))
        name, description = (_text(text(handle)) for text in texts)
        # The description of a server's device is the address (ggml-rpc.cpp).
        server = description if _text(backend_name(backend(handle))) == "RPC" else None
        number = sum(each.server == server for each in found)
        known = kind(handle)
        found.append(
            FoundDevice(
                handle=handle,
                name=name,
                description=description,
                kind=_DEVICE_KINDS[known] if known < len(_DEVICE_KINDS) else "accelerator",
                server=server,
                buffer=name if server is None else f"RPC{number}[{server}]",
            )
        )
    return found


def _device(found: FoundDevice) -> Device:
    pointer = ctypes.POINTER(ctypes.c_size_t)
    memory = ggml_function("ggml_backend_dev_memory", None, ctypes.c_void_p, pointer, pointer)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    memory(found.handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=found.name,
        description=found.description,
        kind=found.kind,
        memory_free=free.value,
        memory_total=total.value,
        server=found.server,
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
