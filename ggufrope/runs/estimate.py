"""What a run will take, before it is begun: tokens, memory and time of every job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.runs.jobs import Job
from ggufrope.runs.tasks.cache import DECODED_TOKENS, MOST_PREFILLED_TOKENS

if TYPE_CHECKING:
    from ggufrope.runs.plan import RunPlan

Memory: TypeAlias = Callable[["Job", int], "int | None"]
"""Bytes that a job needs in a context of so many tokens, None where that cannot be told."""

QUESTION_TOKENS = 120
"""A needle's question with its answer and distractors, on the generous side."""
_CONTEXTS_AT_ONCE = {"divergence": 2, "short-context": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEstimate:
    """`tokens` are what is evaluated at most: prompts of isolated cells share their beginnings.

    `seconds` is None where no speed is known, `memory_bytes` where the need cannot be told.
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
) -> tuple[JobEstimate, ...]:
    """What each job takes; `tokens_per_second` is the prefill speed of this machine, where known.

    A run's memory is that of its greediest job, its time the sum over one worker's jobs.
    Raises RequestError for a speed that is none.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < inf:
        raise RequestError(f"a speed of {tokens_per_second:g} tokens/s: expected a number above 0")
    return tuple(
        JobEstimate(
            job=job,
            tokens=(tokens := tokens_of(plan, job)),
            memory_bytes=memory(job, max(cell.context_tokens for cell in job.cells)),
            seconds=None if tokens_per_second is None else tokens / tokens_per_second,
        )
        for job in jobs
    )


def contexts_at_once(job: Job) -> int:
    """How many contexts a job holds open together: comparisons read the base in lockstep."""
    return _CONTEXTS_AT_ONCE.get(job.task, 1)


def tokens_of(plan: RunPlan, job: Job) -> int:
    """Tokens a job evaluates, at most."""
    lengths = [cell.context_tokens for cell in job.cells]
    each = sum(lengths)
    if job.task == "needle" and plan.mode == "one-pass":
        return plan.samples * max(lengths) + QUESTION_TOKENS * len(lengths)
    if job.task == "perplexity":
        return plan.chunks * each
    if job.task == "divergence":
        return 2 * plan.chunks * each
    if job.task == "short-context":
        return 4 * each
    if job.task == "kv-cache":
        return len(lengths) * (MOST_PREFILLED_TOKENS + 2 * DECODED_TOKENS)
    return each
