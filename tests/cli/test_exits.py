"""How the process ends when the fault is ours, or the output cannot be written."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ggufrope_cli.errors import run, stoppable
from ggufrope_cli.output import MARKS

from ggufrope.container.reader import read_header
from tests.cli.conftest import Call

COMMAND = (sys.executable, "-c", "from ggufrope_cli.app import main; main()")
NO_TERMINAL = {("report", name) for name in ("html.py", "charts.py", "exports.py")}
"""Modules whose text goes to files alone, as UTF-8."""


def fail() -> None:
    raise ZeroDivisionError("by\nzero\x1b")


def test_a_fault_of_ours_is_one_line_and_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail) == 70
    first = capsys.readouterr().err
    assert first.startswith("ggufrope: a fault of ggufrope, not of your request: ZeroDivisionError")
    assert "test_exits.py:" in first
    assert "--traceback" in first
    assert first.count("\n") == 1
    assert "\x1b" not in first
    assert run(fail, traceback=True) == 70
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.endswith(first)


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


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_without_standard_streams_works_and_writes_to_no_other_file(
    nano_copy: Path, closed: str
) -> None:
    """A shell can start it so; the model must not be opened as number 1 or 2."""
    inspect = f"{shlex.join([*COMMAND, 'inspect', str(nano_copy)])} {closed}"
    patch = [*COMMAND, "patch", str(nano_copy), "--in-place", "--scaling", "yarn", "--factor", "2"]
    for command in (inspect, f"{shlex.join(patch)} {closed}"):
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert read_header(nano_copy).get("llama.rope.scaling.factor") == 2.0
    assert b"Wrote" not in nano_copy.read_bytes()
    absent = f"{shlex.join([*COMMAND, 'inspect', 'absent.gguf'])} {closed}"
    assert subprocess.run(absent, shell=True, capture_output=True).returncode == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full device")
def test_a_full_output_is_3(nano: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "inspect", nano], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3
    assert done.stderr == "ggufrope: the output: No space left on device\n"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_an_output_that_lacks_a_mark_gets_one_that_it_has(nano: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = ("advise", str(nano), "--target-ctx", "2048")
    done = subprocess.run([*COMMAND, *words], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"256 -> 2048 tokens")
    assert b"?" not in done.stdout


def test_the_c_locale_is_an_encoding_like_any_other(nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "caf\u00e9.gguf"
    shutil.copyfile(nano, path)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*COMMAND, "check", path], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"caf\udcc3\udca9.gguf" in done.stdout


def strings(path: Path) -> Iterator[str]:
    """The strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documents
        ):
            yield node.value


def test_every_mark_that_the_terminal_may_show_has_one_in_ascii(root: Path) -> None:
    sources = [
        path
        for room in ("cli", "ggufrope")
        for path in (root / room).rglob("*.py")
        if path.parts[-2:] not in NO_TERMINAL
    ]
    assert len(sources) > 150
    used = {character for path in sources for text in strings(path) for character in text}
    lacking = {character for character in used - MARKS.keys() if not character.isascii()}
    assert lacking == set()
    assert all(mark.isascii() for mark in MARKS.values())


def test_json_of_a_name_that_is_not_utf8_can_be_read_strictly(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/c\xff.gguf"))
    shutil.copyfile(nano, path)
    answer = cli("inspect", path, "--json").json
    assert answer["file"].endswith(r"c\udcff.gguf")
    json.dumps(answer, ensure_ascii=False).encode()


def test_ctrl_c_while_the_command_line_is_loaded_is_one_line() -> None:
    script = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from ggufrope_cli.__main__ import start; start()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "ggufrope: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_signal_after_the_last_step_interrupts_nothing() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stoppable() as commit:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        commit()
        for number in numbers:
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in numbers] == before
