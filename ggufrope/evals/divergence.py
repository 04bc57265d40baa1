"""How far a variant of a model strays from its base on the same text.

Two contexts, of one loaded model or of two with the same vocabulary, read the text in lockstep;
their distributions are compared while they are in memory, so nothing is written anywhere. The
figures are those of llama-perplexity's --kl-divergence (tools/perplexity/perplexity.cpp,
`kl_divergence`), over the second half of chunks that do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.logprobs import Comparison, Logits, compare
from ggufrope.evals.results import NOT_FINITE, Cell, CellResult, Metric, estimate
from ggufrope.evals.stats import Mean, mean, percentiles
from ggufrope.evals.task import Task, TaskRequest, TaskSettings, one_cell_per_length
from ggufrope.evals.texts import Text, chosen_text, reference_text, windows_of
from ggufrope.evals.trunk import Trunk
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress

DIVERGENCE_POINTS = (50.0, 90.0, 99.0, 99.9)
DELTA_P_POINTS = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergencePlan:
    """The text to read: at most `chunks` chunks of `n_ctx` tokens; None: Python's help topics.

    Raises RequestError where the numbers make no sense.
    """

    n_ctx: int
    text: Text | None = None
    chunks: int | None = None

    def __post_init__(self) -> None:
        if self.n_ctx < 4:
            raise RequestError(f"divergence needs a context of at least 4 tokens, got {self.n_ctx}")
        if self.chunks is not None and self.chunks < 1:
            raise RequestError(f"divergence needs at least one chunk, got {self.chunks}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Figures over `tokens` positions, with standard errors.

    `divergence` is KL(base || variant) in nat. `delta_p` is the probability of the right token
    under the variant less that under the base, `delta_p_rms` its root mean square. `same_top` is
    the share of positions with the same most likely token. `base_nll` is the base's mean negative
    log-probability in nat, and `nll_difference` what the variant adds to it, paired by token, which
    is ln(PPL(variant) / PPL(base)). Percentiles are (percent, value) pairs.
    """

    tokens: int
    divergence: Mean
    divergence_max: float
    divergence_percentiles: tuple[tuple[float, float], ...]
    delta_p: Mean
    delta_p_rms: Mean
    delta_p_percentiles: tuple[tuple[float, float], ...]
    same_top: Mean
    base_nll: Mean
    nll_difference: Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceScore:
    """What a plan measured; `unscored` chunks failed. `measured` is None where nothing could be
    scored, and `reason` says why."""

    measured: Divergence | None
    unscored: int = 0
    reason: str | None = None


def compare_contexts(
    plan: DivergencePlan,
    model: LanguageModel,
    open_base: OpenContext,
    open_variant: OpenContext,
    *,
    progress: Progress | None = None,
) -> DivergenceScore:
    """Return how far the variant strays from the base.

    Memory holds a batch of logits of each, and 25 bytes for each scored token. A BackendError costs
    the chunk it concerns. Raises RequestError where the text is too short, or where the
    vocabularies differ.
    """
    compared: list[Comparison] = []
    failures: list[str] = []
    with Trunk(open_base, plan.n_ctx) as base, Trunk(open_variant, plan.n_ctx) as variant:
        for window in _windows(plan, model):
            try:
                contexts = base.move_to(()), variant.move_to(())
                found = _joined(_read(*contexts, window, progress))
            except BackendError as failure:
                base.discard()
                variant.discard()
                failures.append(str(failure))
            else:
                compared.append(found)
    if not compared:
        return DivergenceScore(measured=None, unscored=len(failures), reason=failures[0])
    measured = summary(_joined(compared))
    if not np.isfinite(measured.divergence_max):
        return DivergenceScore(measured=None, unscored=len(failures), reason=NOT_FINITE)
    return DivergenceScore(measured=measured, unscored=len(failures))


def comparing_tokens(plan: DivergencePlan, model: LanguageModel) -> int:
    """Return how many tokens `compare_contexts` evaluates, in both contexts together.

    Raises RequestError where the text is too short.
    """
    return sum(2 * len(window) for window in _windows(plan, model))


def _windows(plan: DivergencePlan, model: LanguageModel) -> Iterator[NDArray[np.int64]]:
    return windows_of(
        model,
        plan.text or reference_text(),
        n_ctx=plan.n_ctx,
        step=plan.n_ctx,
        most=plan.chunks,
    )


def summary(compared: Comparison) -> Divergence:
    """Return the figures of a comparison of at least one position."""
    delta_p = np.exp(compared.variant) - np.exp(compared.base)
    square = mean(delta_p**2)
    return Divergence(
        tokens=len(delta_p),
        divergence=mean(compared.divergence),
        divergence_max=float(compared.divergence.max()),
        divergence_percentiles=_paired(compared.divergence, DIVERGENCE_POINTS),
        delta_p=mean(delta_p),
        delta_p_rms=_root(square),
        delta_p_percentiles=_paired(delta_p, DELTA_P_POINTS),
        same_top=mean(compared.same_top.astype(np.float64)),
        base_nll=mean(-compared.base),
        nll_difference=mean(compared.base - compared.variant),
    )


def _root(square: Mean) -> Mean:
    """Return the root of a mean, its error by the delta method."""
    if not square.value:
        return square
    root = sqrt(square.value)
    error = square.standard_error
    return Mean(n=square.n, value=root, standard_error=error and error / (2 * root))


def _paired(
    values: NDArray[np.float64], points: tuple[float, ...]
) -> tuple[tuple[float, float], ...]:
    return tuple(zip(points, percentiles(values, points), strict=True))


def _read(
    base: LanguageContext,
    variant: LanguageContext,
    window: NDArray[np.int64],
    progress: Progress | None,
) -> Iterator[Comparison]:
    """Yield the comparison of the second half of a window, batch by batch."""
    tokens, skip = window.tolist(), len(window) // 2
    position = skip + 1
    pairs = _aligned(
        base.logits(tokens, skip=skip, progress=progress),
        variant.logits(tokens, skip=skip, progress=progress),
    )
    for a, b in pairs:
        if a.shape != b.shape:
            raise RequestError(
                f"the two models cannot be compared: vocabularies of {a.shape[1]} and "
                f"{b.shape[1]} tokens"
            )
        right = window[position : position + len(a)]
        yield compare(a[: len(right)], b[: len(right)], right)
        position += len(a)


def _aligned(a: Iterator[Logits], b: Iterator[Logits]) -> Iterator[tuple[Logits, Logits]]:
    """Yield the same rows of both, however each is cut into batches.

    A batch is dropped before the next one is taken, which may overwrite it.
    """
    rows_a = rows_b = np.empty((0, 0), dtype=np.float32)
    while True:
        if not len(rows_a):
            rows_a = next(a, rows_a)
        if not len(rows_b):
            rows_b = next(b, rows_b)
        n = min(len(rows_a), len(rows_b))
        if n == 0:
            return
        yield rows_a[:n], rows_b[:n]
        rows_a, rows_b = rows_a[n:], rows_b[n:]


def _joined(parts: Iterable[Comparison]) -> Comparison:
    every = list(parts)
    return Comparison(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in every])
            for field in fields(Comparison)
        }
    )


def divergence_metrics(found: Divergence) -> tuple[Metric, ...]:
    """Return a measured divergence as metrics, in nat and probabilities."""
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


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    return 2 * settings.chunks * sum(cell.context_tokens for cell in cells)


def strayed(
    request: TaskRequest,
    metrics: Callable[[Divergence], tuple[Metric, ...]],
    notes: tuple[tuple[str, str], ...],
) -> Iterator[CellResult]:
    """Yield the result of each cell to do: how far the request's contexts stray from its base, as
    these metrics say it."""
    base = request.required_base()
    text = chosen_text(request.settings)
    for cell in request.todo:
        plan = DivergencePlan(n_ctx=cell.context_tokens, text=text, chunks=request.settings.chunks)
        try:
            request.plan_tokens(comparing_tokens(plan, request.model))
            score = compare_contexts(
                plan,
                request.model,
                base.open_context,
                request.open_context,
                progress=request.progress,
            )
        except RequestError as error:
            yield CellResult(cell=cell, status="error", reason=str(error))
        else:
            yield CellResult(
                cell=cell,
                status="error" if score.measured is None else "ok",
                reason=score.reason,
                metrics=() if score.measured is None else metrics(score.measured),
                notes=notes,
                prompt_tokens=cell.context_tokens,
            )


def _run(request: TaskRequest) -> Iterator[CellResult]:
    return strayed(request, divergence_metrics, request.base_notes)


DIVERGENCE = Task(
    name="divergence",
    places=one_cell_per_length,
    tokens=_tokens,
    run=_run,
    compares_with="reference",
)
"""Divergence from the base at each length, read in lockstep with it."""
