"""What ends llama.cpp's process ends a command with one line and exit code 5."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.abort_sweep import STRING, File, Key, encoded_text, number, of_type

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the child process is Linux's")

GUARDED = """
import os, signal, sys, time
from ggufrope_cli import errors

def command():
    errors.outlive_aborts()
    print(os.getpid(), flush=True)
    {0}

errors.own_process = True
sys.exit(errors.run(command))
"""


def guarded(body: str) -> subprocess.Popen[str]:
    """Start a command that does this in place of a model's work."""
    script = GUARDED.format(body)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)


def called(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufrope", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL"])
def test_a_signal_is_one_line_and_5(name: str) -> None:
    process = guarded(f"os.kill(os.getpid(), signal.{name})")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert err.count("\n") == 1
    assert err.startswith("ggufrope: ")
    assert name in err
    assert ("memory" in err) == (name == "SIGKILL")


@pytest.mark.parametrize(("body", "code"), [("return 0", 0), ("return 1", 1), ("sys.exit(4)", 4)])
def test_any_other_end_is_passed_on(body: str, code: int) -> None:
    process = guarded(body)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")


def test_an_interrupt_of_the_waiting_process_reaches_the_command() -> None:
    process = guarded("time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "ggufrope: interrupted\n")


@pytest.mark.parametrize("number_", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_command_ends_with_the_process_that_waits_for_it(number_: signal.Signals) -> None:
    process = guarded("time.sleep(60)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert child != process.pid
    process.send_signal(number_)
    assert process.wait(timeout=30) == -number_
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the command goes on"
        time.sleep(0.01)
    process.communicate()


def test_a_call_from_python_stays_in_its_process() -> None:
    process = guarded("pass")
    out, _ = process.communicate(timeout=60)
    assert int(out) != process.pid
    script = GUARDED.replace("own_process = True", "own_process = False").format("pass")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as alone:
        assert alone.stdout is not None
        assert int(alone.stdout.readline()) == alone.pid


def _f16_norm(nano: File) -> File:
    return nano.with_tensor(of_type(nano.tensor("blk.0.attn_norm.weight"), 1))


def _no_byte_tokens(nano: File) -> File:
    return nano.with_key(Key("tokenizer.ggml.model", STRING, encoded_text(b"llama")))


@pytest.mark.llama
@pytest.mark.parametrize(
    ("change", "reason"),
    [(_f16_norm, "unsupported types"), (_no_byte_tokens, "an exception of C++")],
)
def test_what_llamacpp_does_not_check_is_one_line_and_5(
    change: Callable[[File], File], reason: str, tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(change(File.nano()).encoded)
    settings = ("--ctx", "256", "--depths", "1", "--samples", "1", "--gpu-layers", "0")
    done = called("validate", model, *settings, "--out", tmp_path / "run")
    assert done.returncode == 5
    told = [line for line in done.stderr.splitlines() if line.startswith("ggufrope: ")]
    assert len(told) == 1
    assert reason in told[0]
    assert done.stderr.endswith(told[0] + "\n")


@pytest.mark.llama
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0),
        ("llama.block_count", 513),
        ("llama.nextn_predict_layers", 3),
        ("llama.expert_count", 1025),
        ("llama.expert_used_count", 1),
        ("llama.expert_group_count", 1),
        ("llama.attention.layer_norm_rms_epsilon", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
    ],
)
def test_numbers_that_abort_are_refused_before_the_call(
    key: str, value: float, tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(File.nano().with_key(number(key, value)).encoded)
    done = called("probe", model)
    assert done.returncode == 5
    assert f"{key} is" in done.stderr
    assert "llama.cpp aborts" in done.stderr


@pytest.mark.llama
def test_more_experts_used_than_there_are_is_refused_before_the_call(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    nano = File.nano().with_key(number("llama.expert_count", 4))
    for used in (0, 5):
        changed = nano.with_key(number("llama.expert_used_count", used))
        model.write_bytes(changed.encoded)
        done = called("probe", model)
        assert done.returncode == 5
        assert f"expert_used_count is {used}: expected 1 to 4" in done.stderr


@pytest.mark.llama
@pytest.mark.parametrize("kind", [9, 24, 25, 27, 28])
def test_weights_of_no_use_are_refused_before_the_call(kind: int, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    nano = File.nano()
    model.write_bytes(nano.with_tensor(of_type(nano.tensor("blk.0.attn_q.weight"), kind)).encoded)
    checked, probed = called("check", model), called("probe", model)
    assert checked.returncode == 1
    assert "unusable-type" in checked.stdout
    assert probed.returncode == 5
    assert "cannot multiply by such weights" in probed.stderr


@pytest.mark.llama
def test_a_file_without_a_vocabulary_measures_its_rotation_and_tokenizes_nothing(
    tmp_path: Path,
) -> None:
    model = tmp_path / "m.gguf"
    absent = Key("tokenizer.ggml.model", STRING, encoded_text(b"none"))
    model.write_bytes(File.nano().with_key(absent).encoded)
    assert called("probe", model).returncode == 0
    done = called("validate", model, "--ctx", "256", "--out", tmp_path / "run")
    assert done.returncode == 5
    assert "the model has no vocabulary" in done.stderr
