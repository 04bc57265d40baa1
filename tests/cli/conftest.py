"""The command line, called as a person calls it but for the process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ggufrope_cli import output
from ggufrope_cli.app import main

from fixtures.make import build


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        answer = json.loads(self.out)
        assert isinstance(answer, dict)
        assert answer["schema"] == 1
        return answer


Call = Callable[..., Outcome]


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Call:
    """Run `ggufrope` with these arguments in 80 columns, in a folder of its own."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> Outcome:
        output.console.cache_clear()
        output.stderr_console.cache_clear()
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code=int(leaving.value.code or 0), out=captured.out, err=captured.err)

    return call


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small llama of 512 tokens, with random weights."""
    return build("llama", tmp_path / "llama.gguf", context=512)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
