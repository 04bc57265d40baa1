"""Edits under the rules that Windows has for open files, tried on any system.

`WindowsFiles` refuses what Windows refuses, so that a file which is still open when its name is to
change shows here, and not first on a machine that nobody tries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ggufrope.container.filesystem import LOCAL
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, execute_together, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import StorageError
from tests.container.edits import CASES, SCALING, Case, plan, prepare
from tests.container.faults import Stop, WindowsFiles
from tests.container.test_shards import split

POSSIBLE = [case for case in CASES if case.strategy not in (Strategy.GROW, Strategy.CLONE)]
by_name = pytest.mark.parametrize("case", POSSIBLE, ids=lambda case: case.name)
UNDO = ".m.gguf.ggufrope-undo-000001"


@pytest.fixture
def path() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name) / "m.gguf"


def names(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def test_an_open_file_is_held(path: Path) -> None:
    """The rules themselves: else the tests below could not fail."""
    files = WindowsFiles()
    path.write_bytes(b"1")
    with files.open(path, "rb") as file:
        for change in (files.remove, lambda one: files.replace(one, one.with_name("o"))):
            with pytest.raises(PermissionError):
                change(path)
        with pytest.raises(OSError, match="Bad file descriptor"):
            files.sync(file)
    files.remove(path)
    assert names(path) == set()


@by_name
def test_every_edit_and_its_undo(case: Case, path: Path) -> None:
    old = prepare(path, case)
    execute(plan(path, case, WindowsFiles()), verify_all=True, files=WindowsFiles())
    assert names(path) == {"m.gguf", UNDO}
    assert path.read_bytes() != old
    undo(path, files=WindowsFiles())
    assert (path.read_bytes(), names(path)) == (old, {"m.gguf"})


def test_what_grows_elsewhere_is_streamed(path: Path) -> None:
    case = next(case for case in CASES if case.strategy is Strategy.GROW)
    old = prepare(path, case)
    made = plan(path, case, WindowsFiles())
    assert made.strategy is Strategy.STREAM
    execute(made, files=WindowsFiles())
    undo(path, files=WindowsFiles())
    assert path.read_bytes() == old


@pytest.mark.parametrize("exists", [False, True])
def test_a_copy(path: Path, exists: bool) -> None:
    old = prepare(path, CASES[0])
    output = path.with_name("o.gguf")
    if exists:
        output.write_bytes(b"before")
    rewrite = plan_rewrite(read_header(path), Edits(set=SCALING))
    execute(plan_store(path, rewrite, output=output, force={"exists"}), files=WindowsFiles())
    assert read_header(output).get("llama.rope.scaling.type") == "yarn"
    assert (path.read_bytes(), names(path)) == (old, {"m.gguf", "o.gguf"})


def test_a_copy_that_fails_leaves_nothing(path: Path) -> None:
    old = prepare(path, CASES[0])
    rewrite = plan_rewrite(read_header(path), Edits(set=SCALING))
    failures = 0
    for at in range(100):
        made = plan_store(path, rewrite, output=path.with_name("o.gguf"))
        try:
            execute(made, files=WindowsFiles("fail", at))
            break
        except StorageError:
            failures += 1
            assert (path.read_bytes(), names(path)) == (old, {"m.gguf"}), at
    assert failures > 3


def test_a_split_model_is_edited_as_one(path: Path) -> None:
    from ggufrope.container.shards import distribute, open_model

    first = split(path.parent)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    renamed = {tensor.name: f"{tensor.name}.x" for tensor in open_model(first).tensors}
    parts = distribute(open_model(first), Edits(set=SCALING, rename_tensors=renamed))
    plans = [
        plan_store(
            shard.path,
            plan_rewrite(shard.header, part),
            strategy=Strategy.STREAM,
            force={"in-use"},
            files=WindowsFiles(),
        )
        for shard, part in parts
    ]
    assert len(plans) > 1
    execute_together(plans, files=WindowsFiles())
    undo(first, files=WindowsFiles())
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("mode", ["fail", "stop", "torn"])
@pytest.mark.parametrize(
    "case", [c for c in POSSIBLE if c.name in ("reserved", "stream")], ids=lambda case: case.name
)
def test_whatever_goes_wrong_the_file_is_old_or_new(case: Case, mode: str, path: Path) -> None:
    old = prepare(path, case)
    execute(plan(path, case, WindowsFiles()), files=WindowsFiles())
    new = path.read_bytes()
    undo(path, files=WindowsFiles())
    for at in range(200):
        path.write_bytes(old)
        files = WindowsFiles(mode, at)
        with suppress(StorageError, Stop):
            execute(plan(path, case, WindowsFiles()), files=files)
        recover(path, files=WindowsFiles())
        assert path.read_bytes() in (old, new), at
        if path.read_bytes() == new:
            undo(path, force={"in-use"}, files=WindowsFiles())
        assert (path.read_bytes(), names(path)) == (old, {"m.gguf"}), at
        if not files.struck:
            break
    assert not files.struck
    assert at > 5


def test_elsewhere_an_open_file_stays_open_and_locked(path: Path) -> None:
    path.write_bytes(b"1")
    with LOCAL.open(path, "rb") as file:
        LOCAL.release(file)
        assert file.closed is (os.name == "nt")
