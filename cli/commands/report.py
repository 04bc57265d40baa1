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
    from ggufrope._files import write_whole
    from ggufrope.report.comparison import compare
    from ggufrope.report.exports import to_csv, to_junit
    from ggufrope.report.html import to_html

    from ..errors import CHECK_FAILED
    from ..running import stored_report
    from ..views import comparison
    from ..views import run as view

    report = stored_report(folder)
    earlier = None if against is None else compare(stored_report(against), report)
    if html is not None:
        write_whole(html, to_html(report, against=earlier))
    if junit is not None:
        write_whole(junit, to_junit(report))
    if csv is not None:
        write_whole(csv, to_csv(report))
    if json or not (html or junit or csv):
        view.answer(report, against=earlier, json=json)
    if earlier is not None:
        if not json:
            comparison.show(earlier)
        if earlier.regressions:
            raise typer.Exit(CHECK_FAILED)
