"""Perplexity as llama-perplexity measures it, or by a sliding window, and along the context.

Chunked (tools/perplexity/perplexity.cpp, `perplexity`): the text is cut into chunks of n_ctx
tokens that do not overlap, each with its first token replaced by BOS where the vocabulary adds
one, and the second half of each chunk is scored, tokens n_ctx/2 + 1 to n_ctx - 1.
Sliding: windows of n_ctx tokens, `stride` apart, each scoring what no window before it scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from math import exp, fsum, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.logprobs import log_probabilities
from ggufrope.evals.results import NOT_FINITE, Cell, CellResult, Curve, Metric, estimate
from ggufrope.evals.stats import Mean
from ggufrope.evals.task import Task, TaskRequest, TaskSettings, one_cell_per_length
from ggufrope.evals.texts import Text, chosen_text, reference_text, windows_of
from ggufrope.evals.trunk import Trunk
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress

CURVE = "perplexity_by_position"
"""Name of the curve in a cell's result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityPlan:
    """The text to read in contexts of `n_ctx` tokens; None: Python's help topics.

    At most `chunks` of it are read after the `skipped` ones, all of it where that is None. `stride`
    makes the window slide. With `curve` the first half of a chunk is scored too, for the curve
    alone: the value remains that of the second half. The curve has `buckets` points.

    Raises RequestError where the numbers make no sense.
    """

    n_ctx: int
    text: Text | None = None
    chunks: int | None = None
    skipped: int = 0
    stride: int | None = None
    curve: bool = False
    buckets: int = 16

    def __post_init__(self) -> None:
        if self.n_ctx < 4:
            raise RequestError(f"perplexity needs a context of at least 4 tokens, got {self.n_ctx}")
        if self.chunks is not None and self.chunks < 1:
            raise RequestError(f"perplexity needs at least one chunk, got {self.chunks}")
        if self.skipped < 0:
            raise RequestError(f"perplexity skips 0 or more chunks, got {self.skipped}")
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
class ChunkScore:
    """One chunk or window, number `index` of the text: sums over its scored tokens, so that any
    number of chunks add up.

    `nll` and `nll_squared` are sums of negative log-probabilities, nat, and of their squares.
    `tokens` is 0 where the chunk could not be scored, and `reason` says why.
    """

    index: int
    tokens: int = 0
    nll: float = 0.0
    nll_squared: float = 0.0
    curve: tuple[Bucket, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity of a text: `value` and its standard error `error`, None where nothing was scored.

    `nll` is the mean negative log-probability in nat, the logarithm of `value`, and `nll_error` its
    standard error. `unscored` chunks failed.
    """

    value: float | None
    error: float | None
    nll: float | None
    nll_error: float | None
    tokens: int
    chunks: int
    unscored: int
    curve: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Tokens to read: those from `score_from` on count, those from `read_from` on are scored."""

    index: int
    tokens: NDArray[np.int64]
    read_from: int
    score_from: int


def read_chunks(
    plan: PerplexityPlan,
    model: LanguageModel,
    open_context: OpenContext,
    *,
    progress: Progress | None = None,
) -> Iterator[ChunkScore]:
    """Yield the score of each chunk in the order of the text.

    Memory holds the tokens of the text and one batch of logits. A BackendError becomes the reason
    of the chunk it concerns. Raises RequestError where the text is too short.
    """
    with Trunk(open_context, plan.n_ctx, progress=progress) as trunk:
        for window in _windows(plan, model):
            try:
                scored = _read(trunk.move_to(()), window, progress)
            except BackendError as failure:
                trunk.discard()
                yield ChunkScore(index=window.index, reason=str(failure))
            else:
                yield _chunk_score(plan, window, scored)


def reading_tokens(plan: PerplexityPlan, model: LanguageModel) -> int:
    """Return how many tokens `read_chunks` evaluates. Raises RequestError as it does."""
    return sum(len(window.tokens) for window in _windows(plan, model))


def _windows(plan: PerplexityPlan, model: LanguageModel) -> Iterator[_Window]:
    windows = windows_of(
        model,
        plan.text or reference_text(),
        n_ctx=plan.n_ctx,
        step=plan.stride or plan.n_ctx,
        most=None if plan.chunks is None else plan.skipped + plan.chunks,
    )
    for index, tokens in islice(enumerate(windows), plan.skipped, None):
        if plan.stride is None:
            score_from = plan.n_ctx // 2 + 1
            read_from = 1 if plan.curve else score_from
        else:
            read_from = score_from = 1 if index == 0 else plan.n_ctx - plan.stride
        yield _Window(index=index, tokens=tokens, read_from=read_from, score_from=score_from)


def _chunk_score(plan: PerplexityPlan, window: _Window, scored: NDArray[np.float64]) -> ChunkScore:
    """Return the sums over `scored`, the log-probability of each token from `read_from` on."""
    nll = -scored
    counted = nll[window.score_from - window.read_from :]
    if not np.isfinite(nll).all():
        return ChunkScore(index=window.index, reason=NOT_FINITE)
    return ChunkScore(
        index=window.index,
        tokens=len(counted),
        nll=float(counted.sum()),
        nll_squared=float((counted**2).sum()),
        curve=tuple(_curve(plan, window.read_from, nll)),
    )


def _curve(plan: PerplexityPlan, read_from: int, nll: NDArray[np.float64]) -> Iterator[Bucket]:
    edges = [i * plan.n_ctx // plan.buckets for i in range(plan.buckets + 1)]
    for start, end in pairwise(edges):
        inside = nll[max(start - read_from, 0) : max(end - read_from, 0)]
        if len(inside):
            yield Bucket(start=start, end=end, tokens=len(inside), nll=float(inside.sum()))


def perplexity_of(chunks: Iterable[ChunkScore]) -> Perplexity:
    """Return the perplexity of the chunks of one plan taken together, in any order.

    The error is llama-perplexity's: value × sqrt(variance / (count - 1)), by the delta method.
    """
    every = tuple(chunks)
    scored = [chunk for chunk in every if chunk.reason is None]
    count = sum(chunk.tokens for chunk in scored)
    unscored = len(every) - len(scored)
    if not count:
        return Perplexity(
            value=None,
            error=None,
            nll=None,
            nll_error=None,
            tokens=0,
            chunks=0,
            unscored=unscored,
            curve=(),
        )
    nll = fsum(chunk.nll for chunk in scored) / count
    variance = fsum(chunk.nll_squared for chunk in scored) / count - nll * nll
    error = sqrt(max(variance, 0) / (count - 1)) if count > 1 else None
    return Perplexity(
        value=_exp(nll),
        error=None if error is None else _exp(nll) * error,
        nll=nll,
        nll_error=error,
        tokens=count,
        chunks=len(scored),
        unscored=unscored,
        curve=_added(bucket for chunk in scored for bucket in chunk.curve),
    )


def _read(
    context: LanguageContext, window: _Window, progress: Progress | None
) -> NDArray[np.float64]:
    """Return the log-probability of every token of the window from `read_from` on.

    The whole window is evaluated, including the last token, as llama-perplexity does: other batches
    would change the last digits.
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
    """Return the sums of buckets of the same positions, in order."""
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
    """Return exp(nll), or infinity where the result exceeds the largest float."""
    return exp(nll) if nll < 709 else inf


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    return settings.chunks * sum(cell.context_tokens for cell in cells)


def _run(request: TaskRequest) -> Iterator[CellResult]:
    text = chosen_text(request.settings) or reference_text()
    for cell in request.todo:
        plan = PerplexityPlan(
            n_ctx=cell.context_tokens, text=text, chunks=request.settings.chunks, curve=True
        )
        try:
            request.plan_tokens(reading_tokens(plan, request.model))
            chunks = tuple(
                read_chunks(plan, request.model, request.open_context, progress=request.progress)
            )
        except RequestError as error:
            yield CellResult(cell=cell, status="error", reason=str(error))
        else:
            yield _result(cell, text, chunks)


def _result(cell: Cell, text: Text, chunks: Sequence[ChunkScore]) -> CellResult:
    notes = (("text", text.source), ("text_sha256", text.sha256))
    found = perplexity_of(chunks)
    if found.value is None:
        reasons = [chunk.reason for chunk in chunks if chunk.reason]
        reason = reasons[0] if reasons else "nothing was scored"
        return CellResult(cell=cell, status="error", reason=reason, notes=notes)
    points = tuple((float(b.end), _exp(b.nll / b.tokens)) for b in found.curve if b.tokens)
    return CellResult(
        cell=cell,
        status="ok",
        metrics=(
            estimate(
                "perplexity", Mean(n=found.tokens, value=found.value, standard_error=found.error)
            ),
            estimate("nll", Mean(n=found.tokens, value=found.nll, standard_error=found.nll_error)),
            Metric(name="chunks", value=found.chunks),
            Metric(name="unscored_chunks", value=found.unscored),
        ),
        curves=(Curve(name=CURVE, points=points),),
        notes=notes,
        prompt_tokens=cell.context_tokens,
    )


PERPLEXITY = Task(name="perplexity", places=one_cell_per_length, tokens=_tokens, run=_run)
"""Chunked perplexity at each length, and by position within it."""
