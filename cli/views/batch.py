"""How a plan's matrix is shown before it is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope._format import byte_size, duration

from ..output import console, emit_json
from .parts import row, table

if TYPE_CHECKING:
    from ggufrope.runs.estimate import JobEstimate


def show_matrix(jobs: tuple[JobEstimate, ...], *, json: bool) -> None:
    """One row a job, and the sums."""
    seconds = [job.seconds for job in jobs if job.seconds is not None]
    tokens = sum(job.tokens for job in jobs)
    if json:
        emit_json(
            {
                "jobs": [
                    {
                        "id": entry.job.id,
                        "label": entry.job.label,
                        "cells": len(entry.job.cells),
                        "tokens": entry.tokens,
                        "memory_bytes": entry.memory_bytes,
                        "seconds": entry.seconds,
                    }
                    for entry in jobs
                ],
                "tokens": tokens,
                "seconds": sum(seconds) if seconds else None,
            }
        )
        return
    columns = ("job", "cells", "tokens", "memory", "time")
    made = table(*columns, numeric=columns[1:])
    for entry in jobs:
        memory = None if entry.memory_bytes is None else byte_size(entry.memory_bytes)
        row(
            made,
            entry.job.label,
            len(entry.job.cells),
            f"{entry.tokens:,}",
            memory,
            None if entry.seconds is None else duration(entry.seconds),
        )
    console().print(made)
    total = f", {duration(sum(seconds))} on one worker" if seconds else ""
    console().print(
        f"{len(jobs)} job{'s' * (len(jobs) != 1)}, at most {tokens:,} tokens{total}; nothing done"
    )
