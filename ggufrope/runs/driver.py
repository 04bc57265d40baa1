"""A run carried out: the driver alone has the store, and hands jobs to the workers of a transport.

There are three transports: in this process (`InlineTransport`), in worker processes
(`ProcessTransport`), and on Ray (`ray.RayTransport`). Each has a number of places; a place holds
one worker at a time, and a worker carries out one job at a time.

llama.cpp ends the process on an assertion, the kernel when memory runs out. This is the one policy
for workers that die:

- The transport saw how the worker died: the job is abandoned at once, because an assertion or a
  lack of memory repeats. Its cells without a result become errors that say how it died.
- Nobody saw how: a machine of the cluster is lost, or the driver itself is killed with its worker.
  The job stays pending and is tried again, by this driver or the next one. It is abandoned after
  `store.MAX_CRASHES` starts that gave no more cells.
- A job that is interrupted (Ctrl-C, or an error that is not its fault) stays pending, uncounted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeAlias
from uuid import uuid4

from ggufrope._plain import decode, encode
from ggufrope.backends.opened import OPENER
from ggufrope.container.pins import FileChangedError, FileState, file_state
from ggufrope.errors import BackendError, MissingDependencyError, RequestError, StorageError
from ggufrope.evals.puzzles.tool_calls import require_schemas
from ggufrope.evals.results import CellResult
from ggufrope.runs.jobs import Job, Selection, expand
from ggufrope.runs.models import identify, models_of, resolve_base
from ggufrope.runs.needless import NeedlessCells
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import RunStore
from ggufrope.runs.worker import (
    Assignment,
    Failed,
    Finished,
    Message,
    Setup,
    Started,
    Unable,
    Worker,
    message_line,
    parse_message,
)

if TYPE_CHECKING:
    from ggufrope.backends.opened import OpenModel
    from ggufrope.lm import Progress
    from ggufrope.runs.models import Identify, ModelFile
    from ggufrope.runs.worker import OnJob

OnCell: TypeAlias = Callable[[CellResult], None]

_ERRORS: dict[str, type[BackendError | MissingDependencyError | RequestError | StorageError]] = {
    kind.__name__: kind
    for kind in (MissingDependencyError, RequestError, StorageError, FileChangedError)
}
"""Reasons why a worker cannot work at all; any other is a BackendError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A worker has died. `reason` is how, None where the transport could not see it."""

    reason: str | None


class Transport(Protocol):
    """Where workers are. Places are numbered from 0."""

    def open(self, plan: RunPlan, paths: Mapping[str, str], logs: Path) -> int:
        """Get ready for a run; return the number of places. Workers write their logs to `logs`."""
        ...

    def send(self, place: int, assignment: Assignment) -> str:
        """Give a job to the worker at a place, started where there is none; return its name."""
        ...

    def receive(self) -> tuple[int, Message | Exited]:
        """Wait for the next message of any place with a job.

        Raises GgufRopeError where a worker cannot work at all, for a reason that is no job's.
        """
        ...

    def end(self, place: int) -> None:
        """End the worker at a place, which has no job, and free its memory."""
        ...

    def close(self) -> None:
        """End every worker, and what it is doing."""
        ...


def open_run(plan: RunPlan, folder: Path, *, identify: Identify = identify) -> RunStore:
    """Return the run of `plan` in `folder`, made there or taken up, locked for this process.

    Where only thresholds have changed, the plan as it stands now is stored, and the results are
    judged by it. Raises RequestError where the folder holds the run of another plan, FileError
    where a model or another file of the plan is missing or has changed, or another process is
    running the folder, MissingDependencyError where a task needs a package that is not installed.
    Texts and question files are read here too: RequestError where one is not what it should be.
    """
    # A plan made in Python may have values that none read from a file could have.
    plan = decode(RunPlan, encode(plan, exact=True))
    if "tool-call" in plan.measured:
        require_schemas()
    for name in plan.files:
        if not Path(name).is_file():
            what = "a folder" if Path(name).is_dir() else "no such file"
            raise StorageError(f"{name}: {what}, though the plan names it as a file")
    _read_texts(plan)
    states: dict[str, FileState] = {}

    def watched(name: str, path: Path) -> ModelFile:
        states[str(path)] = file_state(path)
        return identify(name, path)

    models = models_of(plan, watched)
    jobs = expand(plan, models, resolve_base(plan, models, watched))
    return RunStore.create(folder, plan, models, jobs, states=states)


def _read_texts(plan: RunPlan) -> None:
    """Read the texts that tasks of a plan will read. Raises RequestError, StorageError."""
    from ggufrope.evals.ruler.task import RulerSource
    from ggufrope.evals.texts import chosen_text, haystack_text

    haystack_text(plan)
    chosen_text(plan)
    if "ruler" in plan.measured:
        RulerSource.read(plan.ruler, 0)


def drive(
    store: RunStore,
    transport: Transport,
    *,
    selection: Selection | None = None,
    on_cell: OnCell | None = None,
) -> None:
    """Carry out the pending jobs of a run, or those of a selection; keep every result.

    `store` is open to be carried out, from `open_run`. `on_cell` is called with each result when it
    is kept. What goes wrong in a job is recorded with the job. Raises MissingDependencyError or
    BackendError where the workers cannot work at all, StorageError where results cannot be kept,
    RequestError where the selection chooses nothing.
    """
    records = store.jobs()
    chosen = (selection or Selection()).choose(tuple(record.job for record in records))
    wanted = {job.id for job in chosen}
    pending = [r.job for r in records if r.job.id in wanted and r.state == "pending"]
    if not pending:
        return
    _Driver(store, transport, pending, on_cell).carry_out()


class _Driver:
    """The pending jobs of a run and the jobs at the places of a transport."""

    def __init__(
        self, store: RunStore, transport: Transport, pending: list[Job], on_cell: OnCell | None
    ) -> None:
        self._store = store
        self._transport = transport
        self._pending = pending
        self._on_cell = on_cell
        self._at: dict[int, Job] = {}
        self._worker: dict[int, str] = {}
        self._model: dict[int, str] = {}
        self._needless = NeedlessCells(store)
        self._pins = store.pin_models({job.model for job in pending})

    def carry_out(self) -> None:
        """Keep every place busy until no job is left."""
        try:
            places = self._transport.open(
                self._store.plan, self._store.paths, self._store.folder / "logs"
            )
            for place in range(places):
                self._send(place)
            while self._at:
                place, message = self._transport.receive()
                self._handle(place, message)
                if place not in self._at:
                    self._send(place)
                if place not in self._at:
                    self._transport.end(place)
        finally:
            try:
                self._transport.close()
            finally:
                # Where results cannot be kept, this cannot either: the reason is on its way.
                with suppress(StorageError):
                    for job in self._at.values():
                        self._store.release(job)

    def _send(self, place: int) -> None:
        """Give a place the next job, one on the model that is loaded there where there is one."""
        if (job := self._next(self._model.get(place))) is None:
            return
        assignment = Assignment(
            job=job,
            done=self._store.results_of(job),
            pins=self._pins[job.model],
        )
        self._worker[place] = self._transport.send(place, assignment)
        self._store.start(job, self._worker[place])
        self._at[place], self._model[place] = job, job.model

    def _next(self, model: str | None) -> Job | None:
        """Take the next job that is to be measured, one on this model where there is one."""
        while self._pending:
            job = next((job for job in self._pending if job.model == model), self._pending[0])
            self._pending.remove(job)
            for result in self._needless.of(job):
                self._keep(job, result)
            if len(self._store.results_of(job)) < len(job.cells):
                return job
            self._store.finish(job)
        return None

    def _keep(self, job: Job, result: CellResult) -> None:
        self._store.append(job, result)
        if self._on_cell is not None:
            self._on_cell(result)

    def _handle(self, place: int, message: Message | Exited) -> None:
        """Record what a message says; the place has no job any more where that has ended."""
        job = self._at[place]
        match message:
            case Started(environment=environment):
                self._store.register(self._worker[place], dict(environment))
            case CellResult():
                self._keep(job, message)
            case Failed(reason=reason):
                self._store.fail(job, reason)
                del self._at[place]
            case Finished():
                self._store.finish(job)
                del self._at[place]
            case Exited(reason=reason):
                self._record_exit(job, reason)
                del self._at[place], self._model[place]
            case Unable(error=name, message=text):
                raise _ERRORS.get(name, BackendError)(text)

    def _record_exit(self, job: Job, reason: str | None) -> None:
        """Apply the policy for workers that die, at the top of this module."""
        if reason is not None:
            self._store.fail(job, reason)
        elif self._store.record_crash(job):
            self._pending.insert(0, job)


def new_worker_name() -> str:
    """Return a name unlike any other worker's, on any machine, that names no machine."""
    return f"{os.getpid()}-{uuid4().hex[:12]}"


class InlineTransport:
    """One worker, in this process. `open_model` opens models.

    `on_job` is called with each job that begins, `progress` with tokens as they are evaluated.
    """

    def __init__(
        self,
        open_model: OpenModel,
        *,
        on_job: OnJob | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._open_model = open_model
        self._on_job = on_job
        self._progress = progress
        self._name = new_worker_name()
        self._first = True
        self._worker: Worker | None = None
        self._messages: Generator[Message] | None = None

    def open(self, plan: RunPlan, paths: Mapping[str, str], logs: Path) -> int:
        """Make the worker; there is one place."""
        self._worker = Worker(
            plan, paths, self._open_model, on_job=self._on_job, progress=self._progress
        )
        return 1

    def send(self, place: int, assignment: Assignment) -> str:
        """Take a job to carry out while its messages are received."""
        assert self._worker is not None, "open() comes first"
        first, self._first = self._first, False
        self._messages = _introduced(self._worker, assignment, first=first)
        return self._name

    def receive(self) -> tuple[int, Message]:
        """Work until there is something to say."""
        assert self._messages is not None, "send() comes first"
        return 0, next(self._messages)

    def end(self, place: int) -> None:
        """Free the model."""
        self.close()

    def close(self) -> None:
        """End a job that is under way, with its contexts, and free the model."""
        if self._messages is not None:
            self._messages.close()
        if self._worker is not None:
            self._worker.close()


def _introduced(worker: Worker, assignment: Assignment, *, first: bool) -> Generator[Message]:
    """Yield the messages about a job, after the worker's own where it is its first."""
    if first:
        yield worker.started()
    yield from worker.carry_out(assignment)


_BUSY_END_SECONDS, _IDLE_END_SECONDS = 2.0, 10.0
"""Time that a worker process has to end by itself before it is killed."""


class ProcessTransport:
    """One worker process at each place, so that one that dies takes only its job with it.

    `opener` is "package.module:function", an `OpenModel` that workers can import. `environments`
    are variables to set, for one worker each; by default one worker for each CUDA device that the
    plan names, which sees only that, or else one worker.
    """

    def __init__(
        self, opener: str = OPENER, *, environments: Sequence[Mapping[str, str]] | None = None
    ) -> None:
        self._opener = opener
        self._environments = environments
        self._inbox: SimpleQueue[_Received] = SimpleQueue()
        self._at: dict[int, _Process] = {}
        self._ending: list[tuple[_Process, float]] = []

    def open(self, plan: RunPlan, paths: Mapping[str, str], logs: Path) -> int:
        """Remember what workers need; they start with their first job."""
        if self._environments is None:
            devices = [{"CUDA_VISIBLE_DEVICES": device} for device in plan.runtime.devices]
            self._environments = devices or [{}]
        self._setup = Setup(plan=plan, paths=tuple(paths.items()), opener=self._opener)
        self._logs = logs
        return len(self._environments)

    def send(self, place: int, assignment: Assignment) -> str:
        """Write the job to the worker at a place."""
        if place not in self._at or self._at[place].ended:
            assert self._environments is not None, "open() comes first"
            self._at[place] = _Process(
                place, self._setup, self._environments[place], self._logs, self._inbox
            )
        process = self._at[place]
        process.send(assignment)
        return process.name

    def receive(self) -> tuple[int, Message | Exited]:
        """Wait for a message of any worker that has a job."""
        while True:
            process, message = _wait_for(self._inbox)
            if isinstance(message, Exited) and self._at.get(process.place) is process:
                del self._at[process.place]
                if not process.started:
                    raise BackendError(f"a worker process could not start: {message.reason}")
            if process.busy:
                process.busy = not isinstance(message, (Failed, Finished, Exited))
                return process.place, message

    def end(self, place: int) -> None:
        """Begin to end the worker process at a place, if there is one."""
        if process := self._at.pop(place, None):
            process.close_pipe()
            limit = _BUSY_END_SECONDS if process.busy else _IDLE_END_SECONDS
            self._ending.append((process, time.monotonic() + limit))

    def close(self) -> None:
        """End every worker process, a busy one within seconds."""
        for place in tuple(self._at):
            self.end(place)
        for process, deadline in self._ending:
            process.end(deadline)
        self._ending.clear()


_Received: TypeAlias = "tuple[_Process, Message | Exited]"


class _Process:
    """One worker process, its pipes and its log."""

    def __init__(
        self,
        place: int,
        setup: Setup,
        variables: Mapping[str, str],
        logs: Path,
        inbox: SimpleQueue[_Received],
    ) -> None:
        self.place = place
        self.name = new_worker_name()
        self.started = False
        self.busy = False
        self._inbox = inbox
        self._log = logs / f"{self.name}.log"
        try:
            logs.mkdir(exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", f"from {Worker.__module__} import main; main()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=os.environ | dict(variables),
                    # The driver alone gets Ctrl-C, and ends its workers.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
        except OSError as error:
            raise StorageError(f"{self._log}: cannot start a worker: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._write(message_line(setup))

    @property
    def ended(self) -> bool:
        """Whether the process has ended, though its last messages may not have been received."""
        return self._process.poll() is not None

    def send(self, assignment: Assignment) -> None:
        """Write a job to the worker."""
        self.busy = True
        self._write(message_line(assignment))

    def close_pipe(self) -> None:
        """Close the worker's standard input, which ends it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for the end of the process, killed at `deadline`, and release what is left."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _read(self) -> None:
        """Hand on the worker's messages; its own thread."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    message = parse_message(line)
                    self.started = self.started or isinstance(message, (Started, Unable))
                    self._inbox.put((self, message))
        self._process.wait()
        self.close_pipe()
        self._inbox.put((self, Exited(reason=self._exit_description())))

    def _exit_description(self) -> str:
        """How the process ended: the signal or exit status, and the last line of its log."""
        status = self._process.returncode
        description = f"worker ended with exit status {status}"
        if status < 0:
            description = f"worker killed by {signal.Signals(-status).name}"
            if -status == getattr(signal, "SIGKILL", None):
                description += " (possibly out of memory)"
        line = _last_line(self._log)
        return f"{description}; last log line: {line}" if line else description


def _wait_for(inbox: SimpleQueue[_Received]) -> _Received:
    """Return the next entry; waits in slices, because Windows holds Ctrl-C back meanwhile."""
    while True:
        with suppress(Empty):
            return inbox.get(timeout=0.5 if sys.platform == "win32" else None)


def _last_line(log: Path) -> str:
    """Return the last line of a log, "" where it has none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
            lines = stream.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
