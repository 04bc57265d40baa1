"""What a run will take: tokens, memory and time of every job, estimated before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.registry import TASKS
from ggufrope.runs.jobs import Job

if TYPE_CHECKING:
    from ggufrope.runs.plan import RunPlan

Memory: TypeAlias = Callable[["Job", int], "int | None"]
"""Bytes that a job needs in a context of so many tokens, None where they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEstimate:
    """What one job takes. `tokens` is an upper limit: whole prompts share beginnings, and end early
    where they decide.

    `seconds` is None where no speed is known, `memory_bytes` where the need is not known.
    """

    job: Job
    tokens: int
    memory_bytes: int | None
    seconds: float | None


def estimate(
    plan: RunPlan,
    jobs: tuple[Job, ...],
    *,
    memory: Memory,
    tokens_per_second: float | None = None,
    reuses: Callable[[Job], bool] = lambda job: True,
) -> tuple[JobEstimate, ...]:
    """Return what each job takes; `tokens_per_second` is the prefill speed of this machine,
    `reuses` whether what evaluates a job keeps the beginning of a prompt for the next.

    A run needs the memory of its largest job, and the sum of the times of one worker's jobs.
    Raises RequestError where the speed is not a finite number above 0.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < inf:
        raise RequestError(f"a speed of {tokens_per_second:g} tokens/s: expected a number above 0")
    return tuple(
        JobEstimate(
            job=job,
            tokens=(tokens := tokens_of(plan, job, reuses=reuses(job))),
            memory_bytes=memory(job, max(cell.context_tokens for cell in job.cells)),
            seconds=None if tokens_per_second is None else tokens / tokens_per_second,
        )
        for job in jobs
    )


def contexts_at_once(job: Job) -> int:
    """Return how many contexts a job holds open together."""
    return TASKS[job.task].contexts_at_once


def tokens_of(plan: RunPlan, job: Job, *, reuses: bool = True) -> int:
    """Return the most tokens that a job evaluates: every prompt from its first token, unless what
    evaluates it `reuses` their beginnings. A server never evaluates more than that."""
    from_the_first = sum(cell.context_tokens for cell in job.cells)
    if not reuses:
        return from_the_first
    most = TASKS[job.task].tokens(plan, job.cells)
    return most if plan.runtime.server is None else min(most, from_the_first)
