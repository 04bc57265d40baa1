"""Whatever befalls the folder of a run: an error of ours or the same results, never others."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container.pins import FileChangedError
from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.results import CellResult
from ggufrope.report.record import report_of
from ggufrope.runs import database
from ggufrope.runs.driver import InlineTransport, drive, open_run
from ggufrope.runs.store import RunStore
from tests.runs.conftest import identify
from tests.runs.test_driver import results, states
from tests.runs.test_pins import exchange

if TYPE_CHECKING:
    from types import ModuleType

Start = Callable[..., Path]

posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes and locks of POSIX")


@contextmanager
def changing(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "run.sqlite")) as connection, connection:
        yield connection


# What it looks like when it is opened


def test_random_damage_is_noticed(start: Start, scripted: ModuleType) -> None:
    folder = start("", kv=("f16", "q8_0"))
    scripted.work(folder)
    before = results(folder)
    data = (folder / "run.sqlite").read_bytes()
    refused = 0
    for seed in range(150):
        (folder / "run.sqlite").write_bytes(_damaged(data, random.Random(seed)))
        try:
            with RunStore(folder) as opened:
                found = report_of(opened)
        except StorageError:
            refused += 1
        else:
            assert found.cells == before
            assert found.complete
    assert refused > 75


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a database with a page lost, overwritten or misplaced, or some bytes changed."""
    changed = bytearray(data)
    page, other = (4096 * chance.randrange(len(data) // 4096) for _ in range(2))
    at = chance.randrange(len(data))
    match chance.randrange(5):
        case 0:
            changed[page : page + 4096] = bytes(4096)
        case 1:
            changed[page : page + 4096] = chance.randbytes(4096)
        case 2:
            changed[page : page + 4096] = data[other : other + 4096]
        case 3:
            changed[at] ^= 1 << chance.randrange(8)
        case _:
            changed[at : at + 16] = chance.randbytes(min(16, len(data) - at))
    return bytes(changed)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cells SET body = replace(body, '1.0', '0.0')",
        "UPDATE run SET plan = replace(plan, '0.9', '0.1')",
        "UPDATE cells SET number = -1 WHERE number = 0",
        "UPDATE cells SET number = number + 100",
        "UPDATE cells SET status = 'error' WHERE number = 0",
        "UPDATE cells SET body = (SELECT body FROM cells WHERE number = 1)",
        "DELETE FROM cells WHERE number = 0",
        "DELETE FROM digests",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN DELETE FROM cells; END",
        "DELETE FROM run",
        "INSERT INTO run SELECT * FROM run",
    ],
)
def test_rows_that_do_not_fit_are_noticed(
    start: Start, scripted: ModuleType, statement: str
) -> None:
    folder = start("", contexts=(256,))
    scripted.work(folder)
    with changing(folder) as connection:
        connection.execute(statement)
    with pytest.raises(StorageError, match=r"run\.sqlite: "), RunStore(folder) as opened:
        report_of(opened)


def test_an_endless_query_in_the_place_of_a_table_is_refused_at_once(start: Start) -> None:
    folder = start("")
    with changing(folder) as connection:
        connection.execute("DROP TABLE run")
        connection.execute(
            "CREATE VIEW run AS WITH RECURSIVE c(format) AS (VALUES (4) UNION ALL"
            " SELECT format FROM c) SELECT format, 0 AS created, '' AS plan FROM c"
        )
    began = time.process_time()
    with pytest.raises(StorageError, match="it has a view or a trigger"):
        RunStore(folder)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM models", "DELETE FROM jobs WHERE ordinal = 0", "UPDATE jobs SET body = '{}'"],
)
def test_a_run_that_lost_a_row_is_not_taken_up(start: Start, statement: str) -> None:
    folder = start("", "")
    with changing(folder) as connection:
        connection.execute(statement)
    with pytest.raises((StorageError, RequestError), match="run"):
        start("", "")


def test_changes_of_a_database_that_is_gone_are_not_those_of_the_next(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("forgets 100")
    with RunStore(folder) as reader:  # so that the changes stay in the log
        scripted.work(folder)
        kept = {name: (folder / name).read_bytes() for name in ("run.sqlite-wal", "run.sqlite-shm")}
        assert len(kept["run.sqlite-wal"]) > 10_000
        assert reader.jobs()
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    (folder / "run.sqlite").unlink()
    start("")
    assert results(folder) == ()
    scripted.work(folder)
    assert {result.value("recall") for result in results(folder)} == {1.0}


@posix
def test_a_folder_that_cannot_be_written_is_read(
    start: Start, scripted: ModuleType, root: Path
) -> None:
    folder = start("", contexts=(256,))
    scripted.work(folder)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from ggufrope.runs.store import RunStore\n"
        "if not os.getuid(): os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(len(RunStore(Path('.')).results()))"
    )
    with TemporaryDirectory() as name:  # a test's own folder is closed to other users
        shown = Path(name)
        shutil.copytree(folder, shown, dirs_exist_ok=True)
        for path in (*shown.rglob("*"), shown):
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=shown,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        left = sorted(path.name for path in shown.iterdir())
        shown.chmod(0o755)
    assert done.stdout == "3\n", done.stderr
    assert left == sorted(path.name for path in folder.iterdir())


def test_names_that_are_not_utf8_are_kept(
    start: Start, scripted: ModuleType, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"odd-\xff.gguf")
    try:
        odd.write_text("fails 300")
    except OSError:
        pytest.skip("this file system takes only Unicode")
    folder = start("", models=(str(odd),))
    scripted.work(folder)
    with RunStore(folder) as opened:
        assert opened.plan.models == (str(odd),)
        assert opened.paths == {r"odd-\udcff": str(odd)}
    assert [result.status for result in results(folder)] == ["ok"] * 3 + ["error"] * 3
    odd.unlink()
    with pytest.raises(StorageError, match="odd-"):
        scripted.work(folder)


# What happens to it while a run goes on


@posix
def test_a_lock_that_is_another_file_is_left_alone(start: Start) -> None:
    folder = start("")
    precious, lock = folder.parent / "precious", folder / "run.lock"
    for lay in (
        lambda: os.link(precious, lock),
        lambda: lock.symlink_to(precious),
        lambda: shutil.copy(precious, lock),
        lambda: os.mkfifo(lock),
        lock.mkdir,
    ):
        precious.write_text("precious " * 10)
        lock.unlink()
        lay()
        with pytest.raises(StorageError, match="run"):
            start("")
        assert precious.read_text() == "precious " * 10
        lock.rmdir() if lock.is_dir() else lock.unlink()
        lock.touch()
    start("")


def test_a_run_whose_lock_was_removed_goes_on_until_another_takes_the_folder(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    with scripted.take_up(folder) as first:
        (record,) = first.jobs()
        first.start(record.job, "w")
        (folder / "run.lock").unlink()
        first.append(record.job, CellResult(cell=record.job.cells[0], status="ok"))
        with pytest.raises(StorageError, match="is running this folder"):
            scripted.take_up(folder)
        (folder / "run.lock").unlink()
        second = CellResult(cell=record.job.cells[1], status="ok")
        taken = pytest.raises(StorageError, match="is running this folder")
        with scripted.take_up(folder), taken:
            first.append(record.job, second)
        assert len(first.results()) == 1


@pytest.mark.parametrize("fate", ["removed", "moved", "emptied", "replaced"])
def test_a_folder_that_goes_away_ends_the_run(
    start: Start, scripted: ModuleType, fate: str
) -> None:
    folder = start("", kv=("f16", "q8_0"))
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    seen: list[CellResult] = []

    def on_cell(result: CellResult) -> None:
        seen.append(result)
        if len(seen) != 2:
            return
        if fate == "removed":
            shutil.rmtree(folder)
        elif fate == "moved":
            folder.rename(folder.with_name("elsewhere"))
        elif fate == "emptied":
            (folder / "run.sqlite").unlink()
        else:
            (copy / "run.sqlite").replace(folder / "run.sqlite")

    with pytest.raises(StorageError, match="run"):
        scripted.work(folder, on_cell=on_cell)
    assert len(seen) == 2
    if fate == "moved":
        assert len(results(folder.with_name("elsewhere"))) == 2


def test_a_database_that_another_program_has_locked_is_waited_for_and_then_named(
    start: Start, scripted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start("")
    monkeypatch.setattr(database, "_WRITE_SECONDS", 0.3)
    seen: list[CellResult] = []
    with closing(sqlite3.connect(folder / "run.sqlite", isolation_level=None)) as other:

        def on_cell(result: CellResult) -> None:
            seen.append(result)
            if len(seen) == 2:
                other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StorageError, match=r"run\.sqlite is locked by another program; close"):
            scripted.work(folder, on_cell=on_cell)
        assert len(results(folder)) == 2  # everyone may read meanwhile
        other.execute("ROLLBACK")
    scripted.work(folder)
    assert states(folder) == ["done"]
    assert [result.status for result in results(folder)] == ["ok"] * 6


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits the size of files")
def test_a_full_disk_ends_a_run_that_can_be_taken_up(start: Start, scripted: ModuleType) -> None:
    folder = start("", kv=("f16", "q8_0"))
    size = (folder / "run.sqlite").stat().st_size
    script = (
        "import resource, sys; from pathlib import Path; from scripted_model import *\n"
        "limit = int(sys.argv[2]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "from ggufrope.errors import RequestError, StorageError\n"
        "try: work(Path(sys.argv[1]))\n"
        "except StorageError as error: print(error)\n"
    )
    kept: dict[Any, CellResult] = {}
    stopped = 0
    for limit in range(1000, size + 250_000, 40_000):
        done = subprocess.run(
            [sys.executable, "-c", script, folder, str(limit)], capture_output=True, text=True
        )
        assert done.stderr == ""
        assert done.returncode == 0
        stopped += "run" in done.stdout
        now = {result.cell: result for result in results(folder)}
        assert kept.items() <= now.items()
        kept = now
    assert stopped
    scripted.work(folder)
    assert states(folder) == ["done", "done"]
    assert [result.status for result in results(folder)] == ["ok"] * 12


def test_a_clock_that_goes_backwards_changes_no_result(
    start: Start, scripted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    folder = start("", kv=("f16", "q8_0"))
    scripted.work(folder)
    monkeypatch.undo()
    with RunStore(folder) as opened:
        report = report_of(opened)
    assert report.complete
    assert [result.status for result in report.cells] == ["ok"] * 12
    assert all((result.elapsed_seconds or 0) >= 0 for result in report.cells)
    ended = [job.ended or 0 for job in report.jobs]
    assert all(later < earlier for earlier, later in pairwise(ended))
    before = results(folder)
    scripted.work(folder)
    assert results(folder) == before


def test_results_measured_while_a_file_was_touched_are_measured_again(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("forgets 256")
    model = folder.parent / "model-0.gguf"
    loads: list[str] = []

    def open_wrong(path: Path, runtime: Any) -> Any:
        """Another file is there under the model's name just while it is loaded the first time."""
        loads.append(path.name)
        if len(loads) > 1:
            return scripted.open_model(path, runtime)
        exchange(model, "forgets 100")
        opened = scripted.open_model(path, runtime)
        exchange(model, "forgets 256")
        return opened

    scripted.work(folder, open_wrong)
    assert len(loads) == 2
    assert [result.value("recall") for result in results(folder)] == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_a_file_that_is_touched_all_the_time_ends_the_run(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    model = folder.parent / "model-0.gguf"

    def open_touched(path: Path, runtime: Any) -> Any:
        os.utime(model)
        return scripted.open_model(path, runtime)

    with pytest.raises(FileChangedError, match=r"model-0\.gguf was touched 3 times"):
        scripted.work(folder, open_touched)
    assert (states(folder), results(folder)) == (["pending"], ())
    scripted.work(folder)
    assert states(folder) == ["done"]


def test_a_model_exchanged_after_its_header_was_read_is_not_measured(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("forgets 256")
    with RunStore(folder) as opened:
        plan = opened.plan
    with open_run(plan, folder, identify=identify) as taken_up:
        exchange(folder.parent / "model-0.gguf", "forgets 100")
        with pytest.raises(FileChangedError, match="after its header was read"):
            drive(taken_up, InlineTransport(scripted.open_model))
        assert taken_up.results() == ()
