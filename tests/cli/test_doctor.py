"""`doctor`: with and without llama-cpp-python, and for the cards that the machine shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.runtime.attention import Heads, pair_support
from ggufrope.runtime.cards import Card, cards, install_command, wheel_command
from ggufrope.runtime.doctor import extras
from tests.cli.conftest import Call

WITHOUT = "import sys; sys.modules['llama_cpp'] = None; "
"""What makes an import of llama-cpp-python fail as if it were not installed."""
MAIN = "from ggufrope_cli.app import main; main()"
SMI = """#!/bin/sh
if [ $# = 0 ]; then echo '| NVIDIA-SMI 570.1  Driver Version: 570.1  CUDA Version: 12.8 |'; exit; fi
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
    assert (
        "Card: NVIDIA GeForce RTX 4090, capability 8.9, driver runs CUDA 12.8"
        in done.stdout.splitlines()
    )
    source, wheel = [line for line in done.stdout.splitlines() if line.startswith("  $ ")]
    assert source == (
        '  $ CMAKE_ARGS="-DGGML_CUDA=on -DGGML_CUDA_FA_QUANTS=all '
        '-DCMAKE_CUDA_ARCHITECTURES=80;89" pip install --no-cache-dir "ggufrope[llama]"'
    )
    assert wheel.endswith("/whl/cu125")
    answer = json.loads(run(WITHOUT + MAIN, "doctor", "--json").stdout)
    assert answer["versions"] is None
    assert [card["capability"] for card in answer["cards"]] == ["8.9", "8.0"]
    assert f"  $ {answer['install']}" == source
    assert f"  $ {answer['wheel']}" == wheel


def test_a_command_that_needs_llama_cpp_names_doctor(nano: Path) -> None:
    done = run(WITHOUT + MAIN, "probe", str(nano))
    assert done.returncode == 4
    assert "`ggufrope doctor` says" in done.stderr


@pytest.mark.llama
def test_a_build_without_a_backend_for_the_card_is_one_to_replace(cli: Call, driver: Path) -> None:
    answer = cli("doctor", "--json").json
    if set(answer["backends"]) - {"CPU", "RPC"}:
        pytest.skip("this build has a backend for a GPU")
    assert "no backend for a GPU (it has " in answer["advice"][0]
    assert "NVIDIA GeForce RTX 4090" in answer["advice"][0]
    assert "--force-reinstall" in answer["install"]
    lines = cli("doctor").out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("  $ ")) <= 80


@pytest.mark.llama
def test_every_pair_of_cache_types_is_asked_of_every_device(cli: Call) -> None:
    answer = cli("doctor", "--json").json
    pairs = {(each["device"], each["type_k"], each["type_v"]) for each in answer["attention"]}
    assert len(pairs) == len(answer["attention"]) == 81 * len(answer["devices"])
    assert {each["runs"] for each in answer["attention"] if each["device"] == "CPU"} == {"native"}


@pytest.mark.llama
def test_pairs_whose_blocks_do_not_divide_a_head_are_left_out(cli: Call, nano: Path) -> None:
    answer = cli("doctor", "--model", str(nano), "--json").json
    assert {each["type_k"] for each in answer["attention"]} == set(CACHE_TYPES)
    small = pair_support(Heads(query=4, kv=2, key_size=80, value_size=80))
    assert {pair.type_k for pair in small} == {"f32", "f16", "bf16"}


def test_a_variable_that_changes_llama_cpp_is_listed(
    cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGML_CUDA_DISABLE_GRAPHS", "1")
    assert "GGML_CUDA_DISABLE_GRAPHS=1: no CUDA graphs" in cli("doctor").out
    assert "GGML_CUDA_DISABLE_GRAPHS=1" in cli("doctor", "--json").json["environment"]


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


@pytest.mark.parametrize(
    ("cuda", "capability", "wheel"),
    [
        ("13.0", "9.0", "cu130"),
        ("13.1", "12.0", "cu130"),
        ("12.9", "7.0", "cu125"),
        ("13.2", "7.0", "cu125"),
        ("12.0", "8.6", "cu118"),
        ("11.8", "9.0", None),
        ("11.4", "8.0", None),
        (None, "8.0", None),
    ],
)
def test_the_wheel_is_the_newest_that_the_driver_and_the_card_run(
    cuda: str | None, capability: str, wheel: str | None
) -> None:
    command = wheel_command((Card(maker="NVIDIA", name="card", capability=capability, cuda=cuda),))
    assert (None if command is None else command.rpartition("/")[2]) == wheel


def test_the_extras_are_those_of_the_package(root: Path) -> None:
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = extras()
    assert {"llama", "report", "search"} <= set(found)
    assert "dev" not in found
    assert all(f"\n{name} = [" in project for name in found)
