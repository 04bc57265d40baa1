"""Perplexity, as llama-perplexity measures it, or by a sliding window, and along the context.

Chunked (tools/perplexity/perplexity.cpp, `perplexity`): the text is cut into chunks of n_ctx
tokens that do not overlap, each with its first token replaced by BOS where the vocabulary adds
one, and the second half of each chunk is scored, tokens n_ctx/2 + 1 to n_ctx - 1.
Sliding: windows of n_ctx tokens, `stride` apart, each scoring what no window before it scored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import exp, fsum, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.logprobs import log_probabilities
from ggufrope.evals.texts import Text, reference_text, windows_of
from ggufrope.evals.trunk import Trunk
from ggufrope.evals.types import NOT_FINITE, Score
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityPlan:
    """What to read in contexts of `n_ctx` tokens: `text`, or Python's help topics.

    At most `chunks` of it are read; all of it where that is None. `stride` makes the window slide.
    With `curve` the first half of a chunk is scored too, for the curve alone: the value stays that
    of the second half. The curve has `buckets` points.

    Raises RequestError where the numbers make no sense.
    """

    n_ctx: int
    text: Text | None = None
    chunks: int | None = None
    stride: int | None = None
    curve: bool = False
    buckets: int = 16

    def __post_init__(self) -> None:
        if self.n_ctx < 4:
            raise RequestError(f"perplexity needs a context of at least 4 tokens, got {self.n_ctx}")
        if self.chunks is not None and self.chunks < 1:
            raise RequestError(f"perplexity needs at least one chunk, got {self.chunks}")
        if self.stride is not None and not 1 <= self.stride < self.n_ctx:
            raise RequestError(
                f"a sliding window's stride lies between 1 and the context of {self.n_ctx} "
                f"tokens, got {self.stride}"
            )
        if not 1 <= self.buckets <= self.n_ctx:
            raise RequestError(f"a curve has 1 to {self.n_ctx} points, got {self.buckets}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The tokens at positions `start` to `end` (exclusive): how many, and the sum of their
    negative log-probabilities in nat."""

    start: int
    end: int
    tokens: int
    nll: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityResult:
    """One chunk or window: sums over its scored tokens, from which any number of them add up.

    `nll` and `nll_squared` are sums of negative log-probabilities, nat, and of their squares.
    """

    key: str
    n_ctx: int
    tokens: int
    nll: float
    nll_squared: float
    curve: tuple[Bucket, ...]
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """The whole: `value` and its standard error `error`, None where nothing was scored.

    `nll` is the mean in nat, the logarithm of `value`. `unscored` chunks failed.
    """

    value: float | None
    error: float | None
    nll: float | None
    tokens: int
    chunks: int
    unscored: int
    curve: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Tokens to read, of which those from `score_from` count and those from `read_from` are
    scored at all."""

    key: str
    tokens: NDArray[np.int64]
    read_from: int
    score_from: int


@dataclass(frozen=True, slots=True)
class PerplexityTask:
    """A PerplexityPlan as a task; a cell is a chunk."""

    plan: PerplexityPlan

    @property
    def name(self) -> str:
        return "perplexity"

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens a run will evaluate. Raises RequestError where the text is too short."""
        return sum(len(window.tokens) for window in self._windows(model, done))

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[PerplexityResult]:
        """Results in the order of the text; memory does not grow with it but by its tokens."""
        with Trunk(open_context, self.plan.n_ctx, progress=progress) as trunk:
            for window in self._windows(model, done):
                try:
                    scored = _read(trunk.move_to(()), window, progress)
                except BackendError as failure:
                    trunk.discard()
                    yield self._unscored(window, str(failure))
                else:
                    yield self._result(window, scored)

    def _windows(self, model: LanguageModel, done: Collection[str]) -> Iterator[_Window]:
        plan = self.plan
        windows = windows_of(
            model,
            plan.text or reference_text(),
            n_ctx=plan.n_ctx,
            step=plan.stride or plan.n_ctx,
            most=plan.chunks,
        )
        for index, tokens in enumerate(windows):
            key = f"{plan.n_ctx}/{index}"
            if key in done:
                continue
            if plan.stride is None:
                score_from = plan.n_ctx // 2 + 1
                read_from = 1 if plan.curve else score_from
            else:
                read_from = score_from = 1 if index == 0 else plan.n_ctx - plan.stride
            yield _Window(key=key, tokens=tokens, read_from=read_from, score_from=score_from)

    def _result(self, window: _Window, scored: NDArray[np.float64]) -> PerplexityResult:
        """`scored` is the log-probability of each token from `read_from` on."""
        nll = -scored
        counted = nll[window.score_from - window.read_from :]
        if not np.isfinite(nll).all():
            return self._unscored(window, NOT_FINITE)
        return PerplexityResult(
            key=window.key,
            n_ctx=self.plan.n_ctx,
            tokens=len(counted),
            nll=float(counted.sum()),
            nll_squared=float((counted**2).sum()),
            curve=tuple(self._curve(window.read_from, nll)),
            score=Score(value=_exp(float(counted.mean()))),
        )

    def _unscored(self, window: _Window, reason: str) -> PerplexityResult:
        return PerplexityResult(
            key=window.key,
            n_ctx=self.plan.n_ctx,
            tokens=0,
            nll=0.0,
            nll_squared=0.0,
            curve=(),
            score=Score(value=None, reason=reason),
        )

    def _curve(self, read_from: int, nll: NDArray[np.float64]) -> Iterator[Bucket]:
        edges = [i * self.plan.n_ctx // self.plan.buckets for i in range(self.plan.buckets + 1)]
        for start, end in pairwise(edges):
            inside = nll[max(start - read_from, 0) : max(end - read_from, 0)]
            if len(inside):
                yield Bucket(start=start, end=end, tokens=len(inside), nll=float(inside.sum()))


def perplexity_of(results: Iterable[PerplexityResult]) -> Perplexity:
    """Chunks of one plan taken together.

    The error is llama-perplexity's: value × sqrt(variance / (count - 1)), by the delta method.
    """
    every = tuple(results)
    scored = [result for result in every if result.score.value is not None]
    count = sum(result.tokens for result in scored)
    unscored = len(every) - len(scored)
    if not count:
        return Perplexity(
            value=None, error=None, nll=None, tokens=0, chunks=0, unscored=unscored, curve=()
        )
    nll = fsum(result.nll for result in scored) / count
    variance = fsum(result.nll_squared for result in scored) / count - nll * nll
    return Perplexity(
        value=_exp(nll),
        error=_exp(nll) * sqrt(max(variance, 0) / (count - 1)) if count > 1 else None,
        nll=nll,
        tokens=count,
        chunks=len(scored),
        unscored=unscored,
        curve=_added(bucket for result in scored for bucket in result.curve),
    )


def _read(
    context: LanguageContext, window: _Window, progress: Progress | None
) -> NDArray[np.float64]:
    """The log-probability of every token of the window from `read_from` on.

    The whole window is evaluated, the last token too, as llama-perplexity does: with other batches
    the last digits would be others.
    """
    found = []
    position = window.read_from
    for logits in context.logits(
        window.tokens.tolist(), skip=window.read_from - 1, progress=progress
    ):
        tokens = window.tokens[position : position + len(logits)]
        found.append(log_probabilities(logits[: len(tokens)], tokens))
        position += len(logits)
    return np.concatenate(found)


def _added(buckets: Iterable[Bucket]) -> tuple[Bucket, ...]:
    """Buckets of the same positions added up, in order."""
    places: dict[tuple[int, int], list[Bucket]] = {}
    for bucket in buckets:
        places.setdefault((bucket.start, bucket.end), []).append(bucket)
    return tuple(
        Bucket(
            start=start,
            end=end,
            tokens=sum(bucket.tokens for bucket in places[start, end]),
            nll=fsum(bucket.nll for bucket in places[start, end]),
        )
        for start, end in sorted(places)
    )


def _exp(nll: float) -> float:
    """exp, or infinity where a model is so lost that there is no such number."""
    return exp(nll) if nll < 709 else inf
