"""Measure as a plan says, with a progress bar, and answer with the report."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .output import stderr_console
from .showing import View, answer
from .tables import shown

if TYPE_CHECKING:
    from ggufrope.report.record import RunReport
    from ggufrope.runs.jobs import Selection
    from ggufrope.runs.plan import RunPlan
    from ggufrope.runs.store import RunStore


def carry_out(plan: RunPlan, view: View, *, out: Path | None) -> None:
    """Measure in this process and show the report; without `out`, in a new folder under runs/.

    With RPC servers, in a worker process: llama.cpp ends the process that loses one.
    """
    from ggufrope.backends.opened import open_model
    from ggufrope.runs.driver import InlineTransport, ProcessTransport, drive, open_run
    from ggufrope.runs.models import require_formats

    from .errors import outlive_aborts
    from .progress import CellBar, RunBar
    from .start import announce, kept_results, take_llama

    if plan.runtime.server is None:
        outlive_aborts()
        take_llama(plan.runtime.llama_lib)
    with ExitStack() as cleanup:
        if out is None:
            name = plan.models[0] if plan.models else "server"
            out = cleanup.enter_context(kept_results(name))
        repair(plan)
        require_formats(plan)
        require_servers(plan)
        store = cleanup.enter_context(open_run(plan, out))
        tell_rejudged(store)
        jobs = [entry.job for entry in store.jobs() if entry.state == "pending"]
        announce(store, jobs)
        tell_too_few(plan, view)
        if plan.runtime.rpc:
            left = sum(len(job.cells) - len(store.results_of(job)) for job in jobs)
            with answering(out, view), CellBar(left) as cells:
                drive(store, ProcessTransport(), on_cell=cells.advance)
            return
        with answering(out, view), RunBar(len(jobs)) as bar:
            drive(store, InlineTransport(open_model, on_job=bar.begin, progress=bar.advance))


def carry_out_batch(
    plan: RunPlan,
    view: View,
    *,
    folder: Path,
    selection: Selection,
    retry_failed: bool,
    ray: bool,
) -> None:
    """Measure in worker processes, one per device of the plan, or on Ray; then show the report.

    On Ray, each device of the plan is one worker with a GPU that Ray assigns.
    """
    from ggufrope.runs.driver import ProcessTransport, drive, open_run
    from ggufrope.runs.models import require_formats
    from ggufrope.runs.ray import RayTransport

    from .progress import CellBar
    from .start import announce, take_llama

    if plan.runtime.llama_lib is not None:
        take_llama(plan.runtime.llama_lib)  # before there is a folder of results
    repair(plan)
    require_formats(plan)
    if not ray:
        require_servers(plan)
    with open_run(plan, folder) as store:
        tell_rejudged(store)
        if retry_failed:
            store.retry_failed()
        jobs = selection.choose(tuple(entry.job for entry in store.jobs()))
        announce(store, jobs)
        tell_too_few(plan, view)
        left = sum(len(job.cells) - len(store.results_of(job)) for job in jobs)
        transport = (
            RayTransport(address=os.environ.get("RAY_ADDRESS")) if ray else ProcessTransport()
        )
        with answering(folder, view, selection=selection), CellBar(left) as bar:
            drive(store, transport, selection=selection, on_cell=bar.advance)


def require_servers(plan: RunPlan) -> None:
    """Try the RPC servers of the plan before anything is measured. Raises BackendError."""
    from ggufrope.runtime.rpc import require

    require(plan.runtime.rpc)


def repair(plan: RunPlan) -> None:
    """Repair models of the plan that have an interrupted edit, and say so."""
    from .values import model_path

    if plan.runtime.server is not None:
        return
    for name in plan.models:
        for path in sorted(glob.glob(name, recursive=True)) or [name]:  # noqa: PTH207
            model_path(path)


def tell_rejudged(store: RunStore) -> None:
    """Say which keys of the plan have changed, where the results are judged anew by them."""
    if store.rejudged:
        changes = ", ".join(shown(change) for change in store.rejudged)
        stderr_console().print(f"the plan has changed, judged by it now: {changes}", style="yellow")


def tell_too_few(plan: RunPlan, view: View) -> None:
    """Say before anything runs where no recall could pass."""
    from ggufrope.report.evidence import too_few_needles

    if words := too_few_needles(plan):
        stderr_console().print(view.words(words), style="yellow")


@contextmanager
def answering(folder: Path, view: View, *, selection: Selection | None = None) -> Iterator[None]:
    """Show the report when the block ends, interrupted or not; exit with 1 if it does not pass.

    Raises BackendError where every job failed: there is nothing to judge.
    """
    import typer

    from ggufrope.errors import BackendError

    from .errors import CHECK_FAILED

    try:
        yield
    except KeyboardInterrupt:
        answer(stored_report(folder, selection), view)
        raise
    report = stored_report(folder, selection)
    failed = [job.reason for job in report.jobs if job.state == "failed"]
    nothing = bool(failed) and len(failed) == len(report.jobs)
    if view.json or not nothing:
        answer(report, view)
    if nothing:
        raise BackendError("; ".join(dict.fromkeys(map(str, failed))))
    if not (report.passed if view.gate else report.compared):
        raise typer.Exit(CHECK_FAILED)


def stored_report(folder: Path, selection: Selection | None = None) -> RunReport:
    """Return the report of the run in `folder`, or of the selected part of it.

    Raises RequestError if the folder holds no run.
    """
    from ggufrope.errors import RequestError
    from ggufrope.report.record import report_of
    from ggufrope.runs.store import RunStore

    if not (folder / "run.sqlite").is_file():
        raise RequestError(f"{folder} holds no run: it has no run.sqlite")
    with RunStore(folder) as store:
        return report_of(store, selection)
