"""Needle in a haystack: does the model find a fact again, at every length and depth.

A question is scored under teacher forcing, never generated: exact match is what greedy decoding
would give, and the answer's log-probability tells how near a miss was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

from ggufrope.errors import BackendError
from ggufrope.evals.needle_prompts import Ask, NeedleCell, NeedlePlan, Stop, stops
from ggufrope.evals.stats import Mean, Proportion, mean, proportion
from ggufrope.evals.trunk import Trunk, branch_tokens, common_prefix
from ggufrope.evals.types import NOT_FINITE, Score
from ggufrope.lm import AnswerScore, LanguageModel, OpenContext, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleResult:
    """What came of it.

    `prompt_tokens` were in the cache when the answer was due: haystack and question, measured.
    `measured_depth` is where the fact really stood, in percent. `exact` is 1 or 0;
    `log_probability` is the answer's mean, nat per token; `rank` is 1 where no distractor was more
    likely, out of `candidates`. All three lack a value where the cell failed, with the reason.
    """

    cell: NeedleCell
    prompt_tokens: int
    measured_depth: float
    needle: str
    answer: str
    exact: Score
    log_probability: Score
    rank: Score
    candidates: int

    @property
    def key(self) -> str:
        return self.cell.key

    @property
    def score(self) -> Score:
        return self.exact


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """A NeedlePlan as a task."""

    plan: NeedlePlan

    @property
    def name(self) -> str:
        return "passkey" if self.plan.wording == "passkey" else "needle"

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens a run will evaluate. Raises RequestError where a length has no room for a fact."""
        total = 0
        before: tuple[int, ...] = ()
        for stop in self._stops(model, done):
            total += len(stop.trunk) - common_prefix(before, stop.trunk)
            total += branch_tokens([ask.branch for ask in stop.asks])
            before = stop.trunk
        return total

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[NeedleResult]:
        """Results in the order of evaluation, which is not the order of the grid."""
        with Trunk(open_context, self.plan.all_lengths[-1], progress=progress) as trunk:
            for stop in self._stops(model, done):
                try:
                    scores = trunk.score(stop.trunk, [ask.branch for ask in stop.asks])
                except BackendError as failure:
                    trunk.discard()
                    yield from (_failed(ask, str(failure)) for ask in stop.asks)
                    continue
                for ask, answers in zip(stop.asks, scores, strict=True):
                    finite = all(isfinite(answer.mean_log_probability) for answer in answers)
                    yield _scored(ask, answers) if finite else _failed(ask, NOT_FINITE)

    def _stops(self, model: LanguageModel, done: Collection[str]) -> Iterator[Stop]:
        """The stops that still have something to ask."""
        for sample in range(self.plan.samples):
            for stop in stops(model, self.plan, sample):
                asks = tuple(ask for ask in stop.asks if ask.cell.key not in done)
                if asks:
                    yield Stop(trunk=stop.trunk, asks=asks)


def _scored(ask: Ask, answers: tuple[AnswerScore, ...]) -> NeedleResult:
    true, *others = answers
    likelier = sum(other.mean_log_probability >= true.mean_log_probability for other in others)
    return _result(
        ask,
        exact=Score(value=float(true.greedy)),
        log_probability=Score(value=true.mean_log_probability),
        rank=Score(value=float(1 + likelier)),
    )


def _failed(ask: Ask, reason: str) -> NeedleResult:
    unscored = Score(value=None, reason=reason)
    return _result(ask, exact=unscored, log_probability=unscored, rank=unscored)


def _result(ask: Ask, *, exact: Score, log_probability: Score, rank: Score) -> NeedleResult:
    return NeedleResult(
        cell=ask.cell,
        prompt_tokens=ask.prompt_tokens,
        measured_depth=ask.measured_depth,
        needle=ask.needle,
        answer=ask.answer,
        exact=exact,
        log_probability=log_probability,
        rank=rank,
        candidates=len(ask.branch.answers),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Cells taken together.

    `exact` is the share answered exactly; `first` the share whose answer no distractor beat, for
    which guessing would give one in `candidates`. Cells without a score are counted apart.
    """

    exact: Proportion
    first: Proportion
    log_probability: Mean
    unscored: int


def recall(results: Iterable[NeedleResult]) -> Recall:
    """Sum up any selection of results."""
    every = tuple(results)
    scored = tuple(result for result in every if result.exact.value is not None)
    return Recall(
        exact=proportion(sum(result.exact.value == 1 for result in scored), len(scored)),
        first=proportion(sum(result.rank.value == 1 for result in scored), len(scored)),
        log_probability=mean(
            result.log_probability.value
            for result in scored
            if result.log_probability.value is not None
        ),
        unscored=len(every) - len(scored),
    )


def recall_by_length(results: Iterable[NeedleResult]) -> dict[int, Recall]:
    """Recall at each length, ascending."""
    every = tuple(results)
    lengths = sorted({result.cell.context_tokens for result in every})
    return {
        length: recall(result for result in every if result.cell.context_tokens == length)
        for length in lengths
    }
