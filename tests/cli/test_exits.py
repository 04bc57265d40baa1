"""How the process ends when the fault is ours, or the output cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ggufrope_cli.errors import TRACEBACK, run

from tests.cli.conftest import Call

COMMAND = (sys.executable, "-c", "from ggufrope_cli.app import main; main()")


def fail() -> None:
    raise ZeroDivisionError("by\nzero\x1b")


def test_a_fault_of_ours_is_one_line_and_70(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(fail) == 70
    first = capsys.readouterr().err
    assert first.startswith("ggufrope: a fault of ggufrope, not of your request: ZeroDivisionError")
    assert "test_exits.py:" in first
    assert "to report it, keep this line, the command" in first
    assert "`ggufrope doctor --json`" in first
    assert first.count("\n") == 1
    assert "\x1b" not in first
    monkeypatch.setenv(TRACEBACK, "1")
    assert run(fail) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_lack_of_memory_and_a_refusal_of_the_system_have_codes_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def hog() -> None:
        raise MemoryError

    def refuse() -> None:
        Path("nowhere/at/all").read_bytes()

    assert run(hog) == 5
    assert run(refuse) == 3
    assert capsys.readouterr().err.splitlines() == [
        "ggufrope: out of memory",
        "ggufrope: nowhere/at/all: No such file or directory",
    ]


@pytest.mark.parametrize("form", [("--help",), ("inspect", "FILE"), ("inspect", "FILE", "--json")])
def test_a_reader_that_is_gone_is_141_and_no_word(nano: Path, form: tuple[str, ...]) -> None:
    words = [str(nano) if word == "FILE" else word for word in form]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full device")
def test_a_full_output_is_3(nano: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "inspect", nano], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3
    assert done.stderr == "ggufrope: the output: No space left on device\n"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_an_output_that_lacks_a_character_gets_a_question_mark(nano: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = ("advise", str(nano), "--target-ctx", "2048")
    done = subprocess.run([*COMMAND, *words], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout


def test_json_of_a_name_that_is_not_utf8_can_be_read_strictly(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/c\xff.gguf"))
    shutil.copyfile(nano, path)
    answer = cli("inspect", path, "--json").json
    assert answer["file"].endswith(r"c\udcff.gguf")
    json.dumps(answer, ensure_ascii=False).encode()
