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
    json: JsonOption = False,
) -> None:
    """Show the stored results of a run, or write them as HTML, JUnit XML or CSV."""
    from ggufrope.errors import WishError
    from ggufrope.report import to_csv, to_junit

    from ..running import stored_report, write_report
    from ..views import run as view

    report = stored_report(folder)
    if report is None:
        raise WishError(f"{folder}: no run is stored there")
    if html is not None:
        from ggufrope.report.html import to_html

        write_report(html, to_html(report))
    if junit is not None:
        write_report(junit, to_junit(report))
    if csv is not None:
        write_report(csv, to_csv(report))
    if json or not (html or junit or csv):
        view.answer(report, json=json)
