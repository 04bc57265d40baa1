"""How good a candidate is: what the model loses under it, by the project's own evaluations.

A fitness is a task and what counts as loss in its cells: nat per token, 0 for a model that knows
the answer. Cells come in a fixed order, so that candidates are compared on the same ones, and an
evaluation can end as soon as the rest could not save the candidate.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ggufrope.errors import BackendError
from ggufrope.evals.needle import ask
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan, read_chunks
from ggufrope.evals.results import NOT_FINITE, Method

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from ggufrope.backends import Rotator
    from ggufrope.lm import LanguageModel, OpenContext
    from ggufrope.rope.scaling import RopeScaling


FitnessName: TypeAlias = Literal["needle", "perplexity"]

MOST_LOSS = 1000.0
"""The loss where a model's logits are no numbers any more, in nat per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLoss:
    """One cell: its loss in nat per token, and where there is a right answer, whether greedy
    decoding gives it."""

    key: str
    loss: float
    exact: bool | None = None


class Fitness(Protocol):
    """What candidates are judged by."""

    @property
    def name(self) -> FitnessName: ...

    @property
    def cells(self) -> int:
        """How many losses a whole evaluation gives."""
        ...

    def run(
        self, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield losses. Raises BackendError where a cell cannot be scored, RequestError where none
        can."""
        ...


@dataclass(frozen=True, slots=True)
class NeedleFitness:
    """The answer's tokens only, of needles at every depth of a haystack (LongRoPE2, 3.2).

    Candidates are judged by spliced needles, schemes on the holdout by whole prompts.
    """

    plan: NeedlePlan
    method: Method = "spliced"

    @property
    def name(self) -> FitnessName:
        return "needle"

    @property
    def cells(self) -> int:
        return self.plan.samples * len(self.plan.lengths) * len(self.plan.depths)

    def run(
        self, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield the loss of each needle's answer."""
        for score in ask(self.plan, model, open_context, method=self.method):
            if score.log_probability is None:
                raise BackendError(score.reason or "nothing was scored")
            yield CellLoss(
                key=str(score.point), loss=_bounded(-score.log_probability), exact=score.exact
            )


@dataclass(frozen=True, slots=True)
class PerplexityFitness:
    """All tokens of the second half of each chunk of a text (LongRoPE, section 3.2)."""

    plan: PerplexityPlan

    @property
    def name(self) -> FitnessName:
        return "perplexity"

    @property
    def cells(self) -> int:
        return self.plan.chunks or 1

    def run(
        self, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        """Yield the mean loss of each chunk."""
        for chunk in read_chunks(self.plan, model, open_context):
            key = f"{self.plan.n_ctx}/{chunk.index}"
            if chunk.tokens:
                yield CellLoss(key=key, loss=_bounded(chunk.nll / chunk.tokens))
            elif chunk.reason == NOT_FINITE:
                yield CellLoss(key=key, loss=MOST_LOSS)
            else:
                raise BackendError(chunk.reason or "nothing was scored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A candidate's losses. `loss` is their mean, or where the evaluation was `stopped` early the
    least it could have become. Seconds are of the evaluation, and of setting the candidate up."""

    loss: float
    cells: tuple[CellLoss, ...]
    stopped: bool
    seconds: float
    overhead_seconds: float


def evaluate(
    scaling: RopeScaling,
    fitness: Fitness,
    rotator: Rotator,
    *,
    cutoff: float = math.inf,
    lower_bounds: Mapping[str, float] | None = None,
) -> Evaluation:
    """Judge `scaling`; stop once its mean loss would stay above `cutoff` even if every cell to come
    were as good as its lower bound: the best any candidate got there, 0 where unknown.

    Raises what the rotator and the fitness raise.
    """
    bounds = lower_bounds or {}
    started = time.monotonic()
    rotated = rotator.rotate(scaling)
    ready = time.monotonic()
    cells: list[CellLoss] = []
    stopped = False
    ahead = math.fsum(bounds.values())
    with closing(fitness.run(rotated.model, rotated.open_context)) as run:
        for cell in run:
            cells.append(cell)
            ahead -= bounds.get(cell.key, 0.0)
            least = (math.fsum(each.loss for each in cells) + max(ahead, 0.0)) / fitness.cells
            if least > cutoff and len(cells) < fitness.cells:
                stopped = True
                break
    total = math.fsum(cell.loss for cell in cells)
    return Evaluation(
        loss=least if stopped else total / max(len(cells), 1),
        cells=tuple(cells),
        stopped=stopped,
        seconds=time.monotonic() - ready,
        overhead_seconds=ready - started,
    )


def _bounded(loss: float) -> float:
    """A loss that means can be made of."""
    return min(loss, MOST_LOSS) if math.isfinite(loss) else MOST_LOSS
