"""A run's folder: its plan, and one SQLite database of jobs, workers and cells.

Every cell is committed as it finishes, so a process may die at any instant and lose only the cell
it was in. Any number of processes on the machine may take jobs from one run: taking is a
transaction, and a job whose taker has died (see `liveness`) goes back. Write-ahead logging needs
the folder on a local disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope._plain import T, decode, encode
from ggufrope.errors import FileError, RequestError, StorageError
from ggufrope.evals.results import CellResult
from ggufrope.runs.jobs import Job
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import format_plan, read_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from ggufrope.runs.plan import RunPlan


# Whether a worker is alive, told by a lock that the operating system drops when it dies.
#
# Process ids come round again and heartbeats need clocks; a locked file needs neither: it is free
# exactly when its holder is gone, however it went.

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class LifeLine:
    """Held by a worker for as long as it lives: `folder`/`name`.alive, locked."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.alive"
        try:
            folder.mkdir(exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot create: {error.strerror}") from error
        _try_lock(self._descriptor)

    def __enter__(self) -> LifeLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go: the worker is no more."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the worker `name` still holds its life line."""
    try:
        descriptor = os.open(folder / f"{name}.alive", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


# The run's SQLite database: its tables, and how records go in and come out.

TABLES = """
CREATE TABLE run (format INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE models (
    ordinal INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL, sha256 TEXT
);
CREATE TABLE jobs (
    ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, body TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending', worker TEXT, deaths INTEGER NOT NULL DEFAULT 0,
    reason TEXT, started REAL, ended REAL
);
CREATE TABLE cells (
    job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, status TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, number)
);
CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL, started REAL NOT NULL);
"""


def connect(path: Path, *, wal: bool = True) -> sqlite3.Connection:
    """Open the database. Raises StorageError."""
    try:
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        if wal:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot open the run's database: {error}") from error
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(f"the run's database cannot be written: {error}") from error


def dump(record: object) -> str:
    """Return a record as JSON."""
    return json.dumps(encode(record), allow_nan=False)


def load(kind: type[T], body: str) -> T:
    """Return the record that a row's JSON holds. Raises RequestError."""
    return decode(kind, json.loads(body), where="the run's database")


FORMAT = 1
MAX_DEATHS = 3
"""A job whose process died this often without a word is given up."""

JobState: TypeAlias = Literal["pending", "running", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """Where a job stands. Times are seconds since the epoch."""

    job: Job
    state: JobState
    reason: str | None = None
    worker: str | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model of the run; `sha256` is that of the whole file, None where it was not loaded yet."""

    file: ModelFile
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A process that took part; `started` is seconds since the epoch."""

    id: str
    environment: tuple[tuple[str, str], ...]
    started: float


class RunStore:
    """The database of one run, open. One object a process and thread."""

    def __init__(self, folder: Path) -> None:
        """Open the run in `folder`. Raises StorageError where there is none, or it is newer."""
        self.folder = folder
        path = folder / "run.sqlite"
        if not path.is_file():
            raise StorageError(f"{folder}: no run here (run.sqlite is missing)")
        self._database = connect(path)
        try:
            (found,) = self._database.execute("SELECT format FROM run").fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            raise StorageError(f"{path}: not the database of a run: {error}") from error
        if found != FORMAT:
            raise StorageError(f"{path}: written in format {found}, this version reads {FORMAT}")

    @classmethod
    def create(
        cls, folder: Path, plan: RunPlan, models: tuple[ModelFile, ...], jobs: tuple[Job, ...]
    ) -> RunStore:
        """The run of `plan` in `folder`, made there or, where it is there already, opened again.

        Raises RequestError where the folder holds another run, StorageError where it cannot be
        written.
        """
        path = folder / "run.sqlite"
        if path.is_file():
            store = cls(folder)
            store._require_same(plan, jobs)
            return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan.toml").write_text(format_plan(plan), encoding="utf-8")
        except (OSError, UnicodeEncodeError) as error:
            raise StorageError(f"{folder}: cannot write the run there: {error}") from error
        # Filled under another name: a run that exists is whole, and the first to make it wins.
        building = path.with_name(f"run.{os.getpid()}.building")
        database = connect(building, wal=False)
        with transaction(database):
            for statement in TABLES.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO run VALUES (?, ?)", (FORMAT, time.time()))
            database.executemany(
                "INSERT INTO models VALUES (?, ?, ?, NULL)",
                ((n, model.name, dump(model)) for n, model in enumerate(models)),
            )
            database.executemany(
                "INSERT INTO jobs (ordinal, id, model, body) VALUES (?, ?, ?, ?)",
                ((n, job.id, job.model, dump(job)) for n, job in enumerate(jobs)),
            )
        database.close()
        with suppress(FileExistsError):
            os.link(building, path)
        building.unlink()
        store = cls(folder)
        store._require_same(plan, jobs)
        return store

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # What the run is

    @property
    def plan(self) -> RunPlan:
        return read_plan(self.folder / "plan.toml")

    @property
    def created(self) -> float:
        """Seconds since the epoch."""
        return float(self._database.execute("SELECT created FROM run").fetchone()[0])

    def models(self) -> tuple[ModelRecord, ...]:
        """Every model in the plan's order."""
        rows = self._database.execute("SELECT body, sha256 FROM models ORDER BY ordinal")
        return tuple(ModelRecord(file=load(ModelFile, b), sha256=sha256) for b, sha256 in rows)

    @property
    def paths(self) -> dict[str, str]:
        """The file of each model, by the model's name."""
        return {record.file.name: record.file.path for record in self.models()}

    def jobs(self) -> tuple[JobRecord, ...]:
        """Every job in the plan's order."""
        rows = self._database.execute(
            "SELECT body, state, reason, worker, started, ended FROM jobs ORDER BY ordinal"
        )
        return tuple(
            JobRecord(
                job=load(Job, body),
                state=state,
                reason=reason,
                worker=worker,
                started=started,
                ended=ended,
            )
            for body, state, reason, worker, started, ended in rows
        )

    def results(self) -> tuple[CellResult, ...]:
        """Every finished cell, in the plan's order whatever the order they finished in."""
        rows = self._database.execute(
            "SELECT c.body FROM cells c JOIN jobs j ON j.id = c.job ORDER BY j.ordinal, c.number"
        )
        return tuple(load(CellResult, body) for (body,) in rows)

    @property
    def last_cell(self) -> int:
        """A mark to call `results_after` with."""
        (row,) = self._database.execute("SELECT coalesce(max(rowid), 0) FROM cells").fetchone()
        return int(row)

    def results_after(self, mark: int) -> tuple[tuple[int, CellResult], ...]:
        """Cells stored since `mark` by any process, each with the next mark."""
        rows = self._database.execute(
            "SELECT rowid, body FROM cells WHERE rowid > ? ORDER BY rowid", (mark,)
        )
        return tuple((row, load(CellResult, body)) for row, body in rows.fetchall())

    def workers(self) -> tuple[WorkerRecord, ...]:
        """Every process that took part, in order of their start."""
        rows = self._database.execute("SELECT id, body, started FROM workers ORDER BY started, id")
        return tuple(
            WorkerRecord(id=name, environment=tuple(json.loads(body).items()), started=started)
            for name, body, started in rows
        )

    # Taking part

    def enrol(self, worker: str, environment: dict[str, str]) -> None:
        """Record that a process takes part, and in what environment; again where that grew."""
        with transaction(self._database):
            self._database.execute(
                "INSERT INTO workers VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (worker, json.dumps(environment), time.time()),
            )

    def take(self, worker: str, among: frozenset[str], *, model: str | None = None) -> Job | None:
        """The next free job of those `among`, now the worker's; None where none is free.

        One on `model` is preferred: it is loaded already. Jobs of workers that died are free
        again, but for those that `MAX_DEATHS` workers died of.
        """
        with transaction(self._database):
            self._release_the_dead()
            rows = self._database.execute(
                "SELECT id, body FROM jobs WHERE state = 'pending'"
                " ORDER BY model IS NOT ?, ordinal",
                (model,),
            ).fetchall()
            for identity, body in rows:
                if identity in among:
                    self._database.execute(
                        "UPDATE jobs SET state = 'running', worker = ?, started = ? WHERE id = ?",
                        (worker, time.time(), identity),
                    )
                    return load(Job, body)
        return None

    def finished_cells(self, job: Job) -> frozenset[int]:
        """Numbers of the job's cells that have a result, from before or from now."""
        rows = self._database.execute("SELECT number FROM cells WHERE job = ?", (job.id,))
        return frozenset(number for (number,) in rows)

    def append(self, job: Job, result: CellResult) -> None:
        """Add one result, durably. A cell that has one keeps it."""
        with transaction(self._database):
            self._insert(job, result)

    def release(self, worker: str) -> None:
        """Give back what a worker holds: it stops, and not because of the job."""
        with transaction(self._database):
            self._database.execute(
                "UPDATE jobs SET state = 'pending' WHERE state = 'running' AND worker = ?",
                (worker,),
            )

    def finish(self, job: Job) -> None:
        """The job has run to its end."""
        with transaction(self._database):
            self._end(job, "done", None)

    def fail(self, job: Job, reason: str) -> None:
        """Give the job up: its cells without a result become errors with this reason."""
        with transaction(self._database):
            self._give_up(job, reason)

    def held_by(self, worker: str) -> Job | None:
        """The job a worker has taken and not ended."""
        row = self._database.execute(
            "SELECT body FROM jobs WHERE state = 'running' AND worker = ?", (worker,)
        ).fetchone()
        return None if row is None else load(Job, row[0])

    def retry_failed(self) -> int:
        """Make every job that failed, or has cells in error, pending again; how many."""
        with transaction(self._database):
            where = (
                "state IN ('done', 'failed') AND (state = 'failed' OR id IN"
                " (SELECT job FROM cells WHERE status = 'error'))"
            )
            rows = self._database.execute(f"SELECT id FROM jobs WHERE {where}").fetchall()
            for identity in rows:
                self._database.execute(
                    "DELETE FROM cells WHERE job = ? AND status = 'error'", identity
                )
                self._database.execute(
                    "UPDATE jobs SET state = 'pending', deaths = 0, reason = NULL WHERE id = ?",
                    identity,
                )
        return len(rows)

    def record_sha256(self, name: str, compute: Callable[[Path], str]) -> None:
        """Keep the digest of a model's whole file, computed where there is none yet.

        A file that cannot be read has none: whoever loads it will say why.
        """
        record = next(record for record in self.models() if record.file.name == name)
        if record.sha256 is None:
            try:
                sha256 = compute(Path(record.file.path))
            except FileError:
                return
            with transaction(self._database):
                self._database.execute(
                    "UPDATE models SET sha256 = ? WHERE name = ?", (sha256, name)
                )

    @property
    def lifelines(self) -> Path:
        """The folder of the workers' life lines."""
        return self.folder / "workers"

    def _insert(self, job: Job, result: CellResult) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?)",
            (job.id, job.cells.index(result.cell), result.status, dump(result)),
        )

    def _end(self, job: Job, state: JobState, reason: str | None) -> None:
        self._database.execute(
            "UPDATE jobs SET state = ?, reason = ?, ended = ? WHERE id = ?",
            (state, reason, time.time(), job.id),
        )

    def _give_up(self, job: Job, reason: str) -> None:
        for cell in job.cells:
            self._insert(job, CellResult(cell=cell, status="error", reason=reason))
        self._end(job, "failed", reason)

    def _release_the_dead(self) -> None:
        """Free the jobs of workers that are no more."""
        rows = self._database.execute(
            "SELECT id, body, worker, deaths FROM jobs WHERE state = 'running'"
        ).fetchall()
        for identity, body, worker, deaths in rows:
            if is_alive(self.lifelines, worker):
                continue
            if deaths + 1 >= MAX_DEATHS:
                reason = f"{MAX_DEATHS} processes died running this without a word"
                self._give_up(load(Job, body), reason)
            else:
                self._database.execute(
                    "UPDATE jobs SET state = 'pending', deaths = ? WHERE id = ?",
                    (deaths + 1, identity),
                )

    def _require_same(self, plan: RunPlan, jobs: tuple[Job, ...]) -> None:
        rows = self._database.execute("SELECT id FROM jobs ORDER BY ordinal")
        stored = tuple(identity for (identity,) in rows)
        if stored != tuple(job.id for job in jobs):
            raise RequestError(
                f"{self.folder} holds another run: its plan or its model files differ "
                f"({len(stored)} jobs there, {len(jobs)} here); give another folder, or delete it"
            )
