"""Carrying plans out, with a bar, and answering with their report."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufrope.report.record import RunReport
    from ggufrope.runs.estimate import JobEstimate
    from ggufrope.runs.jobs import Job, Selection
    from ggufrope.runs.plan import RunPlan


def carry_out(plan: RunPlan, *, out: Path | None, json: bool) -> None:
    """Measure what `plan` says in this process, and answer with the report.

    Without `out` the results are shown and not kept.
    """
    from ggufrope.execution import open_subject
    from ggufrope.runs.driver import InlineTransport, drive, open_run

    from .progress import RunBar

    with ExitStack() as cleanup:
        if out is None:
            temporary = tempfile.TemporaryDirectory(prefix="ggufrope-run-")
            out = Path(cleanup.enter_context(temporary))
        repair(plan)
        store = cleanup.enter_context(open_run(plan, out))
        with answering(out, json=json), RunBar() as bar:
            drive(store, InlineTransport(open_subject, on_job=bar.begin, progress=bar.advance))


def carry_out_batch(
    plan: RunPlan,
    folder: Path,
    *,
    selection: Selection,
    retry_failed: bool,
    ray: bool,
    json: bool,
) -> None:
    """Measure what `plan` says in worker processes, one for each of its devices, or on Ray.

    On Ray each of the plan's devices is one worker with a GPU; Ray says which.
    """
    from ggufrope.runs.driver import ProcessTransport, drive, open_run
    from ggufrope.runs.ray import RayTransport

    from .progress import CellBar

    repair(plan)
    with open_run(plan, folder) as store:
        if retry_failed:
            store.retry_failed()
        jobs = selection.choose(tuple(entry.job for entry in store.jobs()))
        left = sum(len(job.cells) - len(store.finished_cells(job)) for job in jobs)
        transport = (
            RayTransport(address=os.environ.get("RAY_ADDRESS")) if ray else ProcessTransport()
        )
        with answering(folder, selection=selection, json=json), CellBar(left) as bar:
            drive(store, transport, selection=selection, on_cell=bar.advance)


def repair(plan: RunPlan) -> None:
    """Repair the plan's models where an edit was interrupted, and say so, as every command does."""
    from .files import model_path

    for name in plan.models:
        for path in sorted(glob.glob(name, recursive=True)) or [name]:  # noqa: PTH207
            model_path(path)


@contextmanager
def answering(folder: Path, *, selection: Selection | None = None, json: bool) -> Iterator[None]:
    """Show the report when the block ends, interrupted or not; leave with 1 where it fails."""
    import typer

    from .errors import CHECK_FAILED
    from .views import run as view

    try:
        yield
    except KeyboardInterrupt:
        view.answer(stored_report(folder, selection), json=json)
        raise
    report = stored_report(folder, selection)
    view.answer(report, json=json)
    if not report.passed:
        raise typer.Exit(CHECK_FAILED)


def matrix(
    plan: RunPlan, selection: Selection, *, tokens_per_second: float | None
) -> tuple[JobEstimate, ...]:
    """The selected jobs of `plan` and what each will take."""
    from ggufrope.advice.memory import memory_need
    from ggufrope.patching.inspection import read_model
    from ggufrope.runs.estimate import contexts_at_once, estimate
    from ggufrope.runs.jobs import expand
    from ggufrope.runs.models import resolve_models

    files = resolve_models(plan.models)
    models = {file.name: read_model(Path(file.path)) for file in files}

    def memory(job: Job, context_tokens: int) -> int:
        model = models[job.model]
        need = memory_need(
            model.header,
            model.metadata,
            context_tokens=context_tokens,
            k_type=job.kv.k,
            v_type=job.kv.v,
        )
        return need.total_bytes + (contexts_at_once(job) - 1) * (need.kv_bytes + need.compute_bytes)

    jobs = selection.choose(expand(plan, files))
    return estimate(plan, jobs, memory=memory, tokens_per_second=tokens_per_second)


def stored_report(folder: Path, selection: Selection | None = None) -> RunReport:
    """The report of the run in `folder`, or of a part; RequestError where there is none."""
    from ggufrope.errors import RequestError
    from ggufrope.report.record import report_of
    from ggufrope.runs.store import RunStore

    if not (folder / "run.sqlite").is_file():
        raise RequestError(f"{folder}: no run is stored there")
    with RunStore(folder) as store:
        return report_of(store, selection)
