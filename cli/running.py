"""Measure as a plan says, with a progress bar, and show the report: `validate`, `compare`, `run`.

`report` shows a stored run with the same view.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .output import console, one_line, stderr_console
from .tables import heading, row, shown, table

if TYPE_CHECKING:
    from rich.text import Text

    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow
    from ggufrope.report.views import Heatmap, Square
    from ggufrope.runs.jobs import Selection
    from ggufrope.runs.plan import RunPlan
    from ggufrope.runs.store import RunStore

_COLUMNS = (
    "recall",
    "top_ranked",
    "log_probability",
    "score",
    "perplexity",
    "mean_divergence",
    "same_top",
    "cache_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)
"""The metrics that the summary shows."""
_SHADES = ("#7f1d1d", "#b45309", "#a16207", "#4d7c0f", "#15803d", "#047857")


def carry_out(plan: RunPlan, *, out: Path | None, json: bool) -> None:
    """Measure in this process and show the report; without `out`, the results are not kept."""
    from ggufrope._files import working_folder
    from ggufrope.backends import open_model
    from ggufrope.runs.driver import InlineTransport, drive, open_run

    from .errors import outlive_aborts
    from .progress import RunBar

    outlive_aborts()
    with ExitStack() as cleanup:
        if out is None:
            out = cleanup.enter_context(working_folder())
        repair(plan)
        store = cleanup.enter_context(open_run(plan, out))
        tell_rejudged(store)
        with answering(out, json=json, flags=True), RunBar() as bar:
            drive(store, InlineTransport(open_model, on_job=bar.begin, progress=bar.advance))


def carry_out_batch(
    plan: RunPlan,
    folder: Path,
    *,
    selection: Selection,
    retry_failed: bool,
    ray: bool,
    json: bool,
) -> None:
    """Measure in worker processes, one per device of the plan, or on Ray; then show the report.

    On Ray, each device of the plan is one worker with a GPU that Ray assigns.
    """
    from ggufrope.runs.driver import ProcessTransport, drive, open_run
    from ggufrope.runs.ray import RayTransport

    from .progress import CellBar

    repair(plan)
    with open_run(plan, folder) as store:
        tell_rejudged(store)
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
    """Repair models of the plan that have an interrupted edit, and say so."""
    from .values import model_path

    for name in plan.models:
        for path in sorted(glob.glob(name, recursive=True)) or [name]:  # noqa: PTH207
            model_path(path)


def tell_rejudged(store: RunStore) -> None:
    """Say which keys of the plan have changed, where the results are judged anew by them."""
    if store.rejudged:
        changes = ", ".join(shown(change) for change in store.rejudged)
        stderr_console().print(f"the plan has changed, judged by it now: {changes}", style="yellow")


@contextmanager
def answering(
    folder: Path, *, selection: Selection | None = None, json: bool, flags: bool = False
) -> Iterator[None]:
    """Show the report when the block ends, interrupted or not; exit with 1 if the verdict fails.

    With `flags`, reasons name the options of the command instead of the fields of the plan.
    """
    import typer

    from .errors import CHECK_FAILED

    try:
        yield
    except KeyboardInterrupt:
        answer(stored_report(folder, selection), json=json, flags=flags)
        raise
    report = stored_report(folder, selection)
    answer(report, json=json, flags=flags)
    if not report.passed:
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


def answer(
    report: RunReport, *, against: Comparison | None = None, json: bool, flags: bool = False
) -> None:
    """Print the whole report, as JSON for a script or as tables for a person."""
    if json:
        from ggufrope.report.exports import to_json

        sys.stdout.write(to_json(report, against=against))
    else:
        show(report, flags=flags)


def show(report: RunReport, *, flags: bool = False) -> None:
    """Print the grids, the summary with intervals, cells without a score, and the verdict."""
    from ggufrope.report.views import heatmaps, problems

    from .errors import with_flags

    out = console()
    for heatmap in heatmaps(report):
        _show_heatmap(heatmap)
    for task in dict.fromkeys(entry.task for entry in report.summary):
        _show_summary(task, [entry for entry in report.summary if entry.task == task])
    for problem in problems(report):
        cells = "1 cell" if problem.cells == 1 else f"{problem.cells} cells"
        reason = shown(with_flags(problem.reason) if flags else problem.reason)
        out.print(f"{cells} {problem.status}: {reason} ({shown(problem.where)})", style="yellow")
    _show_verdict(report)


def _show_heatmap(heatmap: Heatmap) -> None:
    """Print depth × context: the probability of the answer's tokens, ✓ for an exact answer."""
    from rich.text import Text

    out = console()
    title = f"{heatmap.task} · {one_line(heatmap.model, 30)} · {heatmap.scaling} · KV {heatmap.kv}"
    out.print(heading(f"{title} · {heatmap.exact} of {heatmap.measured} exact"))
    contexts = sorted({square.context_tokens for square in heatmap.squares})
    squares = {(s.context_tokens, s.depth_percent): s for s in heatmap.squares}
    out.print(Text("  depth  " + "".join(f"{context:>8}" for context in contexts), style="dim"))
    for depth in sorted({square.depth_percent for square in heatmap.squares}):
        line = Text(f" {depth:5.0f}%  ", style="dim")
        for context in contexts:
            line.append_text(_square(squares.get((context, depth))))
        out.print(line)
    out.print(Text("  mean probability of the answer's tokens, ✓ exact match", style="dim"))


def _square(square: Square | None) -> Text:
    from rich.text import Text

    if square is None or square.probability is None:
        return Text("       —", style="dim")
    shade = _SHADES[min(len(_SHADES) - 1, int(square.probability * len(_SHADES)))]
    mark = "✓" if square.recall == 1 else " "
    return Text.assemble(" ", (f" {square.probability:4.2f} {mark}", f"white on {shade}"))


def _show_summary(task: str, rows: list[SummaryRow]) -> None:
    """Print the rows of one task with the metrics it has, if any, and what these mean."""
    from rich.text import Text

    from ggufrope.report.metrics import legend, metric_info

    out = console()
    measured = {metric.name for entry in rows for metric in entry.metrics}
    chosen = [name for name in _COLUMNS if name in measured]
    if not chosen:
        return
    out.print(heading(task))
    parts = any(entry.part is not None for entry in rows)
    numbers = ["context", *(metric_info(name).title for name in chosen)]
    made = table("scaling", "KV", *(["part"] if parts else []), *numbers, numeric=numbers)
    for entry in rows:
        context = f"{entry.context_tokens}{' (native)' if entry.control else ''}"
        cells = [entry.scaling, entry.kv, *([entry.part] if parts else []), context]
        row(made, *cells, *(_metric(entry, name) for name in chosen))
    out.print(made)
    out.print(Text(legend(chosen), style="dim"))


def _metric(entry: SummaryRow, name: str) -> str:
    """Return a metric of a row as text; a share with its 95 % interval."""
    from ggufrope.report.metrics import SHARES, format_value

    metric = entry.metric(name)
    if metric is None or metric.value is None:
        return "—"
    text = format_value(name, metric.value)
    if name in SHARES and metric.low is not None and metric.high is not None:
        text += f" ({100 * metric.low:.0f}-{100 * metric.high:.0f})"
    return text


def _show_verdict(report: RunReport) -> None:
    """Print every check of every setting, and the verdict on the run last."""
    from rich.text import Text

    out = console()
    out.print(heading("verdict"))
    for entry in report.verdicts:
        out.print(Text(shown(entry.label), style="dim"))
        for check in entry.verdict.checks:
            mark = ("  pass ", "green") if check.passed else ("  FAIL ", "bold red")
            out.print(Text.assemble(mark, shown(check.reason)))
        if not entry.verdict.checks:
            out.print(f"  {entry.verdict.reasons[0]}")
    if not report.complete:
        out.print("The run is not complete.", style="yellow")
    word = ("pass", "bold green") if report.passed else ("FAIL", "bold red")
    out.print(Text.assemble("\n", word))
