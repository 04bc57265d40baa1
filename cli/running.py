"""Carrying a plan out in this process, with a bar, and answering with its report."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufrope.report import RunReport
    from ggufrope.runs.plan import RunPlan


def carry_out(plan: RunPlan, *, out: Path | None, json: bool) -> None:
    """Measure what `plan` says, show the report, and leave with 1 where the verdict is a fail.

    Interrupted, it shows what was measured and goes on being interrupted. Without `out` the
    results are shown and not kept.
    """
    import typer

    from .errors import CHECK_FAILED
    from .views import run as view

    with ExitStack() as cleanup:
        if out is None:
            temporary = tempfile.TemporaryDirectory(prefix="ggufrope-run-")
            out = Path(cleanup.enter_context(temporary))
        try:
            measure(plan, out)
        finally:
            report = stored_report(out)
            if report is not None:
                view.answer(report, json=json)
        if report is not None and not report.passed:
            raise typer.Exit(CHECK_FAILED)


def measure(plan: RunPlan, folder: Path) -> None:
    """Create or resume the run of `plan` in `folder` and do what is left of it."""
    from ggufrope.runs.jobs import expand
    from ggufrope.runs.models import resolve_models
    from ggufrope.runs.store import RunStore
    from ggufrope.runs.work import work

    from .execution import open_subject
    from .progress import RunBar

    models = resolve_models(plan.models)
    RunStore.create(folder, plan, models, expand(plan, models)).close()
    with RunBar() as bar:
        work(folder, open_subject, on_job=bar.begin, progress=bar.advance)


def stored_report(folder: Path) -> RunReport | None:
    """The report of the run in `folder`; None where there is no run yet."""
    from ggufrope.report import report_of
    from ggufrope.runs.store import RunStore

    if not (folder / "run.sqlite").is_file():
        return None
    with RunStore(folder) as store:
        return report_of(store)


def write_report(path: Path, text: str) -> None:
    """Write a report's file, in place of an older one."""
    from ggufrope.errors import StorageError

    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
