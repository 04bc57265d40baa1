"""A run's folder: one SQLite database of its plan, jobs, workers and cells.

One process at a time carries a run out: it holds the lock on the folder for as long as it has the
store open to run. Everyone may read meanwhile. Each cell is committed as it finishes, so that the
process may die at any instant and lose only the cells it was in. Write-ahead logging needs the
folder on a local disk.

`plan.toml` in the folder is a copy for people; the plan that counts is in the database.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ggufrope._files import storage, write_whole
from ggufrope._plain import non_finite
from ggufrope.container.location import locate
from ggufrope.container.pins import (
    FileChangedError,
    FileState,
    Pin,
    model_paths,
    pin,
    pin_model,
    renewed,
)
from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.results import Cell, CellResult
from ggufrope.runs.database import FORMAT, Database
from ggufrope.runs.folder import DATABASE, PLAN, FolderLock, remove_leftovers
from ggufrope.runs.jobs import Job
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan, changed_keys, format_plan, judged_as

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_CRASHES = 3
"""A job is abandoned when it was begun this often without an end and without one more cell."""

_LATEST_TIME = 2.0**35
"""Seconds since the epoch, in the year 3058; a later time in a database is damage."""

_Environment: TypeAlias = tuple[tuple[str, str], ...]
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
        self._open(folder, lock=None)

    @classmethod
    def create(
        cls,
        folder: Path,
        plan: RunPlan,
        models: tuple[ModelFile, ...],
        jobs: tuple[Job, ...],
        *,
        states: Mapping[str, FileState] | None = None,
    ) -> RunStore:
        """Return the run of `plan` in `folder`, made there or taken up, open to be carried out.

        `states` are those of model files, by their path, when their headers were read: a model that
        is pinned first must have the same.

        The folder is locked until the store is closed. A plan that differs in what nothing was
        measured by takes the place of the stored one; `rejudged` then has the differences. Raises
        RequestError where the folder holds the run of another plan, StorageError where it cannot
        be written, another process has it, or a file of the run has changed.
        """
        lock = FolderLock(folder)
        store = cls.__new__(cls)
        try:
            remove_leftovers(folder)
            if not (folder / DATABASE).is_file():
                _build(folder / DATABASE, plan, models, jobs)
            store._open(folder, lock=lock)
            store._states = states or {}
        except BaseException:
            lock.close()
            raise
        try:
            store._require_same(plan, models, jobs)
            store._renew_pins()
            store._take_up()
            if store.rejudged or not (folder / PLAN).exists():
                write_whole(folder / PLAN, format_plan(plan))
        except BaseException:
            store.close()
            raise
        return store

    def _open(self, folder: Path, *, lock: FolderLock | None) -> None:
        self.folder = folder
        self.rejudged: tuple[str, ...] = ()
        self._states: Mapping[str, FileState] = {}
        self._lock = lock
        path = folder / DATABASE
        with storage("read", path):
            if not path.is_file():
                raise StorageError(f"{folder}: no run here ({DATABASE} is missing)")
        self._database = Database(path, writable=lock is not None)
        try:
            with self._database.reading():
                ((created, plan),) = self._database.rows("SELECT created, plan FROM run")
                self.created = _time(created)
                self.plan = self._database.load(RunPlan, plan)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and unlock the folder."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Reading

    def models(self) -> tuple[ModelRecord, ...]:
        """Return every model, in the plan's order."""
        with self._database.reading():
            rows = self._database.rows("SELECT body, sha256 FROM models ORDER BY ordinal")
            return tuple(
                ModelRecord(file=self._database.load(ModelFile, body), sha256=sha256)
                for body, sha256 in rows
            )

    @property
    def paths(self) -> dict[str, str]:
        """The file of each model, by the model's name."""
        return {record.file.name: record.file.path for record in self.models()}

    def jobs(self) -> tuple[JobRecord, ...]:
        """Return every job, in the plan's order."""
        with self._database.reading():
            return tuple(
                JobRecord(
                    job=_whole(self._database.load(Job, body), state, cells),
                    state=state,
                    reason=reason,
                    worker=worker,
                    started=None if started is None else _time(started),
                    ended=None if ended is None else _time(ended),
                )
                for body, state, reason, worker, started, ended, cells in self._database.rows(
                    "SELECT body, state, reason, worker, started, ended,"
                    " (SELECT count(*) FROM cells WHERE job = id) FROM jobs ORDER BY ordinal"
                )
            )

    def results(self) -> tuple[CellResult, ...]:
        """Return every finished cell, in the plan's order whatever the order they finished in."""
        cells = {record.job.id: record.job.cells for record in self.jobs()}
        with self._database.reading():
            return tuple(
                _finite(self._belonging(body, status, cells[job], number))
                for body, status, job, number in self._database.rows(
                    "SELECT c.body, c.status, c.job, c.number FROM cells c"
                    " JOIN jobs j ON j.id = c.job ORDER BY j.ordinal, c.number"
                )
            )

    def _belonging(
        self, body: str, status: str, cells: tuple[Cell, ...], number: int
    ) -> CellResult:
        """Return a stored result. Raises ValueError where it is of another cell than its place."""
        result = self._database.load(CellResult, body)
        if (result.cell, result.status) != (cells[number], status) or number < 0:
            raise ValueError(f"the result of cell {number} is that of another one")
        return result

    def results_of(self, job: Job) -> tuple[CellResult, ...]:
        """Return the results that the job's cells have, in order of the cells."""
        with self._database.reading():
            return tuple(
                _finite(self._belonging(body, status, job.cells, number))
                for body, status, number in self._database.rows(
                    "SELECT body, status, number FROM cells WHERE job = ? ORDER BY number", job.id
                )
            )

    def workers(self) -> tuple[WorkerRecord, ...]:
        """Return every worker that took part, in order of their start."""
        with self._database.reading():
            rows = self._database.rows("SELECT id, body, started FROM workers ORDER BY started, id")
            return tuple(
                WorkerRecord(
                    id=name,
                    environment=self._database.load(_Environment, body),
                    started=_time(started),
                )
                for name, body, started in rows
            )

    # Carrying out: for the one process that has the lock

    def register(self, worker: str, environment: Mapping[str, str]) -> None:
        """Record that a worker takes part, and its environment; again where that has grown."""
        environment_of = tuple(environment.items())
        with self._transaction():
            self._database.execute(
                "INSERT INTO workers VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                *(worker, self._database.dump(environment_of), time.time()),
            )

    def start(self, job: Job, worker: str) -> None:
        """Record that a worker begins a job."""
        with self._transaction():
            self._database.execute(
                "UPDATE jobs SET state = 'running', worker = ?, started = ?, starts = starts + 1"
                " WHERE id = ?",
                *(worker, time.time(), job.id),
            )

    def append(self, job: Job, result: CellResult) -> None:
        """Add one result, durably. A cell that has one keeps it."""
        with self._transaction():
            self._insert(job, result)
            self._database.execute("UPDATE jobs SET starts = 1 WHERE id = ?", job.id)

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
                "UPDATE jobs SET state = 'pending', starts = starts - 1 WHERE id = ?", job.id
            )

    def record_crash(self, job: Job) -> bool:
        """Record that a job was cut off, nobody saw how; return whether it is to be tried again.

        After `MAX_CRASHES` starts it is abandoned.
        """
        with self._transaction():
            with self._database.reading():
                ((starts,),) = self._database.rows("SELECT starts FROM jobs WHERE id = ?", job.id)
                abandoned = int(starts) >= MAX_CRASHES
            if abandoned:
                self._abandon(job, f"abandoned after {MAX_CRASHES} worker crashes")
                return False
            self._database.execute("UPDATE jobs SET state = 'pending' WHERE id = ?", job.id)
            return True

    def retry_failed(self) -> int:
        """Make every job pending that failed or has cells in error; return how many."""
        with self._transaction():
            rows = self._database.rows(
                "SELECT id FROM jobs WHERE state IN ('done', 'failed') AND (state = 'failed'"
                " OR id IN (SELECT job FROM cells WHERE status = 'error'))"
            )
            for (job,) in rows:
                self._database.execute("DELETE FROM cells WHERE job = ? AND status = 'error'", job)
                self._database.execute(
                    "UPDATE jobs SET state = 'pending', starts = 0, reason = NULL WHERE id = ?", job
                )
        return len(rows)

    def pin_models(self, names: Collection[str]) -> dict[str, tuple[Pin, ...]]:
        """Return, for each model of that name, the pins of its files and of those the plan names.

        A model is read whole when it is pinned first. Raises FileChangedError where a file is not
        what it was.
        """
        chosen = [record for record in self.models() if record.file.name in names]
        base = () if self.plan.base is None else model_paths(str(locate(self.plan.base)))
        named = tuple(self._pin(path) for path in (*map(Path, self.plan.files), *base))
        return {record.file.name: (*self._pin_model(record), *named) for record in chosen}

    def _pin_model(self, record: ModelRecord) -> tuple[Pin, ...]:
        if self.plan.runtime.server is not None:  # no file of ours: the server is compared instead
            return ()
        if record.sha256 is not None:
            return tuple(self._pin(path) for path in model_paths(record.file.path))
        pins = pin_model(record.file.path)
        if pins[0].sha256 and pins[0].state != self._states.get(record.file.path, pins[0].state):
            raise FileChangedError(
                f"{record.file.path} was written to or exchanged after its header was read; give "
                "the same command again"
            )
        if all(found.sha256 for found in pins):
            with self._transaction():
                for found in pins:
                    self._keep(found)
                self._database.execute(
                    "UPDATE models SET sha256 = ? WHERE name = ?",
                    *(" ".join(found.sha256 for found in pins), record.file.name),
                )
        return pins

    def _pin(self, path: Path) -> Pin:
        """Return the stored pin of a file, made now where there is none."""
        with self._database.reading():
            rows = self._database.rows("SELECT body FROM files WHERE path = ?", str(path))
            if rows:
                return self._database.load(Pin, rows[0][0])
        found = pin(path)
        with self._transaction():
            self._keep(found)
        return found

    def _keep(self, found: Pin) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?)", found.path, self._database.dump(found)
        )

    def _renew_pins(self) -> None:
        """Check every file that results were measured with, and pin those that the plan names.

        Raises FileChangedError.
        """
        with self._database.reading():
            stored = [
                self._database.load(Pin, body)
                for (body,) in self._database.rows("SELECT body FROM files")
            ]
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
            *(job.id, job.cells.index(result.cell), result.status, self._database.dump(result)),
        )

    def _end(self, job: Job, state: JobState, reason: str | None) -> None:
        self._database.execute(
            "UPDATE jobs SET state = ?, reason = ?, ended = ? WHERE id = ?",
            *(state, reason, time.time(), job.id),
        )

    def _abandon(self, job: Job, reason: str) -> None:
        for cell in job.cells:
            self._insert(job, CellResult(cell=cell, status="error", reason=reason))
        self._end(job, "failed", reason)

    def _require_same(
        self, plan: RunPlan, models: tuple[ModelFile, ...], jobs: tuple[Job, ...]
    ) -> None:
        """Raise RequestError unless the store is of this plan, on these files.

        What nothing was measured by may differ: the plan as it stands now is stored then.
        """
        changes = changed_keys(self.plan, plan)
        if changed_keys(judged_as(self.plan, plan), plan):
            raise RequestError(
                f"{self.folder} holds the run of another plan: {', '.join(changes)}; "
                "give another folder"
            )
        stored = {record.job.id: record.job for record in self.jobs()}
        wanted = {job.id: job for job in jobs}
        differing = {
            job.model: None
            for identity, job in {**stored, **wanted}.items()
            if not (identity in stored and identity in wanted)
        }
        if differing:
            raise RequestError(
                f"{self.folder} holds a run of other model files: {', '.join(differing)} (changed, "
                "added or removed since); give another folder"
            )
        with self._database.reading():
            if stored != wanted or {model.name for model in models} != set(self.paths):
                raise ValueError("its jobs or models are not those of its plan")
        if changes:
            with self._transaction():
                self._database.execute(
                    "UPDATE run SET plan = ?", self._database.dump(plan, exact=True)
                )
            self.plan, self.rejudged = plan, changes

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._lock is not None:
            self._lock.check()
        with self._database.transaction():
            yield


def _build(path: Path, plan: RunPlan, models: tuple[ModelFile, ...], jobs: tuple[Job, ...]) -> None:
    def fill(database: Database) -> None:
        database.execute(
            "INSERT INTO run VALUES (?, ?, ?)", FORMAT, time.time(), database.dump(plan, exact=True)
        )
        for number, model in enumerate(models):
            database.execute(
                "INSERT INTO models VALUES (?, ?, ?, NULL)",
                *(number, model.name, database.dump(model)),
            )
        for number, job in enumerate(jobs):
            database.execute(
                "INSERT INTO jobs (ordinal, id, body) VALUES (?, ?, ?)",
                *(number, job.id, database.dump(job)),
            )

    Database.build(path, fill)


def _finite(result: CellResult) -> CellResult:
    for path, value in non_finite(result):
        raise ValueError(f"{path} of a cell is {value}")
    return result


def _whole(job: Job, state: JobState, cells: int) -> Job:
    """Return a job whose state can be that of its stored cells. Raises ValueError."""
    if state not in get_args(JobState):
        raise ValueError(f"a job is {state!r}")
    if cells != len(job.cells) and state in ("done", "failed"):
        raise ValueError(f"a job of {len(job.cells)} cells is {state} with {cells}")
    return job


def _time(value: float) -> float:
    """Seconds since the epoch from a database. Raises ValueError where they cannot be."""
    if not (math.isfinite(value) and 0 <= value < _LATEST_TIME):
        raise ValueError(f"the time {value!r} is out of range")
    return float(value)
