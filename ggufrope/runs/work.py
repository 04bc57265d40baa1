"""Taking jobs from a run and carrying them out, one after the other, in this process.

However many processes take part and whoever started them, this is what each of them does.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from ..errors import CacheTypeError, GgufRopeError, MissingPartError
from .cells import CellResult
from .environment import environment
from .jobs import Job, Selection
from .liveness import LifeLine
from .models import sha256_of
from .store import RunStore
from .tasks import MEASURES, Measure, Request

if TYPE_CHECKING:
    from types import TracebackType

    from ..evals.protocol import LanguageContext, Progress
    from ..evals.types import OpenContext
    from .plan import RunPlan, TaskName
    from .subject import OpenSubject, Subject

OnCell: TypeAlias = Callable[[CellResult], None]
OnJob: TypeAlias = Callable[[Job, int], None]
"""Called with a job that begins and the tokens it will evaluate."""


def new_worker_name() -> str:
    return f"{platform.node() or 'host'}-{os.getpid()}-{uuid4().hex[:8]}"


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

    What goes wrong in a job is recorded with the job. MissingPartError is not a job's fault and
    goes through, as does StorageError where results cannot be kept.
    """
    name = worker or new_worker_name()
    with RunStore(folder) as store, LifeLine(store.lifelines, name):
        plan = store.plan
        chosen = (selection or Selection()).choose(tuple(entry.job for entry in store.jobs()))
        among = frozenset(job.id for job in chosen)
        store.enrol(name, environment())
        with _Bench(store, name, open_subject, plan) as bench:
            while job := store.take(name, among, model=bench.loaded):
                try:
                    _do(store, job, bench, tasks[job.task], on_job, on_cell, progress)
                except BaseException:
                    store.release(name)
                    raise


def _do(
    store: RunStore,
    job: Job,
    bench: _Bench,
    task: Measure,
    on_job: OnJob | None,
    on_cell: OnCell | None,
    progress: Progress | None,
) -> None:
    """One job, to its end or its failure."""
    try:
        subject = bench.subject(job.model)
        done = store.finished_cells(job)
        for result in measure(
            bench.plan,
            job,
            subject,
            task,
            done=done,
            on_job=on_job,
            progress=progress,
        ):
            store.append(job, result)
            if on_cell is not None:
                on_cell(result)
    except MissingPartError:
        raise
    except GgufRopeError as error:
        store.fail(job, str(error))
    except MemoryError:
        store.fail(job, "out of memory")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        store.fail(job, f"unexpected {type(error).__name__} at {place}: {error}")
    else:
        store.finish(job)


def measure(
    plan: RunPlan,
    job: Job,
    subject: Subject,
    task: Measure,
    *,
    done: frozenset[int] = frozenset(),
    on_job: OnJob | None = None,
    progress: Progress | None = None,
) -> Iterator[CellResult]:
    """The results of a job's cells as they finish, but for those whose numbers are `done`.

    A cache type that cannot be run makes its cells "unsupported"; a cell the task gave no result
    for is "skipped". Raises WishError where the job cannot be carried out at all.
    """
    contexts_of = partial(subject.contexts, largest=max(plan.contexts))
    contexts = _Watched(contexts_of(job.scaling, job.kv))
    left = {cell: None for number, cell in enumerate(job.cells) if number not in done}
    request = Request(
        plan=plan,
        job=job,
        cells=tuple(left),
        model=subject.model,
        open_context=contexts,
        contexts_of=contexts_of,
        planned=None if on_job is None else partial(on_job, job),
        progress=progress,
    )
    before = time.monotonic()
    for result in task(request):
        now = time.monotonic()
        unsupported = result.status == "error" and contexts.unsupported
        status = "unsupported" if unsupported else result.status
        yield replace(result, status=status, elapsed_seconds=now - before)
        before = now
        del left[result.cell]
    for cell in left:
        yield CellResult(cell=cell, status="skipped", reason="the task gave no result for it")


class _Watched:
    """An OpenContext that remembers whether the last attempt met an unsupported cache type."""

    def __init__(self, open_context: OpenContext) -> None:
        self._open_context = open_context
        self.unsupported = False

    def __call__(self, n_ctx: int) -> LanguageContext:
        self.unsupported = False
        try:
            return self._open_context(n_ctx)
        except CacheTypeError:
            self.unsupported = True
            raise


class _Bench:
    """Holds the one model that is loaded, and changes it when a job is about another."""

    def __init__(
        self, store: RunStore, worker: str, open_subject: OpenSubject, plan: RunPlan
    ) -> None:
        self.plan = plan
        self.loaded: str | None = None
        self._paths = {entry.file.name: entry.file.path for entry in store.models()}
        self._store = store
        self._worker = worker
        self._open_subject = open_subject
        self._subject: Subject | None = None

    def __enter__(self) -> _Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def subject(self, name: str) -> Subject:
        """The model called `name`, loaded."""
        if self._subject is None or self.loaded != name:
            self._clear()
            path = Path(self._paths[name])
            self._store.record_sha256(name, lambda: sha256_of(path))
            self._subject = self._open_subject(path, self.plan.runtime)
            self.loaded = name
            self._store.enrol(self._worker, environment() | self._subject.details)
        return self._subject

    def _clear(self) -> None:
        if self._subject is not None:
            self._subject.close()
        self._subject, self.loaded = None, None
