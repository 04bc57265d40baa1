"""`ggufrope report`: a stored run as tables, HTML, JUnit XML or CSV, or against another run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import JsonOption
from ..options_run import GridsOption

if TYPE_CHECKING:
    from ggufrope.report.comparison import Change, Comparison


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML page.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML, one test case per cell.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write CSV, one row per cell.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compare with this earlier run; exit 1 if anything is significantly worse.",
        ),
    ] = None,
    grids: GridsOption = False,
    json: JsonOption = False,
) -> None:
    """Show stored results, write them in other formats, or compare runs."""
    from ggufrope._files import write_whole
    from ggufrope.report.comparison import compare
    from ggufrope.report.exports import to_csv, to_junit
    from ggufrope.report.html import to_html

    from ..errors import CHECK_FAILED
    from ..running import View, answer, stored_report

    report = stored_report(folder)
    earlier = None if against is None else compare(stored_report(against), report)
    if html is not None:
        write_whole(html, to_html(report, against=earlier))
    if junit is not None:
        write_whole(junit, to_junit(report))
    if csv is not None:
        write_whole(csv, to_csv(report))
    if json or not (html or junit or csv):
        plan = report.plan
        gate = len(plan.scalings) == 1 or plan.thresholds.require is not None
        answer(report, View(json=json, grids=grids, gate=gate), against=earlier)
    if earlier is not None:
        if not json:
            show_comparison(earlier)
        if earlier.regressions:
            raise typer.Exit(CHECK_FAILED)


def show_comparison(comparison: Comparison) -> None:
    """Print what changed from the earlier run to this one."""
    from rich.text import Text

    from ggufrope.report.metrics import legend, metric_info

    from ..output import console
    from ..tables import heading, row, shown, table

    out = console()
    for difference in comparison.differences:
        before, after = shown(difference.before), shown(difference.after)
        out.print(f"{shown(difference.name)}: {before} → {after}")
    columns = ("setting", "metric", "context", "before", "after", "")
    made = table(*columns, numeric=columns[2:5])
    for change in comparison.changes:
        setting = f"{change.scaling} · {change.kv} · {change.part or change.task}"
        word, style = _significance(change)
        numbers = (change.context_tokens, *_values(change))
        row(made, setting, metric_info(change.metric).title, *numbers, word, style=style)
    out.print(made)
    out.print(Text(legend(change.metric for change in comparison.changes), style="dim"))
    if comparison.only_before or comparison.only_after:
        counts = f"{comparison.only_before} only in the earlier run, {comparison.only_after} only"
        out.print(f"Cells not compared: {counts} in this one.")
    count = len(comparison.regressions)
    word = "regression" if count == 1 else "regressions"
    out.print(heading(f"{count or 'no'} {word}"))


def _significance(change: Change) -> tuple[str, str | None]:
    if not change.significant:
        return "", None
    return ("WORSE", "bold red") if change.worse else ("better", "green")


def _values(change: Change) -> tuple[str, str]:
    from ggufrope.report.metrics import format_value

    return format_value(change.metric, change.before), format_value(change.metric, change.after)
