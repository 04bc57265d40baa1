"""Progress on stderr, drawn only if it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggufrope._format import safe

from .output import stderr_console

if TYPE_CHECKING:
    from ggufrope.evals.results import CellResult
    from ggufrope.runs.jobs import Job


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over bytes; yield the (done, total) callback that the library takes."""
    if not sys.stderr.isatty():  # Rich takes a while to load
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _CountBar:
    """A bar that counts up to a total, with the time left."""

    def __init__(self, unit: str, *, total: int | None) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[rate]}}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        console = stderr_console()
        hidden = not console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True, expand=True, disable=hidden)
        self._task = self._bar.add_task("starting", total=total, rate="")

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class RunBar(_CountBar):
    """Progress of a run in this process: the current job, tokens per second, time left."""

    def __init__(self) -> None:
        super().__init__("tokens", total=None)

    def __enter__(self) -> RunBar:
        self._bar.start()
        return self

    def begin(self, job: Job, planned_tokens: int) -> None:
        """Start over for a job of `planned_tokens` tokens."""
        label = f"{job.scaling.name} · {job.kv} · {job.task}"
        self._bar.reset(self._task, description=safe(label), total=planned_tokens, rate="")

    def advance(self, tokens: int) -> None:
        """Count `tokens` evaluated tokens."""
        self._bar.advance(self._task, tokens)
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, rate="" if speed is None else f"{speed:.0f}/s")


class CellBar(_CountBar):
    """Progress of a batch by cells, since its tokens are counted in other processes."""

    def __init__(self, cells: int) -> None:
        super().__init__("cells", total=cells)

    def __enter__(self) -> CellBar:
        self._bar.start()
        return self

    def advance(self, result: CellResult) -> None:
        """Count one finished cell."""
        cell = result.cell
        label = safe(f"{cell.model} · {cell.scaling} · {cell.kv} · {cell.task}")
        self._bar.update(self._task, advance=1, description=label)
