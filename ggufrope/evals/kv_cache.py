"""What a K/V cache costs and how fast it is: bytes per token, prefill and decode speed.

A context of each length is filled with a prompt in one call, all of it, and then some tokens are
decoded one by one at that depth. This is repeated until both have taken `LEAST_SECONDS`: less is
noise. Decode speed is that of the median token, which a busy moment of the machine does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median
from time import perf_counter

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.haystack import Filler, sentences, weave
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.task import Task, TaskRequest, TaskSettings, one_cell_per_length
from ggufrope.evals.trunk import Trunk
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress

DECODED_TOKENS = 64
WARM_UP_TOKENS = 32
LEAST_SECONDS = 0.5
"""Time that each speed is measured for at least."""
_MOST_REPEATS = 1000
_SHORTEST_CONTEXT = WARM_UP_TOKENS + DECODED_TOKENS
_TICK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheScore:
    """What one context measured, all None where it could not, and `reason` says why.

    Speeds are in tokens per second, `bytes_per_token` is as allocated. `rotated` is whether K or V
    are rotated before they are stored. Both are None where the runtime does not report them.
    """

    bytes_per_token: float | None = None
    rotated: bool | None = None
    prefill_speed: float | None = None
    decode_speed: float | None = None
    reason: str | None = None


def measure_cache(
    n_ctx: int,
    model: LanguageModel,
    open_context: OpenContext,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = perf_counter,
) -> CacheScore:
    """Return the cost and the speeds of a context of `n_ctx` tokens; `clock` counts seconds.

    A BackendError becomes the reason of the score.
    """
    prefilled = prefilled_tokens(n_ctx)
    text = _text(model, prefilled + DECODED_TOKENS)
    with Trunk(open_context, n_ctx) as trunk:
        try:
            return _measured(trunk.move_to(()), text[:prefilled], text[prefilled:], progress, clock)
        except BackendError as failure:
            return CacheScore(reason=str(failure))


def prefilled_tokens(n_ctx: int) -> int:
    """Return how many tokens a context of `n_ctx` is filled with in one call: all but those that
    are decoded.

    Raises RequestError where the context is too short to be timed.
    """
    if n_ctx < _SHORTEST_CONTEXT:
        raise RequestError(
            f"a context of {n_ctx} tokens is too short to time: at least {_SHORTEST_CONTEXT}"
        )
    return n_ctx - DECODED_TOKENS


def _measured(
    context: LanguageContext,
    prompt: Sequence[int],
    decoded: Sequence[int],
    progress: Progress | None,
    clock: Callable[[], float],
) -> CacheScore:
    size = context.cache_bytes
    context.extend(prompt[:WARM_UP_TOKENS], progress=progress)
    prefills: list[float] = []
    tokens: list[float] = []
    while len(prefills) < _MOST_REPEATS and min(sum(prefills), sum(tokens)) < LEAST_SECONDS:
        context.rewind(0)
        times = [clock()]
        # The last logits are waited for: a device may still be at work when `extend` returns.
        context.extend(prompt[:-1], progress=progress)
        for token in (prompt[-1], *decoded):
            for _ in context.logits([token], progress=progress):
                pass
            times.append(clock())
        first, *others = (max(after - before, _TICK) for before, after in pairwise(times))
        prefills.append(first)
        tokens += others
        progress = None  # only the first time is sure to come
    return CacheScore(
        bytes_per_token=None if size is None else size / context.n_ctx,
        rotated=context.cache_rotated,
        prefill_speed=len(prompt) * len(prefills) / sum(prefills),
        decode_speed=1 / median(tokens),
    )


def _text(model: LanguageModel, count: int) -> list[int]:
    """Return `count` tokens of prose."""
    filler = Filler(model, sentences("essay", Random("0/cache"), None))
    budget = count
    while len(tokens := weave(filler, (), budget).tokens) < count:
        budget += count
    return list(tokens[:count])


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    return sum(WARM_UP_TOKENS + cell.context_tokens for cell in cells)


def _run(request: TaskRequest) -> Iterator[CellResult]:
    for cell in request.todo:
        prefilled = prefilled_tokens(cell.context_tokens)
        request.plan_tokens(WARM_UP_TOKENS + prefilled + DECODED_TOKENS)
        score = measure_cache(
            cell.context_tokens, request.model, request.open_context, progress=request.progress
        )
        rotated = {True: "yes", False: "no", None: "not reported"}[score.rotated]
        yield CellResult(
            cell=cell,
            status="ok" if score.reason is None else "error",
            reason=score.reason,
            metrics=(
                Metric(name="cache_bytes_per_token", value=score.bytes_per_token),
                Metric(name="prefill_tokens_per_second", value=score.prefill_speed),
                Metric(name="decode_tokens_per_second", value=score.decode_speed),
            ),
            notes=(("rotated", rotated),),
            prompt_tokens=prefilled,
        )


KV_CACHE = Task(name="kv-cache", places=one_cell_per_length, tokens=_tokens, run=_run)
"""Bytes per token as allocated, and the speeds of prefill and decode, at each length."""
