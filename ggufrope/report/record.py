"""A run's report: everything that was asked, with what, and what came of it.

Always made of stored results, so that a report can be made again, tomorrow or elsewhere, and a
run that is not finished has one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from ggufrope.evals.results import CellResult
from ggufrope.report.judging import SettingVerdict, judge_settings
from ggufrope.report.summary import SummaryRow, summarize
from ggufrope.runs.jobs import Selection
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import JobRecord, ModelRecord, RunStore, WorkerRecord

SCHEMA: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The whole of a run. `created` is when it was begun, in UTC."""

    schema: Literal[1]
    created: datetime
    plan: RunPlan
    models: tuple[ModelRecord, ...]
    workers: tuple[WorkerRecord, ...]
    jobs: tuple[JobRecord, ...]
    cells: tuple[CellResult, ...]
    summary: tuple[SummaryRow, ...]
    verdicts: tuple[SettingVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every setting passed every check, in a run that is complete."""
        return self.complete and all(entry.verdict.passed for entry in self.verdicts)

    @property
    def complete(self) -> bool:
        """Whether every job has ended, well or not."""
        return all(job.state in ("done", "failed") for job in self.jobs)


def report_of(store: RunStore, selection: Selection | None = None) -> RunReport:
    """The report of a stored run, as far as it has come, or of the part of it that `selection`
    chooses, which is then the whole. Raises StorageError, RequestError as the selection does."""
    plan, jobs, cells = store.plan, store.jobs(), store.results()
    if selection is not None:
        chosen = {job.id for job in selection.choose(tuple(entry.job for entry in jobs))}
        jobs = tuple(entry for entry in jobs if entry.job.id in chosen)
        asked = {cell for entry in jobs for cell in entry.job.cells}
        cells = tuple(result for result in cells if result.cell in asked)
    summary = summarize(cells)
    return RunReport(
        schema=SCHEMA,
        created=datetime.fromtimestamp(store.created, tz=timezone.utc),
        plan=plan,
        models=store.models(),
        workers=store.workers(),
        jobs=jobs,
        cells=cells,
        summary=summary,
        verdicts=judge_settings(summary, plan.thresholds),
    )
