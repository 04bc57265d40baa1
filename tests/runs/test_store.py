"""The folder of a run: one plan, one process at a time, and whatever damage it takes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.results import CellResult
from ggufrope.evals.thresholds import Thresholds
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.driver import open_run
from ggufrope.runs.plan import RunPlan, read_plan
from ggufrope.runs.store import MAX_CRASHES, RunStore

Start = Callable[..., Path]


def test_the_same_plan_takes_the_run_up(start: Start) -> None:
    folder = start("")
    assert start("") == folder


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"contexts": (256,)}, r"contexts \[256, 512\] -> \[256\]"),
        ({"name": "b", "kv": ("q8_0",)}, r'name "run" -> "b", kv \["f16"\] -> \["q8_0"\]'),
        (
            {"scalings": (ScalingRequest(scaling="yarn", factor=2.0),)},
            r'scalings \["file"\] -> \[\{ scaling = "yarn", factor = 2.0 \}\]',
        ),
    ],
)
def test_another_plan_is_refused_by_its_changed_keys(
    start: Start, change: dict[str, object], difference: str
) -> None:
    start("")
    message = f"run holds the run of another plan: {difference}.*; give another folder"
    with pytest.raises(RequestError, match=message):
        start("", **change)


def test_other_model_files_are_refused(start: Start) -> None:
    start("")
    with pytest.raises(RequestError, match=r"other model files: model-0 \(changed, added or"):
        start("forgets 256")


def test_models_added_or_removed_under_a_glob_are_refused(start: Start, tmp_path: Path) -> None:
    glob = {"models": (str(tmp_path / "*.gguf"),)}
    start("", " ", **glob)
    (tmp_path / "model-2.gguf").write_text("  ")
    with pytest.raises(RequestError, match=r"other model files: model-2 "):
        start("", " ", **glob)
    (tmp_path / "model-2.gguf").unlink()
    (tmp_path / "model-1.gguf").unlink()
    with pytest.raises(RequestError, match=r"other model files: model-1 "):
        start("", **glob)


def test_the_plan_that_counts_is_in_the_database(start: Start) -> None:
    unlimited = Thresholds(recall=None, divergence=float("inf"))
    folder = start("", thresholds=unlimited, tasks=("needle", "divergence"), kv=("q8_0",))
    plan = read_plan(folder / "plan.toml")
    assert plan.thresholds.divergence == float("inf")
    (folder / "plan.toml").write_text("not a plan")
    with RunStore(folder) as store:
        assert store.plan.thresholds == unlimited
        assert replace(store.plan, thresholds=plan.thresholds) == plan


HOLDER = """
import sys
from pathlib import Path
from scripted_model import take_up
with take_up(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_while_the_first_is_running(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        message = rf"another ggufrope process \(pid {holder.pid}\) is running this folder"
        with pytest.raises(StorageError, match=message):
            scripted.work(folder)
        with RunStore(folder) as store:
            assert store.jobs()[0].state == "pending"
        holder.kill()
    scripted.work(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run here"):
        RunStore(tmp_path)
    (tmp_path / "run.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="is not a database"):
        RunStore(tmp_path)


def test_an_unwritable_folder_is_refused(tmp_path: Path, start: Start) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="cannot write a run in"):
        start("", folder="taken/run")


def test_a_database_of_another_format_is_refused(start: Start) -> None:
    folder = start("")
    change(folder, "UPDATE run SET format = 1")
    with pytest.raises(StorageError, match="written in format 1, this version reads 4"):
        RunStore(folder)


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"UPDATE {column.partition('.')[0]} SET {column.partition('.')[2]} = {value}"
            for column in ("run.plan", "models.body", "jobs.body", "cells.body", "workers.body")
            for value in (
                "'{'",
                "'[1]'",
                "'{\"a\": 1}'",
                "'null'",
                "x'ff00'",
                "''",
                "1e400",
                "'[[['",
            )
        ),
        f"UPDATE cells SET body = '{'[' * 20000}'",
        "UPDATE jobs SET state = 'well'",
        "UPDATE jobs SET started = 'yesterday'",
        "UPDATE jobs SET ended = 9e99",
        "UPDATE workers SET started = 1e400",
        "UPDATE run SET created = 1e17",
        "UPDATE run SET created = 'now'",
        "UPDATE cells SET body = replace(body, '\"ok\"', '\"fine\"')",
        "UPDATE cells SET body = replace(body, '\"value\": 1.0', '\"value\": 1e999')",
        "UPDATE cells SET body = replace(body, '\"value\": 1.0', '\"value\": NaN')",
        *(f"DROP TABLE {table}" for table in ("run", "models", "jobs", "cells", "workers")),
        "DELETE FROM run",
        "ALTER TABLE jobs DROP COLUMN reason",
    ],
)
def test_a_damaged_database_is_a_storage_error(
    start: Start, scripted: ModuleType, statement: str
) -> None:
    from ggufrope.report.record import report_of

    folder = start("", contexts=(256,), depths=1)
    scripted.work(folder)
    change(folder, statement)
    with pytest.raises(StorageError, match=r"run\.sqlite: "), RunStore(folder) as store:
        report_of(store)


def test_a_damaged_database_cannot_be_taken_up(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    change(folder, "UPDATE jobs SET state = 'running', starts = 'many'")
    with pytest.raises(StorageError, match=r"run\.sqlite: not a readable database"):
        scripted.take_up(folder)


def test_a_job_cut_off_is_tried_again_until_it_is_abandoned(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    for crash in range(1, MAX_CRASHES + 1):
        with scripted.take_up(folder) as store:
            (record,) = store.jobs()
            assert record.state == "pending", crash
            store.start(record.job, "w")
    with scripted.take_up(folder) as store:
        (record,) = store.jobs()
        assert (record.state, record.reason) == ("failed", "abandoned after 3 worker crashes")
        assert {result.status for result in store.results()} == {"error"}
        assert len(store.results()) == 6
        assert store.retry_failed() == 1
        assert (store.jobs()[0].state, store.results()) == ("pending", ())


def test_a_job_that_gets_on_is_never_abandoned(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    for number in range(MAX_CRASHES + 1):
        with scripted.take_up(folder) as store:
            (record,) = store.jobs()
            store.start(record.job, "w")
            store.append(record.job, CellResult(cell=record.job.cells[number], status="ok"))
    with scripted.take_up(folder) as store:
        assert store.jobs()[0].state == "pending"
        assert len(store.results()) == MAX_CRASHES + 1


def test_files_that_the_plan_names_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("")
    plan = RunPlan(models=(str(tmp_path / "m.gguf"),), contexts=(256,), text="nowhere.txt")
    with pytest.raises(StorageError, match=r"nowhere\.txt: no such file"):
        open_run(plan, tmp_path / "run", identify=lambda name, path: pytest.fail(name))
