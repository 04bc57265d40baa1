"""The libllama that this process uses: which one, whether it fits, and what it is.

llama-cpp-python brings a library of its own. Another build of llama.cpp, as one for CUDA, a fork or
yesterday's version, is named by its folder: by `use_llama`, or by the variable that
llama-cpp-python reads. The functions and the structures that are passed to it stay those that
llama-cpp-python declares, so they are compared with the library before the first call.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope._files import sha256_of
from ggufrope._format import without_home
from ggufrope.errors import MissingDependencyError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

INSTALL_COMMAND = 'pip install "ggufrope[llama]"'
VARIABLE = "LLAMA_CPP_LIB_PATH"
"""The variable in which llama-cpp-python looks for the folder of another library."""

_PLACES = ("bin", "lib", "build/bin")
"""Where a build or an installation of llama.cpp has its libraries."""
_RETURNED_BYTES = 4096
"""More than any structure of llama.cpp has."""

_STRUCTURES = {
    "llama_model_default_params": "llama_model_params",
    "llama_context_default_params": "llama_context_params",
    "llama_batch_get_one": "llama_batch",
}
"""The structures that are passed by value, each with a function that returns one."""
_DEFAULTS: dict[str, dict[str, float | bool | None]] = {
    "llama_model_default_params": {
        "split_mode": 1,
        "main_gpu": 0,
        "tensor_split": None,
        "progress_callback": None,
        "kv_overrides": None,
        "vocab_only": False,
        "no_alloc": False,
    },
    "llama_context_default_params": {
        "n_seq_max": 1,
        "rope_scaling_type": -1,
        "flash_attn_type": -1,
        "rope_freq_base": 0.0,
        "yarn_ext_factor": -1.0,
        "yarn_beta_slow": -1.0,
        "yarn_orig_ctx": 0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "kv_unified": False,
    },
}
"""Defaults that say "leave it to the file" or that every version has (llama.h at 0c1e570)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A libllama file. `own` is whether llama-cpp-python brought it."""

    path: Path
    own: bool

    @property
    def shown(self) -> str:
        """The path with `~` for the user's home folder: it goes into records that are shared."""
        return without_home(os.fspath(self.path))

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, which tells builds apart that give themselves the same name."""
        return sha256_of(self.path)


def use_llama(folder: str | os.PathLike[str] | None) -> None:
    """Use the llama.cpp whose libraries are in `folder`, in this process and those it starts.

    None leaves the choice as it is. Raises MissingDependencyError where `folder` has no libllama,
    RequestError where this process has loaded another one: a process has one llama.cpp.
    """
    if folder is None:
        return
    named = VARIABLE if os.environ.get(VARIABLE) == os.fspath(folder) else "`llama_lib`"
    found = _library_in(Path(folder).expanduser().absolute(), named)
    module = sys.modules.get("llama_cpp.llama_cpp")
    if module is not None and not found.samefile(loaded(module).path):
        raise RequestError(
            f"{named} {folder}: this process has loaded {loaded(module).shown} already, and a "
            "process has one llama.cpp"
        )
    os.environ[VARIABLE] = os.fspath(found.parent)


@cache
def imported() -> ModuleType:
    """Return the module `llama_cpp.llama_cpp`, bound to the library that was named.

    Raises MissingDependencyError where llama-cpp-python is absent, or where it or the library does
    not load, is no llama.cpp, or has other functions and structures.
    """
    folder = os.environ.get(VARIABLE)
    named = None if folder is None else _library_in(Path(folder), VARIABLE)
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"llama-cpp-python is not installed: {INSTALL_COMMAND} (with a GPU, as `ggufrope "
            "doctor` says)"
        ) from error
    except AttributeError as error:
        raise MissingDependencyError(_without_function(error, named)) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(_not_loaded(error, named)) from error
    if not hasattr(module, "llama_version"):
        raise MissingDependencyError(
            f"llama-cpp-python {package_version()} is too old: {INSTALL_COMMAND}"
        )
    if difference := _difference(module, symbols(loaded(module).path)):
        raise MissingDependencyError(
            f"{loaded(module).shown}: {difference}, so it is not of the llama.cpp that "
            f"llama-cpp-python {package_version()} was made for, and would be called wrongly; "
            "name another build"
        )
    return module


def loaded(module: ModuleType) -> Engine:
    """Return the library of the module `llama_cpp.llama_cpp`."""
    path = Path(str(module._lib._name))
    return Engine(path=path, own=path.parent == Path(str(module.__file__)).parent / "lib")


@cache
def symbols(path: Path) -> ctypes.CDLL:
    """Return the functions of a loaded library and of those that it is linked to, with no types.

    ggml is looked up so: a wheel has several copies of it, and only the linked one has the devices
    that llama.cpp uses.
    """
    return ctypes.CDLL(os.fspath(path))


def package_version() -> str:
    """Return the version of llama-cpp-python."""
    return str(importlib.import_module("llama_cpp").__version__)


# A library that was named -------------------------------------------------------------------------


def _library_in(folder: Path, named: str) -> Path:
    """Return the libllama in a folder, by the names that llama-cpp-python looks for."""
    if not folder.is_dir():
        what = "it is a file; name its folder" if folder.exists() else "there is no such folder"
        raise MissingDependencyError(f"{named} {folder}: {what}")
    if found := _libllama(folder):
        return found
    deeper = next((folder / place for place in _PLACES if _libllama(folder / place)), None)
    raise MissingDependencyError(
        f"{named} {folder}: it has no {_file_names()[0]}, the library of llama.cpp"
        + (f"; name {deeper}" if deeper else "; build llama.cpp with -DBUILD_SHARED_LIBS=ON")
    )


def _libllama(folder: Path) -> Path | None:
    return next((folder / name for name in _file_names() if (folder / name).is_file()), None)


def _file_names() -> tuple[str, ...]:
    if sys.platform == "win32":
        return ("llama.dll", "libllama.dll")
    if sys.platform == "darwin":
        return ("libllama.so", "libllama.dylib")
    return ("libllama.so",)


def _not_loaded(error: Exception, named: Path | None) -> str:
    if named is None:
        return (
            f"llama-cpp-python is installed but does not load ({error}); "
            f"reinstall it: {INSTALL_COMMAND}"
        )
    reason = str(error).removeprefix(f"Failed to load shared library '{named}': ")
    return f"{without_home(os.fspath(named))} does not load as a library: {reason}"


def _without_function(error: AttributeError, named: Path | None) -> str:
    """Say that a function is missing: all of them where the library is no llama.cpp."""
    if named is None:
        return _not_loaded(error, None)
    shown = without_home(os.fspath(named))
    functions = symbols(named)
    if not hasattr(functions, "llama_backend_init"):
        return f"{shown} is not llama.cpp: it has no function llama_backend_init"
    missing = str(error).rpartition(" ")[2]
    return (
        f"{shown} is another version of llama.cpp than the installed llama-cpp-python was made "
        f"for: it has no function {missing}; name another build"
    )


def _difference(module: Any, functions: ctypes.CDLL) -> str | None:
    """Return how the structures of a library differ from those declared, None where they do not.

    What is compared is their sizes, where the processor's calling convention lets them be measured,
    and the defaults that llama.cpp fills in.
    """
    for name, kind in _STRUCTURES.items():
        declared = ctypes.sizeof(getattr(module, kind))
        if platform.machine().lower() in ("x86_64", "amd64"):
            size = _size_returned(functions[name])
            # The last bytes may be padding, which is not written.
            if not declared - 8 < size <= declared:
                return f"its {kind} has {size} bytes where {declared} were expected"
        for field, expected in _DEFAULTS.get(name, {}).items():
            value = getattr(_returned(functions[name], getattr(module, kind)), field)
            if (value or None) != (expected or None):  # a null pointer is false
                return f"its {kind} has {field} {value} where {expected} was expected"
    return None


def _size_returned(function: Callable[..., object]) -> int:
    """Return how many bytes of a structure a function returns, up to the last that it writes.

    On x86-64 the caller passes the address of a returned structure before the other arguments. It
    is called on memory of zeros and on memory of ones: what it writes is alike in both.
    """
    images = []
    for byte in (b"\x00", b"\xff"):
        memory = ctypes.create_string_buffer(byte * _RETURNED_BYTES, _RETURNED_BYTES)
        function.restype, function.argtypes = None, None  # type: ignore[attr-defined]
        function(ctypes.byref(memory), None, 0)
        images.append(memory.raw)
    alike = (n for n, pair in enumerate(zip(*images, strict=True), 1) if pair[0] == pair[1])
    return max(alike, default=0)


def _returned(function: Any, kind: type[ctypes.Structure]) -> Any:
    """Return the structure that a function without arguments returns; there is room for more."""

    class Roomy(ctypes.Structure):
        _fields_ = [("value", kind), ("rest", ctypes.c_char * _RETURNED_BYTES)]

    function.restype, function.argtypes = Roomy, ()
    return function().value
