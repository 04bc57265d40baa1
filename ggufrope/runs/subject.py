"""The model under test, as a run sees it: the only seam to a runtime.

`runs` measures whatever an opener returns. The command line's opener loads the file with
llama.cpp; tests pass one over the fake runtime. Worker processes import it by name, as in
"package.module:function", because functions do not travel between processes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from ggufrope.errors import (
    GgufRopeError,
    MissingDependencyError,
    RequestError,
    UnsupportedCacheError,
)
from ggufrope.evals.results import CellResult
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.environment import environment
from ggufrope.runs.plan import KvTypes, RuntimeSettings
from ggufrope.runs.tasks.request import Measure, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from ggufrope.evals.task import TaskName
    from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress
    from ggufrope.runs.jobs import Job
    from ggufrope.runs.plan import RunPlan


class Subject(Protocol):
    """One model, loaded."""

    @property
    def model(self) -> LanguageModel: ...

    @property
    def details(self) -> dict[str, str]:
        """What the report should say of how it runs: versions, devices, layers offloaded."""
        ...

    def contexts(self, trial: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """How to open contexts of this model under a scaling and with those cache types.

        `largest` is the longest context of the run in tokens, which a trial's factor follows from
        where it has none. Raises RequestError where the scaling makes no sense on this model.
        """
        ...

    def close(self) -> None: ...


OpenSubject: TypeAlias = Callable[[Path, RuntimeSettings], Subject]


def opener(name: str) -> OpenSubject:
    """The opener called "package.module:function". Raises RequestError where there is none."""
    module, _, function = name.partition(":")
    try:
        return cast("OpenSubject", getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(
            f"no opener {name!r}: expected package.module:function ({error})"
        ) from error


# A job carried out: a model loaded, a task put to it, results as they come, failure as a value.
#
# Knows nothing of the store, so that it can run here, in another process or on another machine.


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The job could not be carried out, or not to its end."""

    reason: str


class Bench:
    """Holds the one model that is loaded, and changes it when a job is about another.

    `paths` are the files of the run's models by their names.
    """

    def __init__(
        self,
        plan: RunPlan,
        paths: Mapping[str, str],
        open_subject: OpenSubject,
        tasks: Mapping[TaskName, Measure],
    ) -> None:
        self.loaded: str | None = None
        self._plan = plan
        self._paths = paths
        self._open_subject = open_subject
        self._tasks = tasks
        self._subject: Subject | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    @property
    def environment(self) -> dict[str, str]:
        """The machine, the software, and how the loaded model runs on it."""
        return environment() | ({} if self._subject is None else self._subject.details)

    def carry_out(
        self,
        job: Job,
        *,
        done: frozenset[int] = frozenset(),
        planned: Progress | None = None,
        progress: Progress | None = None,
    ) -> Iterator[CellResult | Failure]:
        """The results of a job's cells as they finish, but for those whose numbers are `done`.

        What goes wrong ends them with a Failure. MissingDependencyError is no fault of the job's
        and is raised.
        """
        try:
            subject = self._load(job.model)
            yield from measure(
                self._plan,
                job,
                subject,
                self._tasks[job.task],
                done=done,
                planned=planned,
                progress=progress,
            )
        except MissingDependencyError:
            raise
        except GgufRopeError as error:
            yield Failure(reason=str(error))
        except MemoryError:
            yield Failure(reason="out of memory")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            yield Failure(reason=f"unexpected {type(error).__name__} at {place}: {error}")

    def _load(self, name: str) -> Subject:
        if self._subject is None or self.loaded != name:
            self._clear()
            self._subject = self._open_subject(Path(self._paths[name]), self._plan.runtime)
            self.loaded = name
        return self._subject

    def _clear(self) -> None:
        if self._subject is not None:
            self._subject.close()
        self._subject, self.loaded = None, None


def measure(
    plan: RunPlan,
    job: Job,
    subject: Subject,
    task: Measure,
    *,
    done: frozenset[int] = frozenset(),
    planned: Progress | None = None,
    progress: Progress | None = None,
) -> Iterator[CellResult]:
    """The results of a job's cells as they finish, but for those whose numbers are `done`.

    A cache type that cannot be run makes its cells "unsupported"; a cell the task gave no result
    for is "skipped". Raises RequestError where the job cannot be carried out at all.
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
        planned=planned,
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
        except UnsupportedCacheError:
            self.unsupported = True
            raise
