"""SIGTERM at every operation of an edit and of an undo, and to the command line itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import count
from typing import TYPE_CHECKING, BinaryIO

import pytest

from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, open_model
from ggufrope.container.store import execute, execute_together, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import CASES, Case, plan, prepare
from tests.container.faults import CapableFiles, FaultyFiles
from tests.container.test_shards import FACTORS, contents, gguf, split
from tests.container.writer import Model, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")

FORCE = {"in-use"}
BIG = 192 << 20


class SignaledFiles(FaultyFiles):
    """Files whose process gets SIGTERM at operation number `at`, and lives on."""

    def __init__(self, at: int) -> None:
        super().__init__("signal", at)

    def _strike(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def as_the_commands_do() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_edit_is_undone_at_once(case: Case, tmp_path: Path) -> None:
    """The file is the old one, or the finished new one with its way back; nothing else is left."""
    path = tmp_path / "m.gguf"
    finished = 0
    for at in count():
        old = prepare(path, case)
        made, files = plan(path, case, CapableFiles()), SignaledFiles(at)
        try:
            execute(made, files=files)
        except KeyboardInterrupt:
            finished += 1
        present = path.read_bytes()
        hidden = [one.name for one in tmp_path.iterdir() if one != path]
        if present == old:
            assert hidden == [], at
        else:
            assert all("-undo-" in name for name in hidden), at
            undo(path, force=FORCE, files=CapableFiles())
            assert path.read_bytes() == old, at
        if not files.struck:
            break
    assert finished > 8


@pytest.mark.parametrize("where", ["in place", "replaced", "copy"])
def test_what_is_interrupted_is_not_done(tmp_path: Path, where: str) -> None:
    """From the commit on, signals are ignored, and the result is there."""
    path, output = tmp_path / "m.gguf", tmp_path / "o.gguf"
    old = prepare(path, CASES[0])
    handler = signal.getsignal(signal.SIGTERM)

    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    interrupted = late = 0
    for at in count():
        files = SignaledFiles(at)
        made = plan_store(
            path,
            plan_rewrite(read_header(path), CASES[0].edits),
            output=output if where == "copy" else None,
            strategy=Strategy.STREAM if where == "replaced" else None,
            force=FORCE,
        )
        try:
            execute(made, committing=ignore, files=files)
        except KeyboardInterrupt:
            interrupted += 1
            assert sorted(tmp_path.iterdir()) == [path], at
        else:
            late += files.struck
            assert read_header(made.target).get("llama.context_length") == 8192
            if where == "copy":
                output.unlink()
            else:
                undo(path, force=FORCE)
        finally:
            signal.signal(signal.SIGTERM, handler)
        assert path.read_bytes() == old, at
        if not files.struck:
            break
    assert interrupted > 4
    assert late > 0


@pytest.mark.parametrize("what", ["edit", "undo"])
def test_the_files_of_a_model_stay_one(tmp_path: Path, what: str) -> None:
    first = split(tmp_path)
    old = contents(tmp_path)

    def edit(files: CapableFiles) -> None:
        parts = distribute(open_model(first), FACTORS)
        execute_together(
            [
                plan_store(shard.path, plan_rewrite(shard.header, part), force=FORCE, files=files)
                for shard, part in parts
            ],
            files=files,
        )

    edit(CapableFiles())
    new = gguf(contents(tmp_path))
    undo(first, force=FORCE, files=CapableFiles())
    struck = 0
    for at in count():
        files = SignaledFiles(at)
        try:
            if what == "edit":
                edit(files)
            else:
                edit(CapableFiles())
                undo(first, force=FORCE, files=files)
        except KeyboardInterrupt:
            struck += 1
        if what == "edit":  # taken back at once; an undo is finished by the next command
            assert gguf(contents(tmp_path)) in (old, new), at
        if any("-undo-" in name or "journal" in name for name in contents(tmp_path)):
            undo_or_repair(first)
        assert contents(tmp_path) == old, at
        if not files.struck:
            break
    assert struck > 15


def undo_or_repair(first: Path) -> None:
    """Call the next command: it repairs what was interrupted, and undoes what was finished."""
    recover(first, files=CapableFiles())
    if any("-undo-" in one.name for one in first.parent.iterdir()):
        undo(first, force=FORCE, files=CapableFiles())


def test_a_signal_right_after_a_file_was_created_leaves_nothing_of_it(tmp_path: Path) -> None:
    class StruckFiles(CapableFiles):
        def create(self, path: Path) -> BinaryIO:
            super().create(path).close()
            raise KeyboardInterrupt

    path = tmp_path / "m.gguf"
    prepare(path, CASES[0])
    before = sorted(tmp_path.iterdir())
    rewrite = plan_rewrite(read_header(path), CASES[0].edits)
    made = plan_store(path, rewrite, output=tmp_path / "o.gguf", files=StruckFiles())
    with pytest.raises(KeyboardInterrupt):
        execute(made, files=StruckFiles())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_the_command_leaves_nothing_of_a_copy(tmp_path: Path, name: str) -> None:
    """A copy of a large model is stopped, as by `timeout` or at the end of a session."""
    path, output = tmp_path / "m.gguf", tmp_path / "o.gguf"
    metadata = [("general.architecture", 8, "llama"), ("llama.context_length", 4, 2048)]
    metadata += [("llama.embedding_length", 4, 64), ("llama.attention.head_count", 4, 2)]
    metadata += [("llama.block_count", 4, 1), ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5)]
    model = Model(metadata=metadata, tensors=[Tensor("t", (BIG,), bytes(BIG), 24)])
    path.write_bytes(model.encoded())
    words = ["patch", path, "-o", output, "--scaling", "yarn", "--factor", "2"]
    command = [sys.executable, "-m", "ggufrope_cli", *map(str, words), "--strategy", "stream"]
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
            while child.poll() is None:
                if any("partial" in one.name for one in tmp_path.iterdir()):
                    child.send_signal(getattr(signal, name))
                    break
            _, said = child.communicate()
        if child.returncode == 0:  # the copy was faster than the signal
            output.unlink()
            continue
        assert (child.returncode, said) == (130, b"ggufrope: interrupted\n")
        assert list(tmp_path.iterdir()) == [path]
        return
    raise AssertionError("no copy was interrupted")
