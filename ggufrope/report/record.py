"""The report of a run: plan, models, environments, results, summary and verdicts.

It is always made from stored results. It can be made again later or on another machine, and an
unfinished run has one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from ggufrope.evals.results import CellResult
from ggufrope.evals.verdict import worst
from ggufrope.report.evidence import SettingVerdict, judge_settings
from ggufrope.report.summary import SummaryRow, summarize
from ggufrope.runs.jobs import Selection
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import JobRecord, ModelRecord, RunStore, WorkerRecord

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.backends.opened import OpenModel
    from ggufrope.evals.recall import Outcome
    from ggufrope.lm import Progress
    from ggufrope.runs.driver import OnCell, Transport

SCHEMA: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything about one run. `created` is the start time in UTC."""

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
    def outcome(self) -> Outcome | None:
        """The worst of the verdicts, or of those on the scaling that the plan requires; None where
        no threshold applies to what was measured."""
        required = self.plan.thresholds.require
        names = {
            request.name
            for request in self.plan.requests
            if required in (None, request.name, request.scaling)
        }
        return worst(v.verdict.outcome for v in self.verdicts if v.scaling in names)

    @property
    def passed(self) -> bool:
        """Whether the run is complete and no check fails, nor is one undecided unless the plan
        allows it."""
        allowed = self.plan.thresholds.allow_undecided
        accepted = (None, "pass", *(["undecided"] * allowed))
        return self.complete and self.measured_anything and self.outcome in accepted

    @property
    def measured_anything(self) -> bool:
        """Whether there is a result of any cell: all may have been skipped."""
        return any(cell.status == "ok" for cell in self.cells)

    @property
    def gates(self) -> bool:
        """Whether the outcome is that of the run: of several scalings the best counts, unless one
        is required."""
        return len(self.plan.scalings) == 1 or self.plan.thresholds.require is not None

    @property
    def compared(self) -> bool:
        """Whether the run is complete and every check has a score to judge."""
        checks = (check for entry in self.verdicts for check in entry.verdict.checks)
        return self.complete and all(check.measured is not None for check in checks)

    @property
    def complete(self) -> bool:
        """Whether every job has ended, with success or not."""
        return all(job.state in ("done", "failed") for job in self.jobs)

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the report."""
        # By its name: that module is about reports and imports this one.
        fragment: str = import_module("ggufrope.report.pictures").to_fragment(self)
        return fragment


def report_of(store: RunStore, selection: Selection | None = None) -> RunReport:
    """Return the report of a stored run, as far as it has come.

    With a `selection` the report covers the selected jobs only, and is complete when these are.
    Raises StorageError if the run cannot be read, RequestError if no job is selected.
    """
    plan, jobs, cells = store.plan, store.jobs(), store.results()
    if selection is not None:
        chosen = {job.id for job in selection.choose(tuple(entry.job for entry in jobs))}
        jobs = tuple(entry for entry in jobs if entry.job.id in chosen)
        selected = {cell for entry in jobs for cell in entry.job.cells}
        cells = tuple(result for result in cells if result.cell in selected)
    models = store.models()
    return RunReport(
        schema=SCHEMA,
        created=datetime.fromtimestamp(store.created, tz=timezone.utc),
        plan=plan,
        models=models,
        workers=store.workers(),
        jobs=jobs,
        cells=cells,
        summary=summarize(cells),
        verdicts=judge_settings(cells, plan, (model.file for model in models)),
    )


def run(
    plan: RunPlan,
    folder: Path,
    *,
    open_model: OpenModel | None = None,
    transport: Transport | None = None,
    selection: Selection | None = None,
    on_cell: OnCell | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Carry out `plan`, keep every result in `folder`, and return the report.

    The same call resumes a run that was interrupted. Without a `transport` the work is done in this
    process, on models that `open_model` opens, by default with llama.cpp; a plan with RPC servers
    goes to a worker process, which llama.cpp may end. With a `selection`
    only the jobs it chooses are done and reported. `on_cell` is called with each cell as it
    finishes, `progress` with tokens evaluated in this process. A job that fails is recorded.

    Raises MissingDependencyError without llama-cpp-python, RequestError or FileError where the plan
    cannot be carried out, or the folder holds the run of another plan or is in use.
    """
    from ggufrope.backends.opened import open_model as open_in_llama
    from ggufrope.runs.driver import InlineTransport, ProcessTransport, drive, open_run

    if transport is None and open_model is None and plan.runtime.rpc:
        transport = ProcessTransport()
    with open_run(plan, folder) as store:
        workers = transport or InlineTransport(open_model or open_in_llama, progress=progress)
        drive(store, workers, selection=selection, on_cell=on_cell)
        return report_of(store, selection)
