"""What a K/V cache costs and how fast it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.evals.kv_cache import CachePlan, CacheTask
from ggufrope.evals.results import CellResult, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.runs.tasks.request import Request

DECODED_TOKENS = 32
MOST_PREFILLED_TOKENS = 2048


def kv_cache(request: Request) -> Iterator[CellResult]:
    """Bytes per token as allocated, and the speeds of prefill and decode, at each context."""
    for cell in request.cells:
        tokens = cell.context_tokens
        prefill = min(MOST_PREFILLED_TOKENS, tokens - DECODED_TOKENS)
        task = CacheTask(CachePlan(n_ctx=tokens, prefill=prefill, decode=DECODED_TOKENS))
        request.plan_tokens(task.planned_tokens(request.model))
        (result,) = task.run(request.model, request.open_context, progress=request.progress)
        rotated = {True: "yes", False: "no", None: "not told"}[result.rotated]
        yield CellResult(
            cell=cell,
            status="ok" if result.score.value is not None else "error",
            reason=result.score.reason or None,
            metrics=(
                Metric(name="cache_bytes_per_token", value=result.bytes_per_token),
                Metric(name="prefill_tokens_per_second", value=result.prefill_speed),
                Metric(name="decode_tokens_per_second", value=result.decode_speed),
            ),
            notes=(("rotated", rotated),),
            prompt_tokens=prefill,
        )
