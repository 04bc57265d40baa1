"""`ggufrope report`: a stored run, in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import JsonOption


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="F", help="Write one self-contained page.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="F", help="Write JUnit XML, one case a cell.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="F", help="Write a row a cell.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare with this earlier run; exit 1 on a regression."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the stored results of a run, write them in other forms, or compare two runs."""
    from ggufrope.report import compare, to_csv, to_junit
    from ggufrope.report.html import to_html

    from ..errors import CHECK_FAILED
    from ..running import stored_report, write_report
    from ..views import comparison
    from ..views import run as view

    report = stored_report(folder)
    if against is not None:
        found = compare(stored_report(against), report)
        comparison.answer(found, json=json)
        if found.regressions:
            raise typer.Exit(CHECK_FAILED)
        return
    forms = {html: to_html, junit: to_junit, csv: to_csv}
    for path, form in forms.items():
        if path is not None:
            write_report(path, form(report))
    if json or not any(forms):
        view.answer(report, json=json)
