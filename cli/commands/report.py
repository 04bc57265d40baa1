"""`ggufrope report`: a stored run or search as tables or in files, or a run against another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from ..options import JsonOption
from ..options_run import GridsOption
from ..values import require_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.text import Text

    from ggufrope.report.comparison import Change, Comparison

    Forms = Mapping[str, Callable[[], str | bytes]]
    """What makes the file of an option, by its name."""


def _file(help_: str) -> Any:
    return typer.Option(metavar="FILE", help=help_)


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of a run or a search.", show_default=False),
    ],
    html: Annotated[Path | None, _file("Write one self-contained HTML page.")] = None,
    png: Annotated[Path | None, _file("Write a picture to share: heat maps, or a chart.")] = None,
    svg: Annotated[Path | None, _file("Write the same picture as SVG.")] = None,
    md: Annotated[Path | None, _file("Write a Markdown summary of some lines.")] = None,
    card: Annotated[
        Path | None, _file("Write a model card, or renew the card of a run that is in one.")
    ] = None,
    junit: Annotated[Path | None, _file("Write JUnit XML, one test case per cell.")] = None,
    csv: Annotated[Path | None, _file("Write CSV, one row per cell.")] = None,
    jsonl: Annotated[Path | None, _file("Write JSON lines, one object per cell.")] = None,
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
    """Show stored results, write them in other forms (- is standard output), or compare two runs.

    A search is shown and written too, as HTML, PNG, SVG, Markdown or JSON.
    """
    from ggufrope.runs.folder import RUN_FILES
    from ggufrope.search.session import SEARCH_FILES, holds_search

    files = {"html": html, "png": png, "svg": svg, "md": md, "card": card}
    files |= {"junit": junit, "csv": csv, "jsonl": jsonl}
    chosen = {name: path for name, path in files.items() if path is not None}
    on_output = [f"--{name}" for name, path in chosen.items() if str(path) == "-"]
    on_output += ["--json"] if json else []
    if str(png) == "-":
        raise OptionError("--png -: a picture is not written to standard output; name a file")
    if len(on_output) > 1:
        raise OptionError(f"{' and '.join(on_output)}: only one can go to standard output")
    folders = [one for one in (folder, against) if one is not None]
    stored = [one / name for one in folders for name in (*RUN_FILES, *SEARCH_FILES)]
    named = {f"--{name}": path for name, path in chosen.items() if str(path) != "-"}
    require_apart(named, stored)
    if holds_search(folder):
        _report_search(folder, chosen, against, json=json)
    else:
        _report_run(folder, chosen, against, grids=grids, json=json)


def _report_run(
    folder: Path, files: Mapping[str, Path], against: Path | None, *, grids: bool, json: bool
) -> None:
    from ggufrope.report.card_markdown import card_text
    from ggufrope.report.comparison import compare
    from ggufrope.report.exports import to_csv, to_jsonl, to_junit
    from ggufrope.report.html import to_html
    from ggufrope.report.overview import to_markdown
    from ggufrope.report.pictures import picture, to_png, to_svg

    from ..errors import CHECK_FAILED
    from ..running import stored_report
    from ..showing import View, answer

    report = stored_report(folder)
    earlier = None if against is None else compare(stored_report(against), report)
    _write(
        files,
        {
            "html": lambda: to_html(report, against=earlier),
            "png": lambda: to_png(picture(report)),
            "svg": lambda: to_svg(picture(report)),
            "md": lambda: to_markdown(report, against=earlier),
            "card": lambda: card_text(report, files["card"]),
            "junit": lambda: to_junit(report),
            "csv": lambda: to_csv(report),
            "jsonl": lambda: to_jsonl(report),
        },
    )
    if json or not files:
        answer(report, View(json=json, grids=grids, gate=report.gates), against=earlier)
    if earlier is not None:
        if not json and Path("-") not in files.values():
            show_comparison(earlier)
        if earlier.regressions:
            raise typer.Exit(CHECK_FAILED)


def _report_search(
    folder: Path, files: Mapping[str, Path], against: Path | None, *, json: bool
) -> None:
    from dataclasses import asdict

    from ggufrope.report.pictures import to_png, to_svg
    from ggufrope.report.searches import picture, to_html, to_markdown
    from ggufrope.search.session import has_ended, read_result, read_so_far

    from ..output import emit_json
    from .search import show, show_so_far

    if against is not None:
        raise OptionError("--against: searches are not compared; give the folders of two runs")
    if not (json or files or has_ended(folder)):
        show_so_far(read_so_far(folder), folder)
        return
    result = read_result(folder)
    _write(
        files,
        {
            "html": lambda: to_html(result),
            "png": lambda: to_png(picture(result)),
            "svg": lambda: to_svg(picture(result)),
            "md": lambda: to_markdown(result),
        },
    )
    if json:
        emit_json(asdict(result))
    elif not files:
        show(result, folder)


def _write(files: Mapping[str, Path], forms: Forms) -> None:
    """Write each file and say so; `-` is standard output. Raises OptionError for a missing form."""
    from ggufrope._files import write_whole
    from ggufrope._format import byte_size

    from ..output import stderr_console
    from ..tables import shown

    missing = [f"--{name}" for name in files if name not in forms]
    if missing:
        raise OptionError(f"{', '.join(missing)}: a search has no such form, only a run has")
    for name, path in files.items():
        content = forms[name]()
        data = content.encode() if isinstance(content, str) else content
        if str(path) == "-":
            # UTF-8 as in a file, whatever the terminal has.
            sys.stdout.buffer.write(data)
            continue
        write_whole(path, data)
        stderr_console().print(f"wrote {shown(path)} ({byte_size(len(data))})", soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """Print what differs significantly between the earlier run and this one."""
    from rich.text import Text

    from ggufrope.report.metrics import legend
    from ggufrope.report.overview import against_lead

    from ..output import console
    from ..tables import heading, shown

    out = console()
    for difference in comparison.differences:
        before, after = shown(difference.before), shown(difference.after)
        out.print(f"{shown(difference.name)}: {before} → {after}")
    out.print(against_lead(comparison))
    significant = (*comparison.regressions, *comparison.improvements)
    for change in significant:
        out.print(_line(change))
    if significant:
        out.print(Text(legend(change.metric for change in significant), style="dim"))
    if comparison.only_before or comparison.only_after:
        counts = f"{comparison.only_before} only in the earlier run, {comparison.only_after} only"
        out.print(f"Cells not compared: {counts} in this one.")
    count = len(comparison.regressions)
    word = "regression" if count == 1 else "regressions"
    out.print(heading(f"{count or 'no'} {word}"))


def _line(change: Change) -> Text:
    from rich.text import Text

    from ggufrope.report.metrics import format_value, metric_info

    from ..tables import shown

    word, style = ("WORSE ", "bold red") if change.worse else ("better", "green")
    metric, task = change.metric, change.part or change.task
    return Text.assemble(
        (f"  {word} ", style),
        f"{metric_info(metric).title} {format_value(metric, change.before)} → "
        f"{format_value(metric, change.after)}",
        (shown(f"  {task} at {change.context_tokens} · {change.scaling} · {change.kv}"), "dim"),
    )
