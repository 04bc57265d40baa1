"""Taking jobs from a run and carrying them out, one after the other, in this process.

However many processes take part and whoever started them, this is what each of them does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from .bench import Bench, Failure
from .cells import CellResult
from .jobs import Job, Selection
from .liveness import LifeLine
from .models import sha256_of
from .store import RunStore
from .tasks import MEASURES, Measure

if TYPE_CHECKING:
    from pathlib import Path

    from ..evals.protocol import Progress
    from .plan import TaskName
    from .subject import OpenSubject

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

    What goes wrong in a job is recorded with the job. MissingPartError is no fault of a job's and
    is raised, as is StorageError where results cannot be kept.
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
