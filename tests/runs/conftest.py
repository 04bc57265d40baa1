"""Runs over scripted models: files whose text says how the model behaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ggufrope.runs.driver import open_run
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan

if TYPE_CHECKING:
    from types import ModuleType

Start = Callable[..., Path]


def identify(name: str, path: Path) -> ModelFile:
    content = path.read_bytes()
    return ModelFile(
        name=name,
        path=str(path),
        file_size=len(content),
        header_sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of scripted models, importable here and in worker processes."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    module = import_module("scripted_model")
    module.opened.clear()
    return module


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Make a run: keyword arguments of a RunPlan, and `scripts`, a text for each model."""

    def create(*scripts: str, folder: str = "run", **settings: object) -> Path:
        paths = []
        for number, script in enumerate(scripts or ("",)):
            path = tmp_path / f"model-{number}.gguf"
            path.write_text(script)
            paths.append(str(path))
        few = {"contexts": (256, 512), "depths": 3, "samples": 1, "whole_prompts": 0}
        plan = RunPlan(**{"models": tuple(paths), **few, **settings})  # type: ignore[arg-type]
        open_run(plan, tmp_path / folder, identify=identify).close()
        return tmp_path / folder

    return create
