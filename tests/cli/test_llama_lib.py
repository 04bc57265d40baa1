"""`--llama-lib`: each command that loads llama.cpp takes another build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ggufrope.runtime import engine, library

pytestmark = pytest.mark.llama

COMMANDS = (
    "probe MODEL",
    "doctor",
    "validate MODEL --ctx 256 --out OUT",
    "compare MODEL --ctx 256 --out OUT",
    "search MODEL --target-ctx 512 --out OUT",
    "run PLAN --out OUT",
    "check MODEL --prove",
    "verify MODEL MODEL --prove",
    "patch MODEL -o OUT --scaling yarn --factor 2 --prove",
    "patch MODEL --in-place --scaling yarn --factor 2 --prove",
    "undo MODEL --prove",
)


@pytest.fixture
def plan(nano_copy: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(
        f'models = ["{nano_copy}"]\ncontexts = [256]\ndepths = 1\ncontrol = false\n'
        "whole_prompts = 0\nsamples = 1\n"
    )
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The installed llama.cpp in another folder."""
    folder = tmp_path / "home" / "llama.cpp" / "bin"
    shutil.copytree(engine.loaded(library.load()).path.parent, folder)
    return folder


def in_a_process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: a process has one llama.cpp."""
    return subprocess.run(
        [sys.executable, "-m", "ggufrope_cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no such folder"), (b"text", "does not load as a library")],
)
def test_a_wrong_library_is_one_line_and_nothing_is_written(
    command: str, content: bytes | None, words: str, plan: Path, nano_copy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lib"
    if content is not None:
        folder.mkdir()
        (folder / "libllama.so").write_bytes(content)
    before = nano_copy.read_bytes()
    names = {"MODEL": nano_copy, "PLAN": plan, "OUT": tmp_path / "out"}
    done = in_a_process(*(names.get(word, word) for word in command.split()), "--llama-lib", folder)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ggufrope: ")
    assert words in line
    assert nano_copy.read_bytes() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["check MODEL", "verify MODEL MODEL", "undo MODEL"])
def test_a_library_that_nothing_would_load_is_a_usage_error(
    nano: Path, other: Path, command: str
) -> None:
    words = [nano if word == "MODEL" else word for word in command.split()]
    done = in_a_process(*words, "--llama-lib", other)
    assert done.returncode == 2
    assert "--llama-lib names what --prove loads; add --prove" in done.stderr


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_the_library_is_in_the_record_of_a_run(
    batch: bool, variable: bool, plan: Path, nano: Path, other: Path, tmp_path: Path
) -> None:
    """In this process and in worker processes; the home of the user is not in the record."""
    out, home = tmp_path / "run", tmp_path / "home"
    words: tuple[object, ...] = ("run", plan)
    if not batch:
        words = "validate", nano, "--ctx", 256, "--depths", 1, "--samples", 1, "--no-control"
        words = (*words, "--whole-prompts", 0)
    named: tuple[object, ...] = ("--llama-lib", other)
    environment = {"HOME": str(home)}
    if variable:
        named, environment = (), environment | {engine.VARIABLE: str(other)}
    done = in_a_process(*words, "--out", out, "--json", *named, **environment)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["cells"]
    known: dict[str, str] = {}
    for worker in report["workers"]:
        known |= worker["environment"]
    assert known["libllama"].startswith("~/llama.cpp/bin/libllama.so, SHA-256 ")
    assert not any(str(home) in value for value in known.values())
    again = in_a_process(*words, "--out", out, "--json", HOME=str(home))
    assert again.returncode == 2
    assert "runtime.llama_lib" in again.stderr


def test_doctor_says_what_is_read_of_another_build(other: Path) -> None:
    done = in_a_process("doctor", "--json", "--llama-lib", other)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["versions"]["own"] is False
    assert answer["versions"]["library"] == str(other / "libllama.so")
    check = answer["self_check"]
    assert (check["failure"], check["unread"]) == (None, [])
    assert check["state_version"] in (3, 4)
    assert check["rotation_error"] < 1e-4


def test_a_server_has_a_llama_cpp_of_its_own(other: Path, tmp_path: Path) -> None:
    """The variable is not for it, and the option is refused; nothing is asked of the server."""
    words = ("validate", "--server", "http://127.0.0.1:9", "--ctx", 256, "--out", tmp_path / "run")
    refused = in_a_process(*words, "--llama-lib", other)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--llama-lib is for models in this process" in refused.stderr
    ignored = in_a_process(*words, LLAMA_CPP_LIB_PATH="/nowhere")
    assert "/nowhere" not in ignored.stderr
    assert "127.0.0.1:9" in ignored.stderr
