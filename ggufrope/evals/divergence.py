"""How far a variant of a model strays from its base on the same text.

Two contexts, of one loaded model or of two with the same vocabulary, read the text in lockstep;
their distributions are compared while they are in memory, so nothing is written anywhere. The
figures are those of llama-perplexity's --kl-divergence (tools/perplexity/perplexity.cpp,
`kl_divergence`), over the second half of chunks that do not overlap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.logprobs import Comparison, Logits, compare
from ggufrope.evals.stats import Mean, mean, percentiles
from ggufrope.evals.texts import Text, reference_text, windows_of
from ggufrope.evals.trunk import Trunk
from ggufrope.evals.types import NOT_FINITE, Score
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress

DIVERGENCE_POINTS = (50.0, 90.0, 99.0, 99.9)
DELTA_P_POINTS = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergencePlan:
    """Read at most `chunks` chunks of `n_ctx` tokens of `text`, or of Python's help topics.

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
    """Over `tokens` positions, with standard errors.

    `divergence` is KL(base || variant) in nat; `delta_p` what the variant gives the right token
    beyond what the base does, `delta_p_rms` its root mean square; `same_top` the share of
    positions with the same most likely token; `base_nll` the base's mean negative log-probability
    in nat, and `nll_difference` what the variant adds to it, paired by token, which is
    ln(PPL(variant) / PPL(base)). Percentiles are (percent, value) pairs.
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
class DivergenceResult:
    """The one cell of a divergence; `unscored` chunks failed. `score` is the mean divergence."""

    key: str
    n_ctx: int
    measured: Divergence | None
    unscored: int
    score: Score


@dataclass(frozen=True, slots=True)
class DivergenceTask:
    """A DivergencePlan as a task: `open_base` opens the base, `run` is given the variant."""

    plan: DivergencePlan
    open_base: OpenContext

    @property
    def name(self) -> str:
        return "divergence"

    @property
    def key(self) -> str:
        return str(self.plan.n_ctx)

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens both contexts will evaluate. Raises RequestError where the text is too short."""
        if self.key in done:
            return 0
        return sum(2 * len(window) for window in self._windows(model))

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[DivergenceResult]:
        """The one result. Memory: a batch of logits of each, and 25 bytes a scored token."""
        if self.key in done:
            return
        compared: list[Comparison] = []
        failures: list[str] = []
        n_ctx = self.plan.n_ctx
        with Trunk(self.open_base, n_ctx) as base, Trunk(open_context, n_ctx) as variant:
            for window in self._windows(model):
                try:
                    contexts = base.move_to(()), variant.move_to(())
                    found = _joined(_read(*contexts, window, progress))
                except BackendError as failure:
                    base.discard()
                    variant.discard()
                    failures.append(str(failure))
                else:
                    compared.append(found)
        yield self._result(compared, failures)

    def _windows(self, model: LanguageModel) -> Iterator[NDArray[np.int64]]:
        return windows_of(
            model,
            self.plan.text or reference_text(),
            n_ctx=self.plan.n_ctx,
            step=self.plan.n_ctx,
            most=self.plan.chunks,
        )

    def _result(self, compared: list[Comparison], failures: list[str]) -> DivergenceResult:
        measured = summary(_joined(compared)) if compared else None
        if measured is None:
            score = Score(value=None, reason=failures[0])
        elif not np.isfinite(measured.divergence_max):
            measured, score = None, Score(value=None, reason=NOT_FINITE)
        else:
            score = Score(value=measured.divergence.value)
        return DivergenceResult(
            key=self.key,
            n_ctx=self.plan.n_ctx,
            measured=measured,
            unscored=len(failures),
            score=score,
        )


def summary(compared: Comparison) -> Divergence:
    """The figures of a comparison of at least one position."""
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
    """The root of a mean, its error by the delta method."""
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
    """Compare the second half of a window, batch by batch."""
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
    """The same rows of both, however each is cut into batches.

    A batch is dropped before the next of its own is asked for, which may overwrite it.
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


def _joined(parts: Iterator[Comparison] | list[Comparison]) -> Comparison:
    every = list(parts)
    return Comparison(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in every])
            for field in fields(Comparison)
        }
    )
