"""The gate that reaching further must pass: no worse than the original within its own context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.evals.divergence import DivergencePlan
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.results import CellResult, Metric
from ggufrope.evals.short_context import ShortContextPlan, ShortContextTask
from ggufrope.evals.short_context import short_context as sum_up
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.plan import KvTypes
from ggufrope.runs.tasks.text import divergence_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.evals.needle import Recall
    from ggufrope.runs.tasks.request import Request

_SHORT_DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


def short_context(request: Request) -> Iterator[CellResult]:
    """Divergence and recall against the unscaled model with an f16 cache, in one cell.

    The original of a file as it stands is the file with its scaling off.
    """
    original = ScalingRequest(scaling="none" if request.job.scaling.scaling == "file" else "file")
    open_base = request.contexts_of(original, KvTypes(k="f16", v="f16"))
    for cell in request.cells:
        tokens = cell.context_tokens
        plan = ShortContextPlan(
            original_context=tokens,
            divergence=DivergencePlan(n_ctx=tokens, text=request.text, chunks=1),
            needle=NeedlePlan(lengths=(tokens,), depths=_SHORT_DEPTHS, seed=request.job.seed),
        )
        task = ShortContextTask(plan, open_base)
        request.plan_tokens(task.planned_tokens(request.model))
        results = tuple(task.run(request.model, request.open_context, progress=request.progress))
        found = sum_up(results)
        reasons = [result.score.reason for result in results if result.score.value is None]
        if found.divergence is None or reasons:
            yield CellResult(cell=cell, status="error", reason=reasons[0] if reasons else None)
            continue
        yield CellResult(
            cell=cell,
            status="ok",
            metrics=(
                *divergence_metrics(found.divergence),
                _share("recall", found.variant),
                _share("base_recall", found.base),
            ),
            notes=(("base", f"{original.name} · f16"),),
            prompt_tokens=tokens,
        )


def _share(name: str, found: Recall) -> Metric:
    exact = found.exact
    return Metric(name=name, value=exact.value, low=exact.low, high=exact.high, n=exact.n)
