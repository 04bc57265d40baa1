"""The machine and the software that a worker measures with, for the report."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from ggufrope._format import without_home
from ggufrope.rope.architectures import source

_PACKAGES = ("ggufrope", "llama-cpp-python", "numpy", "gguf")
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_VARIABLE_PREFIXES = ("GGML_", "LLAMA_")
_SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")
"""In the names of variables that are recorded nowhere: LLAMA_API_KEY opens a llama-server."""


def environment() -> dict[str, str]:
    """Return names and values, none of which identifies the user or the machine."""
    known = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cpu cores": str(
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        ),
        "memory": _memory(),
    }
    known["architecture table"] = source().commit
    for package in _PACKAGES:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for name, value in sorted(os.environ.items()):
        if any(word in name for word in _SECRET):
            continue
        if name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES):
            known[name] = without_home(value)
    return {name: value for name, value in known.items() if value}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return ""
