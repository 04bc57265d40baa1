"""A run carried out: jobs taken from the store, measured here or by worker processes.

llama.cpp ends the process on an assertion, the kernel when memory runs out. A worker process that
dies takes only its job with it: the parent sees how it ended, records the job it held as failed
with the signal and the last thing it said, and starts another in its place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from ggufrope._files import sha256_of
from ggufrope._plain import encode
from ggufrope.errors import BackendError, MissingDependencyError, StorageError
from ggufrope.evals.results import CellResult
from ggufrope.runs.jobs import Job, Selection
from ggufrope.runs.store import LifeLine, RunStore
from ggufrope.runs.subject import Bench, Failure
from ggufrope.runs.tasks.registry import MEASURES
from ggufrope.runs.tasks.request import Measure

if TYPE_CHECKING:
    from ggufrope.evals.task import TaskName
    from ggufrope.lm import Progress
    from ggufrope.runs.subject import OpenSubject


# Taking jobs from a run and carrying them out, one after the other, in this process.
#
# However many processes take part and whoever started them, this is what each of them does.

OnCell: TypeAlias = Callable[[CellResult], None]
OnJob: TypeAlias = Callable[[Job, int], None]
"""Called with a job that begins and the tokens it will evaluate."""


def new_worker_name() -> str:
    """Unlike any other's, on any machine, and naming none."""
    return f"{os.getpid()}-{uuid4().hex[:12]}"


def work(
    folder: Path,
    open_subject: OpenSubject,
    *,
    selection: Selection | None = None,
    worker: str | None = None,
    tasks: Mapping[TaskName, Measure] = MEASURES,
    on_job: OnJob | None = None,
    on_cell: OnCell | None = None,
    progress: Progress | None = None,
) -> None:
    """Do what is left of the run in `folder`, as far as other workers leave it.

    What goes wrong in a job is recorded with the job. MissingDependencyError is no fault of a
    job's and is raised, as is StorageError where results cannot be kept.
    """
    name = worker or new_worker_name()
    with RunStore(folder) as store, LifeLine(store.lifelines, name):
        among = chosen_ids(store, selection)
        with Bench(store.plan, store.paths, open_subject, tasks) as bench:
            store.enrol(name, bench.environment)
            while job := store.take(name, among, model=bench.loaded):
                try:
                    _do(store, name, job, bench, on_job, on_cell, progress)
                except BaseException:
                    store.release(name)
                    raise


def chosen_ids(store: RunStore, selection: Selection | None) -> frozenset[str]:
    """Ids of the jobs to do."""
    jobs = tuple(entry.job for entry in store.jobs())
    return frozenset(job.id for job in (selection or Selection()).choose(jobs))


def _do(
    store: RunStore,
    worker: str,
    job: Job,
    bench: Bench,
    on_job: OnJob | None,
    on_cell: OnCell | None,
    progress: Progress | None,
) -> None:
    """One job, to its end or its failure."""
    loaded = bench.loaded
    store.record_sha256(job.model, sha256_of)
    for result in bench.carry_out(
        job,
        done=store.finished_cells(job),
        planned=None if on_job is None else partial(on_job, job),
        progress=progress,
    ):
        if isinstance(result, Failure):
            store.fail(job, result.reason)
            return
        if bench.loaded != loaded:
            loaded = bench.loaded
            store.enrol(worker, bench.environment)
        store.append(job, result)
        if on_cell is not None:
            on_cell(result)
    store.finish(job)


CANNOT_GO_ON = 3
"""Exit status where the worker itself failed, not a job; the last line on stderr says how."""


# A run carried out by worker processes, so that one that dies takes only its job with it.
#
# llama.cpp ends the process on an assertion, the kernel when memory runs out. The parent sees how
# each worker ended, records the job it held as failed with the signal and the last thing it said,
# and starts another in its place.

POLL_SECONDS = 0.1
_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for one worker at a time; `environment` is set for it, a GPU's number say."""

    environment: Mapping[str, str]

    @classmethod
    def on_gpu(cls, device: str) -> Slot:
        """A slot that sees only the CUDA device of that number or UUID."""
        return cls(environment={"CUDA_VISIBLE_DEVICES": device})


def run_in_processes(
    folder: Path,
    opener: str,
    *,
    slots: Sequence[Slot] = (Slot(environment={}),),
    selection: Selection | None = None,
    on_cell: OnCell | None = None,
) -> None:
    """Do what is left of the run in `folder`, with one worker a slot.

    `opener` is "package.module:function", an OpenSubject that workers can import. Raises
    MissingDependencyError or BackendError where no worker can work at all.
    """
    selection = selection or Selection()
    with RunStore(folder) as store, ExitStack() as cleanup:
        seen = store.last_cell
        workers = [_Worker(folder, opener, slot, selection) for slot in slots]
        for worker in workers:
            cleanup.callback(worker.stop)
        while workers:
            time.sleep(POLL_SECONDS)
            for worker in [w for w in workers if w.ended]:
                workers.remove(worker)
                if _bury(store, worker):
                    successor = _Worker(folder, opener, worker.slot, selection)
                    cleanup.callback(successor.stop)
                    workers.append(successor)
            if on_cell is not None:
                for mark, result in store.results_after(seen):
                    on_cell(result)
                    seen = mark


def _bury(store: RunStore, worker: _Worker) -> bool:
    """Record how a worker ended; whether another should take its place."""
    if worker.status == 0:
        return False
    if worker.status == CANNOT_GO_ON:
        kind, _, message = worker.last_words.partition(": ")
        failure = {"MissingDependencyError": MissingDependencyError, "StorageError": StorageError}
        raise failure.get(kind, BackendError)(message or "the worker could not go on")
    job = store.held_by(worker.name)
    if job is None:
        raise BackendError(f"a worker ended before it took a job: {worker.fate}")
    store.fail(job, f"its process was ended: {worker.fate}")
    return True


class _Worker:
    """One worker process and its log."""

    def __init__(self, folder: Path, opener: str, slot: Slot, selection: Selection) -> None:
        self.slot = slot
        self.name = new_worker_name()
        self._log = folder / "logs" / f"{self.name}.log"
        arguments = {
            "folder": str(folder),
            "worker": self.name,
            "opener": opener,
            "selection": encode(selection),
        }
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | slot.environment,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def last_words(self) -> str:
        """The last line it wrote, "" where it wrote none."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LAST_WORDS_BYTES))
            lines = log.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @property
    def fate(self) -> str:
        """How it ended, in words: the signal or exit status, and its last line."""
        status = self._process.returncode
        fate = f"exit status {status}"
        if status < 0:
            fate = signal.Signals(-status).name
            if -status == getattr(signal, "SIGKILL", None):
                fate += " (as the kernel does when memory runs out)"
        return f"{fate}; its last words: {self.last_words}" if self.last_words else fate

    def stop(self) -> None:
        """Close its lifeline and wait; it ends by itself, or is ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
