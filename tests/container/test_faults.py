"""Whichever operation fails or is the last one: the file is the old one or the new one.

Every strategy and every kind of failure, at every single operation of the edit, of the recovery
from it, and of an undo. What is left is compared with both files byte by byte, and `gguf` reads
both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gguf import GGUFReader

from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import StorageError
from tests.container.edits import CASES, Case, plan, prepare
from tests.container.faults import CapableFiles, FaultyFiles, Stop

MODES = ("fail", "short", "stop", "torn", "power")
UNDO = ".m.gguf.ggufrope-undo-000001"

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
in_every_way = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory where there is one: thousands of renames need no disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def outcome(path: Path, case: Case) -> tuple[bytes, bytes]:
    """Return the file before and after the edit, both of which `gguf` can read."""
    old = prepare(path, case)
    GGUFReader(path)
    execute(plan(path, case, CapableFiles()), files=CapableFiles())
    GGUFReader(path)
    new = path.read_bytes()
    (path.parent / UNDO).unlink()
    return old, new


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def attempts(mode: str) -> Iterator[FaultyFiles]:
    """Yield a layer for each operation; three for each where chance decides what is lost."""
    for at in range(200):
        for seed in range(3 if mode == "power" else 1):
            yield FaultyFiles(mode, at, seed)


@by_name
@in_every_way
def test_an_edit_that_goes_wrong(case: Case, mode: str, folder: Path) -> None:
    path = folder / "m.gguf"
    old, new = outcome(path, case)
    completed = 0
    for files in attempts(mode):
        path.write_bytes(old)
        made = plan(path, case, CapableFiles())
        try:
            execute(made, files=files)
            completed += 1
        except StorageError:
            assert mode in ("fail", "short")
        except Stop:
            assert mode not in ("fail", "short")
        files.close()
        left = path.read_bytes()
        found = recover(path, files=CapableFiles())
        now = path.read_bytes()
        assert now in (old, new), files.at
        assert now == left or found, "a repair must be reported"
        if not files.struck:
            assert now == new
        if now == new:
            assert names(folder) == {"m.gguf", UNDO}
            undo(path, force={"in-use"}, files=CapableFiles())
            assert path.read_bytes() == old
        assert names(folder) == {"m.gguf"}
        if not files.struck:
            break
    assert completed
    assert files.at > 5


@by_name
@in_every_way
def test_an_undo_that_goes_wrong(case: Case, mode: str, folder: Path) -> None:
    path = folder / "m.gguf"
    old, new = outcome(path, case)
    for files in attempts(mode):
        path.write_bytes(old)
        execute(plan(path, case, CapableFiles()), files=CapableFiles())
        with suppress(StorageError, Stop):
            undo(path, force={"in-use"}, files=files)
        files.close()
        recover(path, files=CapableFiles())
        assert path.read_bytes() in (old, new), files.at
        if path.read_bytes() == new:
            assert names(folder) == {"m.gguf", UNDO}
            undo(path, force={"in-use"}, files=CapableFiles())
        assert path.read_bytes() == old
        assert names(folder) == {"m.gguf"}
        if not files.struck:
            break
    assert not files.struck


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("reserved", "grow and append")])
@pytest.mark.parametrize("mode", ["fail", "stop", "torn", "power"])
def test_a_recovery_that_goes_wrong(case: Case, mode: str, folder: Path) -> None:
    """The edit is stopped at every operation, and then its recovery is too."""
    path = folder / "m.gguf"
    old, new = outcome(path, case)
    for at in range(200):
        finished = False
        for again in range(200):
            path.write_bytes(old)
            first = FaultyFiles("torn", at)
            with suppress(Stop):
                execute(plan(path, case, CapableFiles()), files=first)
            finished = not first.struck
            second = FaultyFiles(mode, again)
            with suppress(StorageError, Stop):
                recover(path, files=second)
            second.close()
            recover(path, files=CapableFiles())
            assert path.read_bytes() in (old, new), (at, again)
            for leftover in names(folder) - {"m.gguf"}:
                assert leftover == UNDO
                (folder / leftover).unlink()
            if not second.struck:
                break
        if finished:
            break
    assert finished


@in_every_way
def test_a_new_file_that_goes_wrong(mode: str, folder: Path) -> None:
    """The source never changes; the output is whole or absent, and its remains are removed."""
    path, output = folder / "m.gguf", folder / "o.gguf"
    case = next(case for case in CASES if case.name == "stream")
    old = prepare(path, case)
    rewrite = plan_rewrite(read_header(path), case.edits)
    good = folder / "good.gguf"
    execute(plan_store(path, rewrite, output=good))
    new = good.read_bytes()
    good.unlink()
    for files in attempts(mode):
        output.unlink(missing_ok=True)
        made = plan_store(path, rewrite, output=output)
        with suppress(StorageError, Stop):
            execute(made, files=files)
        files.close()
        if mode in ("fail", "short"):
            assert names(folder) <= {"m.gguf", "o.gguf"}
        recover(output, files=CapableFiles())
        assert path.read_bytes() == old
        assert names(folder) <= {"m.gguf", "o.gguf"}
        if output.exists():
            assert output.read_bytes() == new
        if not files.struck:
            break
    assert output.exists()


def test_failures_are_one_line_errors(folder: Path) -> None:
    path = folder / "m.gguf"
    case = next(case for case in CASES if case.name == "grow")
    prepare(path, case)
    for at in range(12):
        files = FaultyFiles("fail", at)
        with pytest.raises(StorageError, match=r"m\.gguf.*: Input/output error$"):
            execute(plan(path, case, CapableFiles()), files=files)
        recover(path, files=CapableFiles())
        if (folder / UNDO).exists():
            undo(path, force={"in-use"}, files=CapableFiles())
