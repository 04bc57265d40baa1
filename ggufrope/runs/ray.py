"""A run carried out on Ray: the same jobs on as many machines as the cluster has.

Ray places the workers, one per GPU where GPUs are wanted. A worker that is lost is replaced, and
its job tried again, except for the cells that have arrived. Model files, and a table of
architectures that is named, must be at the same paths on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ggufrope.backends.opened import OPENER, opener
from ggufrope.errors import BackendError, GgufRopeError, MissingDependencyError
from ggufrope.rope.architectures import VARIABLE
from ggufrope.runs.driver import Exited, new_worker_name
from ggufrope.runs.worker import Assignment, Failed, Finished, Message, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.runs.plan import RunPlan


class RemoteWorker:
    """What runs in a Ray actor: a worker, made with its first job so that a failure is reported."""

    def __init__(self, plan: RunPlan, paths: Mapping[str, str], opener_name: str) -> None:
        self._plan, self._paths, self._opener_name = plan, paths, opener_name
        self._worker: Worker | None = None

    def carry_out(self, assignment: Assignment) -> Iterator[Message]:
        """Yield what comes of a job; first of all the environment."""
        if self._worker is None:
            self._worker = Worker(self._plan, self._paths, opener(self._opener_name))
            yield self._worker.started()
        yield from self._worker.carry_out(assignment)


class RayTransport:
    """One Ray actor at each place.

    `opener` is "package.module:function", importable on every machine; `address` is the cluster's,
    None for one on this machine alone. By default there is one worker with a GPU for each device
    that the plan names (Ray says which GPU), or else one worker without.
    """

    def __init__(
        self,
        opener: str = OPENER,
        *,
        workers: int | None = None,
        gpus_each: float | None = None,
        cpus_each: float = 1,
        address: str | None = None,
    ) -> None:
        self._opener = opener
        self._workers = workers
        self._gpus_each = gpus_each
        self._cpus_each = cpus_each
        self._address = address
        self._ray: Any = None
        self._begun_here = False
        self._actors: dict[int, tuple[str, Any]] = {}
        self._streams: dict[int, Any] = {}

    def open(self, plan: RunPlan, paths: Mapping[str, str], logs: Path) -> int:
        """Connect to the cluster, or start one. Raises MissingDependencyError without Ray."""
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "a cluster needs Ray: pip install 'ggufrope[cluster]', on every machine"
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            self._begun_here = True
            ray.init(address=self._address, include_dashboard=False, log_to_driver=False)
        devices = len(plan.runtime.devices)
        gpus = self._gpus_each if self._gpus_each is not None else min(1, devices)
        options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": self._cpus_each, "max_restarts": 0}
        if VARIABLE in os.environ:
            options["runtime_env"] = {"env_vars": {VARIABLE: os.environ[VARIABLE]}}
        self._remote = ray.remote(**options)(RemoteWorker)
        self._arguments = (plan, paths, self._opener)
        return self._workers or devices or 1

    def send(self, place: int, assignment: Assignment) -> str:
        """Give a job to the actor at a place."""
        if place not in self._actors:
            self._actors[place] = new_worker_name(), self._remote.remote(*self._arguments)
        name, actor = self._actors[place]
        method = actor.carry_out.options(num_returns="streaming")
        self._streams[place] = method.remote(assignment)
        return name

    def receive(self) -> tuple[int, Message | Exited]:
        """Wait for a message of any actor that has a job."""
        streams = {stream: place for place, stream in self._streams.items()}
        (ready,), _ = self._ray.wait(list(streams), num_returns=1)
        place = streams[ready]
        try:
            message: Message | Exited = self._ray.get(next(ready))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, GgufRopeError):
                raise error.cause from error
            raise BackendError(f"a Ray worker cannot work: {error.cause}") from error
        except self._ray.exceptions.RayActorError:
            # Ray does not say how: the machine may be lost as well as the process.
            message = Exited(reason=None)
            del self._actors[place]
        if isinstance(message, (Failed, Finished, Exited)):
            del self._streams[place]
        return place, message

    def end(self, place: int) -> None:
        """End the actor at a place, if there is one."""
        if place in self._actors:
            _, actor = self._actors.pop(place)
            self._ray.kill(actor)

    def close(self) -> None:
        """End every actor, and the cluster where it was started here."""
        for place in tuple(self._actors):
            self.end(place)
        self._streams.clear()
        if self._begun_here:
            self._ray.shutdown()
