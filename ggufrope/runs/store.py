"""A run's folder: one SQLite database of its plan, jobs, workers and cells.

One process at a time carries a run out: it holds the lock on the folder for as long as it has the
store open to run. Everyone may read meanwhile. Each cell is committed as it finishes, so that the
process may die at any instant and lose only the cells it was in. Write-ahead logging needs the
folder on a local disk.

`plan.toml` in the folder is a copy for people; the plan that counts is in the database.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ggufrope._files import remove_abandoned, storage, try_lock, write_whole
from ggufrope._plain import T, decode, encode, non_finite
from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.results import CellResult
from ggufrope.runs.jobs import Job
from ggufrope.runs.models import ModelFile
from ggufrope.runs.pins import Pin, model_paths, pin, pin_model, renewed
from ggufrope.runs.plan import RunPlan, changed_keys, format_plan, judged_as

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 3
MAX_CRASHES = 3
"""A job is abandoned when it was begun this often without an end and without one more cell."""

_DATABASE = "run.sqlite"
_LOCK = "run.lock"
_LATEST_TIME = 2.0**35
"""Seconds since the epoch, in the year 3058; a later time in a database is damage."""

_TABLES = """
CREATE TABLE run (format INTEGER NOT NULL, created REAL NOT NULL, plan TEXT NOT NULL);
CREATE TABLE models (
    ordinal INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL, sha256 TEXT
);
CREATE TABLE files (path TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE jobs (
    ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending', worker TEXT, starts INTEGER NOT NULL DEFAULT 0,
    reason TEXT, started REAL, ended REAL
);
CREATE TABLE cells (
    job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, status TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, number)
);
CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL, started REAL NOT NULL);
"""

JobState: TypeAlias = Literal["pending", "running", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """How far a job is. Times are seconds since the epoch."""

    job: Job
    state: JobState
    reason: str | None = None
    worker: str | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model of the run; `sha256` is that of the whole file, None until a job begins on it.

    A split model has one for each file, in order, with spaces between them.
    """

    file: ModelFile
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker that took part; `started` is seconds since the epoch."""

    id: str
    environment: tuple[tuple[str, str], ...]
    started: float


class RunStore:
    """The database of one run, open; for one thread."""

    def __init__(self, folder: Path) -> None:
        """Open the run in `folder` for reading.

        Raises StorageError where there is none, where it is damaged, or of another format.
        """
        self.folder = folder
        self._path = folder / _DATABASE
        self._lock: int | None = None
        self.rejudged: tuple[str, ...] = ()
        if not self._path.is_file():
            raise StorageError(f"{folder}: no run here ({_DATABASE} is missing)")
        self._database = _connect(self._path)
        try:
            with self._reading():
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                (found,) = self._rows("SELECT format FROM run")[0]
            if found != FORMAT:
                raise StorageError(
                    f"{self._path}: written in format {found}, this version reads {FORMAT}; "
                    "give another folder"
                )
            with self._reading():
                ((created, plan),) = self._rows("SELECT created, plan FROM run")
                self.created = _time(created)
                self.plan = _load(RunPlan, plan)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def create(
        cls, folder: Path, plan: RunPlan, models: tuple[ModelFile, ...], jobs: tuple[Job, ...]
    ) -> RunStore:
        """Return the run of `plan` in `folder`, made there or taken up, open to be carried out.

        The folder is locked until the store is closed. A plan that differs in what nothing was
        measured by takes the place of the stored one; `rejudged` then has the differences. Raises
        RequestError where the folder holds the run of another plan, StorageError where it cannot
        be written, another process has it, or a file of the run has changed.
        """
        path = folder / _DATABASE
        lock = _lock_folder(folder)
        try:
            _remove_leftovers(folder)
            if not path.is_file():
                _build(path, plan, models, jobs)
            store = cls(folder)
        except BaseException:
            os.close(lock)
            raise
        store._lock = lock
        try:
            store._require_same(plan, jobs)
            store._renew_pins()
            store._take_up()
            if store.rejudged or not (folder / "plan.toml").exists():
                write_whole(folder / "plan.toml", format_plan(plan))
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and unlock the folder."""
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Reading

    def models(self) -> tuple[ModelRecord, ...]:
        """Return every model, in the plan's order."""
        with self._reading():
            rows = self._rows("SELECT body, sha256 FROM models ORDER BY ordinal")
            return tuple(
                ModelRecord(file=_load(ModelFile, body), sha256=sha256) for body, sha256 in rows
            )

    @property
    def paths(self) -> dict[str, str]:
        """The file of each model, by the model's name."""
        return {record.file.name: record.file.path for record in self.models()}

    def jobs(self) -> tuple[JobRecord, ...]:
        """Return every job, in the plan's order."""
        with self._reading():
            return tuple(
                JobRecord(
                    job=_load(Job, body),
                    state=_state(state),
                    reason=reason,
                    worker=worker,
                    started=None if started is None else _time(started),
                    ended=None if ended is None else _time(ended),
                )
                for body, state, reason, worker, started, ended in self._rows(
                    "SELECT body, state, reason, worker, started, ended FROM jobs ORDER BY ordinal"
                )
            )

    def results(self) -> tuple[CellResult, ...]:
        """Return every finished cell, in the plan's order whatever the order they finished in."""
        with self._reading():
            rows = self._rows(
                "SELECT c.body FROM cells c JOIN jobs j ON j.id = c.job"
                " ORDER BY j.ordinal, c.number"
            )
            return tuple(_finite(_load(CellResult, body)) for (body,) in rows)

    def results_of(self, job: Job) -> tuple[CellResult, ...]:
        """Return the results that the job's cells have, in order of the cells."""
        with self._reading():
            rows = self._rows("SELECT body FROM cells WHERE job = ? ORDER BY number", job.id)
            return tuple(_finite(_load(CellResult, body)) for (body,) in rows)

    def workers(self) -> tuple[WorkerRecord, ...]:
        """Return every worker that took part, in order of their start."""
        with self._reading():
            rows = self._rows("SELECT id, body, started FROM workers ORDER BY started, id")
            return tuple(
                WorkerRecord(
                    id=name,
                    environment=decode(tuple[tuple[str, str], ...], json.loads(body)),
                    started=_time(started),
                )
                for name, body, started in rows
            )

    # Carrying out: for the one process that has the lock

    def register(self, worker: str, environment: Mapping[str, str]) -> None:
        """Record that a worker takes part, and its environment; again where that has grown."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO workers VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (worker, json.dumps(list(environment.items())), time.time()),
            )

    def start(self, job: Job, worker: str) -> None:
        """Record that a worker begins a job."""
        with self._transaction():
            self._database.execute(
                "UPDATE jobs SET state = 'running', worker = ?, started = ?, starts = starts + 1"
                " WHERE id = ?",
                (worker, time.time(), job.id),
            )

    def append(self, job: Job, result: CellResult) -> None:
        """Add one result, durably. A cell that has one keeps it."""
        with self._transaction():
            self._insert(job, result)
            self._database.execute("UPDATE jobs SET starts = 1 WHERE id = ?", (job.id,))

    def finish(self, job: Job) -> None:
        """Record that a job is done."""
        with self._transaction():
            self._end(job, "done", None)

    def fail(self, job: Job, reason: str) -> None:
        """Abandon a job: its cells without a result become errors with this reason."""
        with self._transaction():
            self._abandon(job, reason)

    def release(self, job: Job) -> None:
        """Make a job pending that was stopped for no fault of its own."""
        with self._transaction():
            self._database.execute(
                "UPDATE jobs SET state = 'pending', starts = starts - 1 WHERE id = ?", (job.id,)
            )

    def record_crash(self, job: Job) -> bool:
        """Record that a job was cut off, nobody saw how; return whether it is to be tried again.

        After `MAX_CRASHES` starts it is abandoned.
        """
        with self._transaction():
            with self._reading():
                ((starts,),) = self._rows("SELECT starts FROM jobs WHERE id = ?", job.id)
                abandoned = int(starts) >= MAX_CRASHES
            if abandoned:
                self._abandon(job, f"abandoned after {MAX_CRASHES} worker crashes")
                return False
            self._database.execute("UPDATE jobs SET state = 'pending' WHERE id = ?", (job.id,))
            return True

    def retry_failed(self) -> int:
        """Make every job pending that failed or has cells in error; return how many."""
        with self._transaction():
            rows = self._rows(
                "SELECT id FROM jobs WHERE state IN ('done', 'failed') AND (state = 'failed'"
                " OR id IN (SELECT job FROM cells WHERE status = 'error'))"
            )
            self._database.executemany("DELETE FROM cells WHERE job = ? AND status = 'error'", rows)
            self._database.executemany(
                "UPDATE jobs SET state = 'pending', starts = 0, reason = NULL WHERE id = ?", rows
            )
        return len(rows)

    def pin_models(self, names: Collection[str]) -> dict[str, tuple[Pin, ...]]:
        """Return, for each model of that name, the pins of its files and of those the plan names.

        A model is read whole when it is pinned first. Raises FileChangedError where a file is not
        what it was.
        """
        chosen = [record for record in self.models() if record.file.name in names]
        named = tuple(self._pin(Path(name)) for name in self.plan.files)
        return {record.file.name: (*self._pin_model(record), *named) for record in chosen}

    def _pin_model(self, record: ModelRecord) -> tuple[Pin, ...]:
        if record.sha256 is not None:
            return tuple(self._pin(path) for path in model_paths(record.file.path))
        pins = pin_model(record.file.path)
        if all(found.sha256 for found in pins):
            with self._transaction():
                for found in pins:
                    self._keep(found)
                self._database.execute(
                    "UPDATE models SET sha256 = ? WHERE name = ?",
                    (" ".join(found.sha256 for found in pins), record.file.name),
                )
        return pins

    def _pin(self, path: Path) -> Pin:
        """Return the stored pin of a file, made now where there is none."""
        with self._reading():
            rows = self._rows("SELECT body FROM files WHERE path = ?", str(path))
            if rows:
                return _load(Pin, rows[0][0])
        found = pin(path)
        with self._transaction():
            self._keep(found)
        return found

    def _keep(self, found: Pin) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?)", (found.path, _dump(found))
        )

    def _renew_pins(self) -> None:
        """Check every file that results were measured with, and pin those that the plan names.

        Raises FileChangedError.
        """
        with self._reading():
            stored = [_load(Pin, body) for (body,) in self._rows("SELECT body FROM files")]
        for found in stored:
            if (now := renewed(found)) != found:
                with self._transaction():
                    self._keep(now)
        for name in self.plan.files:
            self._pin(Path(name))

    def _take_up(self) -> None:
        """Count a crash for each job that was running when the last process with the lock died."""
        for record in self.jobs():
            if record.state == "running":
                self.record_crash(record.job)

    def _insert(self, job: Job, result: CellResult) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?)",
            (job.id, job.cells.index(result.cell), result.status, _dump(result)),
        )

    def _end(self, job: Job, state: JobState, reason: str | None) -> None:
        self._database.execute(
            "UPDATE jobs SET state = ?, reason = ?, ended = ? WHERE id = ?",
            (state, reason, time.time(), job.id),
        )

    def _abandon(self, job: Job, reason: str) -> None:
        for cell in job.cells:
            self._insert(job, CellResult(cell=cell, status="error", reason=reason))
        self._end(job, "failed", reason)

    def _require_same(self, plan: RunPlan, jobs: tuple[Job, ...]) -> None:
        """Raise RequestError unless the store is of this plan, on these files.

        What nothing was measured by may differ: the plan as it stands now is stored then.
        """
        changes = changed_keys(self.plan, plan)
        if changed_keys(judged_as(self.plan, plan), plan):
            raise RequestError(
                f"{self.folder} holds the run of another plan: {', '.join(changes)}; "
                "give another folder"
            )
        stored = {record.job.id: record.job.model for record in self.jobs()}
        wanted = {job.id: job.model for job in jobs}
        differing = {
            model: None
            for identity, model in {**stored, **wanted}.items()
            if not (identity in stored and identity in wanted)
        }
        if differing:
            raise RequestError(
                f"{self.folder} holds a run of other model files: {', '.join(differing)} (changed, "
                "added or removed since); give another folder"
            )
        if changes:
            with self._transaction():
                self._database.execute(
                    "UPDATE run SET plan = ?", (json.dumps(encode(plan, exact=True)),)
                )
            self.plan, self.rejudged = plan, changes

    def _rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._database.execute(statement, parameters).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever a damaged database leads to into a StorageError."""
        try:
            yield
        except (
            sqlite3.Error,
            ValueError,
            TypeError,
            IndexError,
            OverflowError,
            RecursionError,
        ) as error:
            raise StorageError(
                f"{self._path}: not a readable database of a run: {error}"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _transaction(self._database, self._path):
            yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left in a run's folder, and working copies of theirs.

    The caller has the lock on the folder.
    """
    remove_abandoned()
    remove_abandoned(folder)
    with storage("write", folder):
        for leftover in (*folder.glob(f"{_DATABASE}.building*"), *folder.glob(".plan.toml.*")):
            leftover.unlink(missing_ok=True)


def _lock_folder(folder: Path) -> int:
    """Lock a run's folder, made where it is missing; return the descriptor that holds the lock.

    Raises StorageError where it cannot be written or another process has the lock.
    """
    with storage("write a run in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if try_lock(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
            holder = _holder(folder)
        except BaseException:
            os.close(descriptor)
            raise
    os.close(descriptor)
    raise StorageError(
        f"{folder}: another ggufrope process{holder} is running this folder; wait for it, "
        "or give another folder"
    )


def _holder(folder: Path) -> str:
    """The process that has the lock, as it wrote it down; "" where that cannot be read."""
    try:
        text = (folder / _LOCK).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (pid {text})" if text.isdecimal() else ""


def _build(path: Path, plan: RunPlan, models: tuple[ModelFile, ...], jobs: tuple[Job, ...]) -> None:
    """Make the database under another name first, so that one that exists is whole."""
    building = path.with_name(f"{_DATABASE}.building")
    with storage("write", building):
        building.unlink(missing_ok=True)
    database = _connect(building)
    try:
        with _transaction(database, building):
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(
                "INSERT INTO run VALUES (?, ?, ?)",
                (FORMAT, time.time(), json.dumps(encode(plan, exact=True))),
            )
            database.executemany(
                "INSERT INTO models VALUES (?, ?, ?, NULL)",
                ((n, model.name, _dump(model)) for n, model in enumerate(models)),
            )
            database.executemany(
                "INSERT INTO jobs (ordinal, id, body) VALUES (?, ?, ?)",
                ((n, job.id, _dump(job)) for n, job in enumerate(jobs)),
            )
    finally:
        database.close()
    with storage("write", path):
        building.replace(path)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, timeout=60, isolation_level=None)
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot open the run's database: {error}") from error


@contextmanager
def _transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All or nothing. Raises StorageError."""
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot write the run's database: {error}") from error


def _dump(record: object) -> str:
    return json.dumps(encode(record), allow_nan=False)


def _load(kind: type[T], body: str) -> T:
    return decode(kind, json.loads(body))


def _finite(result: CellResult) -> CellResult:
    for path, value in non_finite(result):
        raise ValueError(f"{path} of a cell is {value}")
    return result


def _state(value: JobState) -> JobState:
    if value not in get_args(JobState):
        raise ValueError(f"a job is {value!r}")
    return value


def _time(value: float) -> float:
    """Seconds since the epoch from a database. Raises ValueError where they cannot be."""
    if not (math.isfinite(value) and 0 <= value < _LATEST_TIME):
        raise ValueError(f"the time {value!r} is out of range")
    return float(value)
