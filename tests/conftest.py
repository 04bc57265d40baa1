"""Fixtures shared by all folders: real models, their paths, and a copy to edit."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ImportError):  # the GPU tests do not need it
    from hypothesis import settings

    # The time of an example depends on how busy the machine is, so there is no deadline.
    settings.register_profile("ggufrope", deadline=None)
    settings.load_profile("ggufrope")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as `make test` fetches it; never to be written to."""
    path = Path(
        os.environ.get("GGUFROPE_SMOLLM2", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    if not path.is_file():
        pytest.skip("SmolLM2 is not here: `make test` fetches it")
    return path


@pytest.fixture(scope="session")
def nano() -> Path:
    """The nano model of fixtures/, trained at 256 tokens; never to be written to."""
    return ROOT / "fixtures" / "nano.gguf"


@pytest.fixture
def nano_copy(nano: Path, tmp_path: Path) -> Path:
    """A copy of the nano model to edit."""
    return Path(shutil.copy(nano, tmp_path / "nano.gguf"))
