"""How good a candidate is: what the model loses under it, by the project's own evaluations.

A fitness is a task, cut into haystacks (or chunks of a text) of which there are as many as wanted,
and what counts as loss in its cells: nat per token, 0 for a model that knows the answer. Cells of a
haystack come in a fixed order, so that candidates are compared on the same ones, and an evaluation
can end as soon as the rest could not save the candidate.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ggufrope.errors import BackendError
from ggufrope.evals.needle import QUESTION_TOKENS, ask
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan, read_chunks
from ggufrope.evals.results import NOT_FINITE, Method

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from ggufrope.lm import LanguageModel, OpenContext
    from ggufrope.search.rotators import Rotator
    from ggufrope.search.schemes import Scheme


FitnessName: TypeAlias = Literal["needle", "perplexity"]

MOST_LOSS = 1000.0
"""The loss where a model's logits are no numbers any more, in nat per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLoss:
    """One cell, in a context of so many tokens: its loss in nat per token, and where there is a
    right answer, whether greedy decoding gives it."""

    key: str
    context_tokens: int
    loss: float
    exact: bool | None = None


class Fitness(Protocol):
    """What candidates are judged by."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Return about how many tokens a haystack takes to evaluate."""
        ...

    @property
    def shares(self) -> Mapping[int, float]:
        """Return what one cell of each length weighs; all cells of a haystack together weigh 1."""
        ...

    def run(
        self, haystack: int, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield the losses of haystack number `haystack`, from 0 on; none where there are no more.

        Raises BackendError where a cell cannot be scored, RequestError where none can.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NeedleFitness:
    """The answer's tokens only, of needles at every depth of a haystack (LongRoPE2, 3.2).

    Every haystack is drawn anew, with the needles of `plan`. `weights` are those of its lengths,
    None for equal ones. Candidates are judged by spliced needles, schemes on the holdout by whole
    prompts.
    """

    plan: NeedlePlan
    method: Method = "spliced"
    weights: Mapping[int, float] | None = None

    @property
    def name(self) -> str:
        return "needle" if self.method == "spliced" else "whole prompts"

    @property
    def tokens(self) -> int:
        cells = self.plan.samples * len(self.plan.depths) * len(self.plan.lengths)
        after = [1 - depth / 100 for depth in self.plan.depths] * self.plan.samples
        again = math.fsum(after) * sum(self.plan.lengths) if self.method == "whole" else 0
        return self.plan.lengths[-1] + QUESTION_TOKENS // 2 * cells + round(again)

    @cached_property
    def shares(self) -> Mapping[int, float]:
        cells = self.plan.samples * len(self.plan.depths)
        return _shares(dict.fromkeys(self.plan.lengths, cells), self.weights)

    def run(
        self, haystack: int, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield the loss of each needle's answer."""
        plan = replace(self.plan, seed=self.plan.seed + haystack)
        for score in ask(plan, model, open_context, method=self.method):
            if score.log_probability is None:
                raise BackendError(score.reason or "nothing was scored")
            yield CellLoss(
                key=str(score.point),
                context_tokens=score.point.context_tokens,
                loss=_bounded(-score.log_probability),
                exact=score.exact,
            )


@dataclass(frozen=True, kw_only=True)
class PerplexityFitness:
    """All tokens of the second half of each chunk of a text (LongRoPE, section 3.2).

    One plan for each length. What is a haystack elsewhere are their `chunks` here: the next ones of
    the text.
    """

    plans: Sequence[PerplexityPlan]
    weights: Mapping[int, float] | None = None

    @property
    def name(self) -> str:
        return "perplexity"

    @property
    def tokens(self) -> int:
        return sum(plan.n_ctx * (plan.chunks or 1) for plan in self.plans)

    @cached_property
    def shares(self) -> Mapping[int, float]:
        return _shares({plan.n_ctx: plan.chunks or 1 for plan in self.plans}, self.weights)

    def run(
        self, haystack: int, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield the mean loss of each chunk."""
        for plan in self.plans:
            chunks = replace(plan, skipped=haystack * (plan.chunks or 1))
            for chunk in read_chunks(chunks, model, open_context):
                if not chunk.tokens and chunk.reason != NOT_FINITE:
                    raise BackendError(chunk.reason or "nothing was scored")
                yield CellLoss(
                    key=f"{plan.n_ctx}/{chunk.index}",
                    context_tokens=plan.n_ctx,
                    loss=_bounded(chunk.nll / chunk.tokens) if chunk.tokens else MOST_LOSS,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A candidate's losses on one haystack.

    `loss` is their weighted mean, or where the evaluation was `stopped` early the least it could
    have become. Seconds are of the evaluation, and of setting the candidate up.
    """

    loss: float
    cells: tuple[CellLoss, ...]
    stopped: bool
    seconds: float
    overhead_seconds: float

    def loss_at(self, context_tokens: int) -> float:
        """Return the mean loss of the cells of one length."""
        cells = [cell.loss for cell in self.cells if cell.context_tokens == context_tokens]
        return math.fsum(cells) / len(cells) if cells else math.nan


def evaluate(
    scheme: Scheme,
    fitness: Fitness,
    haystack: int,
    rotator: Rotator,
    *,
    cutoff: float = math.inf,
    lower_bounds: Mapping[str, float] | None = None,
) -> Evaluation:
    """Judge `scheme` on one haystack; stop once its loss would stay above `cutoff` even if every
    cell to come were as good as its lower bound: the best any candidate got there, 0 where unknown.

    There are no cells where the fitness has no more haystacks. Raises what the rotator and the
    fitness raise.
    """
    bounds, shares = lower_bounds or {}, fitness.shares
    started = time.monotonic()
    rotated = rotator.rotate(scheme)
    ready = time.monotonic()
    cells: list[CellLoss] = []
    stopped = False
    loss = weight = 0.0
    ahead = math.fsum(shares[_length(key)] * bound for key, bound in bounds.items())
    with closing(fitness.run(haystack, rotated.model, rotated.open_context)) as run:
        for cell in run:
            cells.append(cell)
            share = shares[cell.context_tokens]
            loss, weight = loss + share * cell.loss, weight + share
            ahead -= share * bounds.get(cell.key, 0.0)
            least = loss + max(ahead, 0.0)
            if least > cutoff and weight < 1 - 1e-9:
                stopped = True
                break
    return Evaluation(
        loss=least if stopped else loss / (weight or 1.0),
        cells=tuple(cells),
        stopped=stopped,
        seconds=time.monotonic() - ready,
        overhead_seconds=ready - started,
    )


def _shares(cells: Mapping[int, int], weights: Mapping[int, float] | None) -> Mapping[int, float]:
    """What one cell of each length weighs, of so many cells at each, so that all weigh 1."""
    given = dict.fromkeys(cells, 1.0) if weights is None else weights
    whole = math.fsum(given[length] for length in cells)
    return {length: given[length] / whole / count for length, count in cells.items()}


def _length(key: str) -> int:
    return int(key.partition("/")[0])


def _bounded(loss: float) -> float:
    """A loss that means can be made of."""
    return min(loss, MOST_LOSS) if math.isfinite(loss) else MOST_LOSS
