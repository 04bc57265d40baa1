"""`doctor`: with and without llama-cpp-python, and for the cards that the machine shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufrope.runtime.cards import Card, cards, install_command
from ggufrope.runtime.doctor import extras
from tests.cli.conftest import Call

WITHOUT = "import sys; sys.modules['llama_cpp'] = None; "
"""What makes an import of llama-cpp-python fail as if it were not installed."""
MAIN = "from ggufrope_cli.app import main; main()"
SMI = """#!/bin/sh
echo "NVIDIA GeForce RTX 4090, 8.9"
echo "NVIDIA A100-SXM4-80GB, 8.0"
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that lists two cards, as the first program that is found."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment
    )


def test_without_llama_cpp_it_says_how_to_install_it(driver: Path) -> None:
    done = run(WITHOUT + MAIN, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Cards: NVIDIA GeForce RTX 4090, NVIDIA A100-SXM4-80GB" in done.stdout
    command = done.stdout.splitlines()[-1]
    assert command == (
        '  $ CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=80;89" '
        'pip install --no-cache-dir "ggufrope[llama]"'
    )
    answer = json.loads(run(WITHOUT + MAIN, "doctor", "--json").stdout)
    assert answer["versions"] is None
    assert [card["capability"] for card in answer["cards"]] == ["8.9", "8.0"]
    assert f"  $ {answer['install']}" == command


def test_a_command_that_needs_llama_cpp_names_doctor(nano: Path) -> None:
    done = run(WITHOUT + MAIN, "probe", str(nano))
    assert done.returncode == 4
    assert "`ggufrope doctor` says" in done.stderr


def test_a_build_for_the_cpu_beside_a_card_is_one_to_replace(cli: Call, driver: Path) -> None:
    answer = cli("doctor", "--json").json
    if answer["can_offload"]:
        pytest.skip("this build can use a GPU")
    assert "computes on the CPU only" in answer["advice"][0]
    assert "NVIDIA GeForce RTX 4090" in answer["advice"][0]
    assert "--force-reinstall" in answer["install"]
    assert max(map(len, cli("doctor").out.splitlines()[:-1])) <= 80


@pytest.mark.parametrize("text", ["exit 1", "echo 'No devices were found'", "echo ', 8'"])
def test_a_driver_that_lists_nothing_is_no_card(driver: Path, text: str) -> None:
    driver.write_text(f"#!/bin/sh\n{text}\n")
    assert [card for card in cards() if card.capability is not None] == []


@pytest.mark.parametrize(
    ("maker", "setting"), [("AMD", "GGML_HIP"), ("Intel", "GGML_VULKAN"), ("Apple", "GGML_METAL")]
)
def test_each_maker_has_a_backend(maker: str, setting: str) -> None:
    seen = (Card(maker=maker, name="a card"),)  # type: ignore[arg-type]
    assert f"-D{setting}=on" in install_command(seen)
    assert "CMAKE_ARGS" not in install_command(())


def test_the_extras_are_those_of_the_package(root: Path) -> None:
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = extras()
    assert {"llama", "report", "search"} <= set(found)
    assert "dev" not in found
    assert all(f"\n{name} = [" in project for name in found)
