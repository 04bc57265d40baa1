"""Cells that need not be measured, because earlier results of the run decide them.

The question of the task `kv` is what a cache loses of what f16 answers. At a length where f16
answers none of a task's puzzles, no cache can lose any: they are not asked again for each pair,
unless the plan names their task itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.results import NOT_NEEDED, CellResult
from ggufrope.runs.jobs import F16

if TYPE_CHECKING:
    from ggufrope.runs.jobs import Job
    from ggufrope.runs.store import RunStore

_Key: TypeAlias = tuple[str, str, str, int]


class NeedlessCells:
    """What the results in a store make needless in the other jobs of the run."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        jobs = (record.job for record in store.jobs()) if store.plan.answers_kv else ()
        self._bases = {
            _key(job): job
            for job in jobs
            if job.task in DAMAGE_TASKS and job.task not in store.plan.tasks
            if job.kv == F16 and not job.cells[0].control
        }

    def of(self, job: Job) -> Iterator[CellResult]:
        """Yield the cells of a job that have no result and need none, as skipped.

        A base that is not measured whole at a length, or not without errors, decides nothing there.
        """
        base = self._bases.get(_key(job))
        if base is None or base.id == job.id or job.cells[0].control:
            return
        exact: dict[int, list[float | None]] = {}
        results = {result.cell: result for result in self._store.results_of(base)}
        for cell in base.cells:
            found = results.get(cell)
            value = None if found is None else found.value("exact")
            exact.setdefault(cell.context_tokens, []).append(value)
        done = {result.cell for result in self._store.results_of(job)}
        for cell in job.cells:
            answers = exact.get(cell.context_tokens, [])
            if cell not in done and answers and all(value == 0 for value in answers):
                reason = f"{NOT_NEEDED}: f16 answers none of these {len(answers)}, none can be lost"
                yield CellResult(cell=cell, status="skipped", reason=reason)


def _key(job: Job) -> _Key:
    return job.model, job.scaling.name, job.task, job.seed
