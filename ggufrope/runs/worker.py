"""What carries out jobs: one loaded model, and messages about what comes of each job.

A worker knows nothing of the store. The driver runs one in its own process, in a process at the
other end of two pipes, or on another machine, and reads the same messages from each.

A worker process reads its setup and then assignments from standard input, one JSON line each, and
writes messages to standard output. Both are taken away from whatever else runs in the process:
what llama.cpp or a library prints goes to standard error, the worker's log. The end of standard
input ends the worker, so that it never outlives its driver.
"""

from __future__ import annotations

import _thread
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast, get_args

from ggufrope._plain import decode, encode
from ggufrope.backends.opened import opener
from ggufrope.backends.runtimes import require_room
from ggufrope.container.location import locate
from ggufrope.container.pins import FileChangedError, Pin, PinChecks
from ggufrope.errors import GgufRopeError, MissingDependencyError, UnsupportedCacheError
from ggufrope.evals.registry import TASKS
from ggufrope.evals.results import CellResult
from ggufrope.evals.task import Base, Cost, Task, TaskRequest
from ggufrope.runs.environment import environment
from ggufrope.runs.jobs import F16, Job, base_in_file, base_of
from ggufrope.runs.plan import RunPlan

if TYPE_CHECKING:
    from typing_extensions import Self

    from ggufrope.backends.opened import OpenedModel, OpenModel
    from ggufrope.evals.thresholds import Thresholds
    from ggufrope.lm import LanguageContext, OpenContext, Progress

_ContextsOf: TypeAlias = "Callable[..., OpenContext]"
OnJob: TypeAlias = Callable[[Job, int], None]
"""Called with a job that begins and the tokens it will evaluate."""

_MOST_ATTEMPTS = 3
"""How often a job is begun whose files are touched meanwhile."""

END_SECONDS = 1.5
"""Time that a busy worker process has to clean up when its driver is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A job to carry out, except for the cells that have the results `done`.

    `pins` are the files it is measured with, which must have the content they say.
    """

    job: Job
    done: tuple[CellResult, ...] = ()
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A worker works, in this environment; sent again when a loaded model adds to it."""

    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job could not be carried out, or not to its end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The job was carried out to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unable:
    """A worker process cannot work at all: the name of a GgufRopeError's class, and its message."""

    error: str
    message: str


Message: TypeAlias = Started | CellResult | Failed | Finished | Unable
"""What a worker sends: about each job ending with Failed or Finished."""


class Worker:
    """Holds the one model that is loaded, and loads another when a job needs it.

    `paths` are the files of the run's models by their names.
    """

    def __init__(
        self,
        plan: RunPlan,
        paths: Mapping[str, str],
        open_model: OpenModel,
        *,
        on_job: OnJob | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._plan = plan
        self._paths = paths
        self._open_model = open_model
        self._on_job = on_job
        self._progress = progress
        self._loaded: str | None = None
        self._described: str | None = None
        self._opened: OpenedModel | None = None
        self._base: OpenedModel | None = None
        self._checks = PinChecks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model, and the one that it is compared with."""
        for opened in (self._opened, self._base):
            if opened is not None:
                opened.close()
        self._opened, self._base, self._loaded = None, None, None

    def carry_out(self, assignment: Assignment) -> Generator[Message]:
        """Yield a job's results as they come, then Finished, or Failed where something goes wrong.

        MissingDependencyError is not the job's fault and is raised; so is FileChangedError, before
        a result of other content than the run's is yielded. A result that a file was touched under
        is measured again.
        """
        done = list(assignment.done)
        try:
            for _ in range(_MOST_ATTEMPTS):
                touched = None
                self._checks.check(assignment.pins)
                with closing(self._measure(replace(assignment, done=tuple(done)))) as measured:
                    for result in measured:
                        if touched := self._checks.check(assignment.pins):
                            break
                        # Only now: a model may be loaded when its first context is opened.
                        if self._described != self._loaded:
                            self._described = self._loaded
                            yield self.started()
                        yield result
                        done.append(result)
                if not touched:
                    break
                # What is loaded may be of another content. Its contexts are closed by now.
                self.close()
            else:
                raise FileChangedError(
                    f"{touched} was touched {_MOST_ATTEMPTS} times while it was measured with; "
                    "wait for what writes it, then give the same command again"
                )
        except (MissingDependencyError, FileChangedError):
            raise
        except GgufRopeError as error:
            yield Failed(reason=str(error))
        except MemoryError:
            yield Failed(reason="out of memory")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            yield Failed(reason=f"unexpected {type(error).__name__} at {place}: {error}")
        else:
            yield Finished()

    def started(self) -> Started:
        """Return the machine, the software, and how the loaded model runs on it."""
        details = {} if self._opened is None else self._opened.details
        return Started(environment=tuple((environment() | details).items()))

    def _measure(self, assignment: Assignment) -> Generator[CellResult]:
        """Yield the results of the cells to do as they finish.

        A cache type that this build cannot run makes its cells "unsupported"; a cell that the task
        gave no result for is "skipped". Raises RequestError where the job cannot be carried out.
        """
        job = assignment.job
        opened = self._load(job.model)
        contexts_of = partial(opened.contexts, largest=max(self._plan.contexts))
        task = TASKS[job.task]
        nudged = task.compares_with == "itself"
        contexts = _Watched(contexts_of(job.scaling, job.kv, nudged=nudged))
        request = TaskRequest(
            settings=self._plan,
            model=opened.model,
            open_context=contexts,
            cells=job.cells,
            done=assignment.done,
            recall_minimum=_recall_minimum(self._plan.limits),
            seed=job.seed,
            base=self._base_of(task, job, contexts_of),
            planned=None if self._on_job is None else partial(self._on_job, job),
            progress=self._progress,
        )
        left = dict.fromkeys(request.todo)
        before = time.monotonic()
        for result in task.run(request):
            now = time.monotonic()
            unsupported = result.status == "error" and contexts.unsupported
            status = "unsupported" if unsupported else result.status
            yield replace(result, status=status, elapsed_seconds=now - before)
            before = now
            del left[result.cell]
        for cell in left:
            yield CellResult(
                cell=cell,
                status="skipped",
                reason="not reached: the task stopped before this cell",
            )

    def _load(self, name: str) -> OpenedModel:
        if self._opened is None or self._loaded != name:
            self.close()
            self._opened = self._open_model(Path(self._paths[name]), self._plan.runtime)
            self._loaded = name
        return self._opened

    def _base_of(self, task: Task, job: Job, contexts_of: _ContextsOf) -> Base | None:
        """Return what the job's cells are compared with, None where its task compares nothing."""
        if task.compares_with is None:
            return None
        if self._plan.base is not None and task.compares_with != "itself":
            path, request = locate(self._plan.base), base_in_file(task.compares_with, job.scaling)
            if self._base is None:
                require_room(path, self._plan.runtime)
                self._base = self._open_model(path, self._plan.runtime)
            open_context = self._base.contexts(request, F16, largest=max(self._plan.contexts))
            scaled = "" if request.is_file else f" under {request.name}"
            return Base(
                name=f"{path.stem}{scaled} · {F16}", cost_of="file", open_context=open_context
            )
        base = base_of(task.compares_with, job.scaling, job.kv)
        if base is None:
            return None
        scaling, kv = base
        cost: Cost = "cache" if scaling == job.scaling else "scaling"
        name = f"{scaling.name} · {kv}"
        return Base(name=name, cost_of=cost, open_context=contexts_of(scaling, kv))


def _recall_minimum(thresholds: Thresholds) -> float | None:
    """Return the recall whose decision ends the whole prompts; a share of the control's recall,
    which is measured elsewhere, takes all of them."""
    return thresholds.recall if thresholds.recall_share is None else None


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


# In a worker process


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first line that a worker process reads.

    `opener` is "package.module:function", an `OpenModel`: functions do not travel between
    processes.
    """

    plan: RunPlan
    paths: tuple[tuple[str, str], ...]
    opener: str


def message_line(message: Message | Assignment | Setup) -> bytes:
    """Return a record as the line of JSON that says it between processes."""
    plain = {type(message).__name__: encode(message, exact=True)}
    return json.dumps(plain).encode() + b"\n"


def parse_message(line: bytes) -> Message:
    """Return the message in a line. Raises RequestError where there is none."""
    ((name, plain),) = json.loads(line).items()
    return cast("Message", decode(_MESSAGES[name], plain))


_MESSAGES: dict[str, type] = {kind.__name__: kind for kind in get_args(Message)}


def main() -> None:
    """Serve as a worker process until standard input ends."""
    incoming, outgoing = _take_pipes()
    inbox = _Inbox(incoming)

    def send(message: Message) -> None:
        if isinstance(message, (Failed, Finished)):
            inbox.busy = False
        outgoing.write(message_line(message))
        outgoing.flush()

    # The driver may be gone at any time, and with it the pipe.
    with suppress(BrokenPipeError, KeyboardInterrupt):
        try:
            _serve(inbox, send)
        except GgufRopeError as error:
            send(Unable(error=type(error).__name__, message=str(error)))


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes from and to the driver, and put nothing and the log in their places."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


class _Inbox:
    """The driver's lines, as they come; their end interrupts a job that is under way.

    `busy` is whether a job is: from its line until the message that ends it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.busy = False
        self._stream = stream
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> bytes:
        """Return the next line, b"" at the end."""
        return self._lines.get()

    def _read(self) -> None:
        for line in self._stream:
            self.busy = True
            self._lines.put(line)
        self._lines.put(b"")
        if self.busy:
            _thread.interrupt_main()
            time.sleep(END_SECONDS)
            os._exit(1)


def _serve(inbox: _Inbox, send: Callable[[Message], None]) -> None:
    if not (line := inbox.next()):
        return
    setup = decode(Setup, json.loads(line)[Setup.__name__])
    with Worker(setup.plan, dict(setup.paths), opener(setup.opener)) as worker:
        inbox.busy = False
        send(worker.started())
        while line := inbox.next():
            assignment = decode(Assignment, json.loads(line)[Assignment.__name__])
            # Closed before the model is, whatever happens: it may have contexts of the model open.
            with closing(worker.carry_out(assignment)) as messages:
                for message in messages:
                    send(message)
