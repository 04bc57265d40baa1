"""Progress on stderr: a bar on a terminal, elsewhere a plain line each minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from ggufrope._format import byte_size, duration, safe

from .output import stderr_console

if TYPE_CHECKING:
    from typing_extensions import Self

    from ggufrope.evals.results import CellResult
    from ggufrope.runs.jobs import Job


FIRST_LINE, NEXT_LINE = 10.0, 60.0
"""Seconds of work before the first plain line, and before each further one."""


@contextmanager
def plain_lines(
    state: Callable[[], str], *, first: float = FIRST_LINE, each: float = NEXT_LINE
) -> Iterator[None]:
    """Print the state of long work after `first` seconds and then after `each`, with the time that
    it has taken, where stderr is no terminal."""
    if sys.stderr.isatty():  # Rich takes a while to load
        yield
        return
    begun, ended = monotonic(), Event()

    def tell() -> None:
        wait = first
        while not ended.wait(wait):
            line = f"{duration(monotonic() - begun)}: {safe(state())}"
            stderr_console().print(line, soft_wrap=True)
            wait = each

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over bytes; yield the (done, total) callback that the library takes."""
    if not sys.stderr.isatty():  # Rich takes a while to load
        count = [0, 0]

        def keep(done: int, total: int) -> None:
            count[:] = done, total

        with plain_lines(lambda: f"{label}, {byte_size(count[0])} of {byte_size(count[1])}"):
            yield keep
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(label, total=None, state="")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            rate = "" if speed is None else f", {byte_size(int(speed))}/s"
            state = f"{byte_size(done)} of {byte_size(total)}{rate}"
            bar.update(task, completed=done, total=total, state=state)

        yield update


class _CountBar:
    """A bar that counts up to a total, with the time left; plain lines where it cannot be drawn."""

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
        self._unit = unit
        self._bar = Progress(*columns, console=console, transient=True, expand=True, disable=hidden)
        self._task = self._bar.add_task("starting", total=total, rate="")
        self._lines = plain_lines(self._state)

    def _state(self) -> str:
        """Return how far it is as a plain line."""
        task = self._bar.tasks[0]
        done, total, elapsed = task.completed, task.total, task.elapsed
        if not (done and total and elapsed):
            return task.description
        speed = done / elapsed
        return (
            f"{task.description}, {done:,.0f} of at most {total:,.0f} {self._unit}, "
            f"{speed:,.3g}/s, {duration(max(0.0, total - done) / speed)} left"
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._lines.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._lines.__exit__(*raised)
        self._bar.stop()


class RunBar(_CountBar):
    """Progress of a run in this process: the current job, tokens per second, time left."""

    def __init__(self, jobs: int) -> None:
        super().__init__("tokens", total=None)
        self._jobs = jobs
        self._begun: set[str] = set()

    def begin(self, job: Job, planned_tokens: int) -> None:
        """Start over for a job of `planned_tokens` tokens."""
        self._begun.add(job.id)
        label = f"{job.scaling.name} · {job.kv} · {job.task}"
        if self._jobs > 1:
            label = f"{len(self._begun)}/{self._jobs} {label}"
        self._bar.reset(self._task, description=safe(label), total=planned_tokens, rate="")

    def advance(self, tokens: int) -> None:
        """Count `tokens` evaluated tokens."""
        self._bar.advance(self._task, tokens)
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, rate="" if speed is None else f"{speed:,.0f}/s")


class CellBar(_CountBar):
    """Progress of a batch by cells, since its tokens are counted in other processes."""

    def __init__(self, cells: int) -> None:
        super().__init__("cells", total=cells)

    def advance(self, result: CellResult) -> None:
        """Count one finished cell."""
        cell = result.cell
        label = safe(f"{cell.model} · {cell.scaling} · {cell.kv} · {cell.task}")
        self._bar.update(self._task, advance=1, description=label)
