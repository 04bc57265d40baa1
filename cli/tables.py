"""Tables, headings and findings, as the views of several commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._format import safe

from .output import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ggufrope.container.remote import Place
    from ggufrope.rope.lint import Finding

_TABLE_WIDTH = 60
"""Columns of a terminal, below which a table would fold its words to letters."""
SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def table(
    *columns: str, numeric: Sequence[str] = (), title: str | None = None, tight: bool = False
) -> Table:
    """Return a plain table that fits 80 columns; `numeric` names the columns that align right.

    One that is `tight` has two spaces between its columns in the place of three.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if tight else (0, 1),
        pad_edge=False,
        header_style="bold",
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        right = column in numeric
        made.add_column(Text(column), justify="right" if right else "left", overflow="fold")
    return made


def row(made: Table, *cells: object, style: str | None = None) -> None:
    """Add a row of values, each shown by `shown`; strings of a file are made safe."""
    from rich.text import Text

    made.add_row(
        *(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in cells), style=style
    )


def print_table(made: Table) -> None:
    """Print a table; where the terminal is too narrow for its columns, a line for each row."""
    from rich.text import Text

    from .output import console

    out = console()
    if out.width >= _TABLE_WIDTH:
        out.print(made)
        return
    names = [str(column.header) for column in made.columns]
    out.print()
    for cells in zip(*(column.cells for column in made.columns), strict=True):
        pairs = (f"{name} {cell}" for name, cell in zip(names[1:], cells[1:], strict=True))
        out.print(Text.assemble((str(cells[0]), "bold"), f": {', '.join(pairs)}"))


def shown(value: object) -> str:
    """Return a value as a person reads it."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(str(value), limit=400)


def shown_path(place: Place) -> str:
    """Return a path as a person reads it: from the current folder where it lies in that. A file on
    a server is shown by its name."""
    try:
        return shown(place.relative_to(place.cwd()) if isinstance(place, Path) else place)
    except ValueError:
        return shown(place)


def show_download(place: Place, out: Console) -> None:
    """Print the command that brings a file on a server here; nothing for one on disk."""
    import shlex

    if not isinstance(place, Path):
        line = f"The file is not on this disk. To bring it here: {shlex.join(place.download)}"
        out.print("\n" + shown(line), soft_wrap=True)


def heading(text: str) -> Text:
    """Return the heading of a section, with an empty line above."""
    from rich.text import Text

    return Text("\n" + safe(text), style="bold")


def finding_lines(findings: Iterable[Finding]) -> Iterable[Text]:
    """Return findings as lines: severity, code, message."""
    from rich.text import Text

    for finding in findings:
        yield Text.assemble(
            (f"{finding.severity} ", SEVERITY_STYLES[finding.severity]),
            (f"{finding.code}  ", "dim"),
            safe(finding.message),
        )


def lost_edits(lost: int) -> str:
    """Return that the file before the first `lost` edits cannot be restored; empty for 0."""
    if not lost:
        return ""
    edits = "edit" if lost == 1 else f"{lost} edits"
    return (
        f"The file before the first {edits} cannot be restored: too many bytes would have to be "
        "kept."
    )
