"""Progress on stderr: drawn only where a person looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .output import talk
from .text import safe

if TYPE_CHECKING:
    from ggufrope.evals.results import CellResult
    from ggufrope.runs.jobs import Job


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes; yields the callback of (done, total) the library wants."""
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
    with Progress(*columns, console=talk(), transient=True, disable=not talk().is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class RunBar:
    """Progress of a run on stderr: the job at hand, tokens per second, time left."""

    def __init__(self) -> None:
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
            TextColumn("tokens {task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        hidden = not talk().is_terminal
        self._bar = Progress(*columns, console=talk(), transient=True, expand=True, disable=hidden)
        self._task = self._bar.add_task("loading", total=None, rate="")

    def __enter__(self) -> RunBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, job: Job, planned_tokens: int) -> None:
        """A job of `planned_tokens` tokens begins."""
        label = f"{job.scaling.name} · {job.kv} · {job.task}"
        self._bar.reset(self._task, description=safe(label), total=planned_tokens, rate="")

    def advance(self, tokens: int) -> None:
        """`tokens` more were evaluated."""
        self._bar.advance(self._task, tokens)
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, rate="" if speed is None else f"{speed:.0f}/s")


class CellBar:
    """Progress of a batch on stderr, by cells; tokens are counted in other processes."""

    def __init__(self, cells: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("cells", markup=False),
            Left(compact=True),
        )
        hidden = not talk().is_terminal
        self._bar = Progress(*columns, console=talk(), transient=True, expand=True, disable=hidden)
        self._task = self._bar.add_task("starting", total=cells)

    def __enter__(self) -> CellBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, result: CellResult) -> None:
        """One more cell is done."""
        cell = result.cell
        label = safe(f"{cell.model} · {cell.scaling} · {cell.kv} · {cell.task}")
        self._bar.update(self._task, advance=1, description=label)
