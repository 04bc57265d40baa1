"""A run carried out on Ray: the same jobs on as many machines as the cluster has.

Ray places the workers, one a GPU where GPUs are asked for; results stream back to the caller, who
alone writes the store. A worker that is lost is replaced and its job taken up again, less the
cells that had arrived. Model files must be at the same paths on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufrope._files import sha256_of
from ggufrope.errors import BackendError, MissingDependencyError
from ggufrope.runs.driver import chosen_ids, new_worker_name
from ggufrope.runs.store import LifeLine, RunStore
from ggufrope.runs.subject import Bench, Failure, opener
from ggufrope.runs.tasks.registry import MEASURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ggufrope.evals.results import CellResult
    from ggufrope.runs.driver import OnCell
    from ggufrope.runs.jobs import Job, Selection
    from ggufrope.runs.plan import RunPlan


class RemoteBench:
    """What runs in a Ray actor: a bench, and its results with their environment in front."""

    def __init__(self, plan: RunPlan, paths: Mapping[str, str], opener_name: str) -> None:
        self._bench = Bench(plan, paths, opener(opener_name), MEASURES)

    def carry_out(
        self, job: Job, done: frozenset[int]
    ) -> Iterator[CellResult | Failure | dict[str, str]]:
        """The environment, then the results of the job."""
        told = False
        for result in self._bench.carry_out(job, done=done):
            if not told:
                yield self._bench.environment
                told = True
            yield result


def run_on_ray(
    folder: Path,
    opener_name: str,
    *,
    workers: int,
    gpus_each: float = 0,
    cpus_each: float = 1,
    address: str | None = None,
    selection: Selection | None = None,
    on_cell: OnCell | None = None,
) -> None:
    """Do what is left of the run in `folder` with `workers` Ray actors.

    `opener_name` is "package.module:function", importable on every machine; `address` is the
    cluster's, None for one on this machine alone. Raises MissingDependencyError without Ray,
    BackendError where a worker fails for a reason that is no job's.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "a cluster needs Ray: pip install 'ggufrope[cluster]', on every machine"
        ) from error
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        with RunStore(folder) as store:
            remote = ray.remote(num_gpus=gpus_each, num_cpus=cpus_each, max_restarts=0)(RemoteBench)

            def start() -> Any:
                return remote.remote(store.plan, store.paths, opener_name)

            slots = [_Slot(ray, store, start) for _ in range(workers)]
            _drive(ray, store, slots, chosen_ids(store, selection), on_cell)
    finally:
        if begun_here:
            ray.shutdown()


def _drive(
    ray: Any, store: RunStore, slots: list[_Slot], among: frozenset[str], on_cell: OnCell | None
) -> None:
    """Keep every slot busy until no job is left, taking results as they come."""
    try:
        busy = [slot for slot in slots if slot.begin(among)]
        while busy:
            ready, _ = ray.wait([slot.stream for slot in busy], num_returns=1)
            for slot in [slot for slot in busy if slot.stream in ready]:
                result = slot.receive()
                if result is not None and on_cell is not None:
                    on_cell(result)
                if not slot.job and not slot.begin(among):
                    busy.remove(slot)
    finally:
        for slot in slots:
            slot.stop()


class _Slot:
    """One actor at a time, the job it holds, and the stream of its results."""

    def __init__(self, ray: Any, store: RunStore, start: Any) -> None:
        self.job: Job | None = None
        self.stream: Any = None
        self._model: str | None = None
        self._ray, self._store, self._start = ray, store, start
        self._hire()

    def begin(self, among: frozenset[str]) -> bool:
        """Take a job and send it; False where none is left."""
        self.job = self._store.take(self._name, among, model=self._model)
        if self.job is None:
            return False
        self._model = self.job.model
        self._store.record_sha256(self.job.model, sha256_of)
        done = self._store.finished_cells(self.job)
        method = self._actor.carry_out.options(num_returns="streaming")
        self.stream = method.remote(self.job, done)
        return True

    def receive(self) -> CellResult | None:
        """Keep the next thing that came; a result is returned too."""
        if self.job is None:
            return None
        try:
            found = self._ray.get(next(self.stream))
        except StopIteration:
            self._store.finish(self.job)
            self.job = None
        except self._ray.exceptions.RayTaskError as error:
            raise BackendError(f"a Ray worker cannot work: {error.cause}") from error
        except self._ray.exceptions.RayActorError:
            # The dead holder's job is free again by the store's own rule, its deaths counted.
            self.job = None
            self._line.close()
            self._hire()
        else:
            return self._keep(self.job, found)
        return None

    def stop(self) -> None:
        """End the actor; a job it still holds is free again."""
        self._store.release(self._name)
        self._line.close()
        self._ray.kill(self._actor)

    def _keep(self, job: Job, found: CellResult | Failure | dict[str, str]) -> CellResult | None:
        if isinstance(found, dict):
            self._store.enrol(self._name, found)
        elif isinstance(found, Failure):
            self._store.fail(job, found.reason)
            self.job = None
        else:
            self._store.append(job, found)
            return found
        return None

    def _hire(self) -> None:
        self._name = new_worker_name()
        self._line = LifeLine(self._store.lifelines, self._name)
        self._actor = self._start()
        self._model = None
