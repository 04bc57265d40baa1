"""Stubs of libllama: the installed library with a few functions of another one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ggufrope.runtime import engine, library

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def installed() -> Path:
    return engine.loaded(library.load()).path


def stub(folder: Path, source: str, *, linked: bool) -> Path:
    """Make a libllama.so of some C; `linked` to the installed one for all other functions."""
    folder.mkdir(parents=True)
    file = folder / "stub.c"
    file.write_text(source)
    real = installed()
    words = ["-Wl,--no-as-needed", str(real), f"-Wl,-rpath,{real.parent}"] if linked else []
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", folder / "libllama.so", file, *words], check=True
    )
    return folder
