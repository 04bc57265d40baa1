"""Perplexity and divergence: how well a text is predicted, and how differently."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from ggufrope.errors import RequestError
from ggufrope.evals.divergence import Divergence, DivergencePlan, DivergenceTask
from ggufrope.evals.perplexity import Perplexity, PerplexityPlan, PerplexityTask, perplexity_of
from ggufrope.evals.results import Cell, CellResult, Curve, Metric, estimate
from ggufrope.evals.stats import Mean
from ggufrope.evals.texts import Text, reference_text
from ggufrope.runs.jobs import base_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ggufrope.runs.tasks.request import Request

CURVE = "perplexity_by_position"


def perplexity(request: Request) -> Iterator[CellResult]:
    """Chunked perplexity at each context, and by position within it."""
    text = request.text or reference_text()
    tasks = {
        cell: PerplexityTask(
            PerplexityPlan(
                n_ctx=cell.context_tokens, text=text, chunks=request.plan.chunks, curve=True
            )
        )
        for cell in request.cells
    }
    for cell, task in tasks.items():
        try:
            request.plan_tokens(task.planned_tokens(request.model))
            results = tuple(
                task.run(request.model, request.open_context, progress=request.progress)
            )
        except RequestError as error:
            yield CellResult(cell=cell, status="error", reason=str(error))
            continue
        reasons = [result.score.reason for result in results if result.score.reason]
        yield _perplexity_cell(cell, perplexity_of(results), text, reasons)


def divergence(request: Request) -> Iterator[CellResult]:
    """Kullback-Leibler divergence from the base, in lockstep, at each context."""
    base = base_of(request.job.scaling, request.job.kv)
    if base is None:
        raise RequestError("the file with an f16 cache is the base: it diverges from nothing")
    open_base = request.contexts_of(*base)
    for cell in request.cells:
        plan = DivergencePlan(
            n_ctx=cell.context_tokens, text=request.text, chunks=request.plan.chunks
        )
        task = DivergenceTask(plan, open_base)
        try:
            request.plan_tokens(task.planned_tokens(request.model))
            (result,) = task.run(request.model, request.open_context, progress=request.progress)
        except RequestError as error:
            yield CellResult(cell=cell, status="error", reason=str(error))
            continue
        yield CellResult(
            cell=cell,
            status="error" if result.measured is None else "ok",
            reason=result.score.reason or None,
            metrics=() if result.measured is None else divergence_metrics(result.measured),
            notes=(("base", f"{base[0].name} · {base[1]}"),),
            prompt_tokens=cell.context_tokens,
        )


def divergence_metrics(found: Divergence) -> tuple[Metric, ...]:
    """The metrics of a measured divergence, in nat and probabilities."""
    return (
        estimate("mean_divergence", found.divergence),
        Metric(name="max_divergence", value=found.divergence_max),
        *_percentiles("divergence", found.divergence_percentiles),
        estimate("delta_p", found.delta_p),
        estimate("delta_p_rms", found.delta_p_rms),
        *_percentiles("delta_p", found.delta_p_percentiles),
        estimate("same_top", found.same_top),
        estimate("nll_difference", found.nll_difference),
    )


def _percentiles(name: str, points: Iterable[tuple[float, float]]) -> Iterator[Metric]:
    return (Metric(name=f"{name}_p{percent:g}", value=value) for percent, value in points)


def _perplexity_cell(cell: Cell, found: Perplexity, text: Text, reasons: list[str]) -> CellResult:
    notes = (("text", text.source), ("text_sha256", text.sha256))
    if found.value is None:
        reason = reasons[0] if reasons else "nothing was scored"
        return CellResult(cell=cell, status="error", reason=reason, notes=notes)
    points = tuple((float(b.end), exp(b.nll / b.tokens)) for b in found.curve if b.tokens)
    return CellResult(
        cell=cell,
        status="ok",
        metrics=(
            estimate(
                "perplexity", Mean(n=found.tokens, value=found.value, standard_error=found.error)
            ),
            Metric(name="nll", value=found.nll, n=found.tokens),
            Metric(name="chunks", value=found.chunks),
            Metric(name="unscored_chunks", value=found.unscored),
        ),
        curves=(Curve(name=CURVE, points=points),),
        notes=notes,
        prompt_tokens=cell.context_tokens,
    )
