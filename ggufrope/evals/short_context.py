"""The short-context check: is the model no worse than the original within its own context.

The model is compared with the original, an f16 cache and its scaling untouched, in three ways: the
divergence on a text, the paired difference in loss there, and recall of the same needles by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggufrope.evals.divergence import (
    DivergencePlan,
    compare_contexts,
    comparing_tokens,
    divergence_metrics,
)
from ggufrope.evals.needle import QUESTION_TOKENS, NeedleScore, ask, asking_tokens, recall
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.stats import Proportion
from ggufrope.evals.task import (
    SPLICED_SAMPLES,
    Base,
    Coordinates,
    Lengths,
    Task,
    TaskRequest,
    TaskSettings,
)
from ggufrope.evals.texts import Text, chosen_text
from ggufrope.lm import OpenContext

DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
"""Needle depths in percent."""
CHEAP_CONTEXT = 4096
"""Tokens that cost little, where no context of the plan lies within the native one."""


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    """Yield one cell: at the plan's longest context within the native one, else at as much of the
    native one as costs little."""
    native = lengths.native
    within = [tokens for tokens in lengths.contexts if native is None or tokens <= native]
    tokens = max(within) if within else min(native or CHEAP_CONTEXT, CHEAP_CONTEXT)
    yield Coordinates(context_tokens=tokens)


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    questions = 2 * SPLICED_SAMPLES * len(DEPTHS) * QUESTION_TOKENS
    return sum(4 * cell.context_tokens + questions for cell in cells)


def _run(request: TaskRequest) -> Iterator[CellResult]:
    base = request.required_base()
    text = chosen_text(request.settings)
    for cell in request.todo:
        yield _check(request, base, text, cell)


def _check(request: TaskRequest, base: Base, text: Text | None, cell: Cell) -> CellResult:
    tokens = cell.context_tokens
    reading = DivergencePlan(n_ctx=tokens, text=text, chunks=1)
    grid = NeedlePlan(
        lengths=(tokens,),
        depths=DEPTHS,
        samples=SPLICED_SAMPLES,
        seed=request.seed,
        format=request.settings.format,
        thinking=request.settings.thinking,
    )
    model, variant = request.model, request.open_context
    request.plan_tokens(comparing_tokens(reading, model) + 2 * asking_tokens(grid, model))

    def needles(open_context: OpenContext) -> tuple[NeedleScore, ...]:
        return tuple(ask(grid, model, open_context, progress=request.progress))

    divergence = compare_contexts(
        reading, model, base.open_context, variant, progress=request.progress
    )
    by_base, by_variant = needles(base.open_context), needles(variant)
    reasons = (divergence.reason, *(score.reason for score in (*by_base, *by_variant)))
    reason = next((reason for reason in reasons if reason), None)
    if divergence.measured is None or reason is not None:
        return CellResult(cell=cell, status="error", reason=reason)
    return CellResult(
        cell=cell,
        status="ok",
        metrics=(
            *divergence_metrics(divergence.measured),
            _share("recall", recall(by_variant).exact),
            _share("base_recall", recall(by_base).exact),
        ),
        notes=request.base_notes,
        prompt_tokens=tokens,
    )


def _share(name: str, share: Proportion) -> Metric:
    return Metric(name=name, value=share.value, low=share.low, high=share.high, n=share.n)


SHORT_CONTEXT = Task(
    name="short-context", places=_places, tokens=_tokens, run=_run, compares_with="original"
)
"""Divergence and recall against the original, in one cell."""
