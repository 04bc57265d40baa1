"""Scores of RULER-style tasks, their means, and the length a model effectively has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ggufrope.evals.ruler.specs import RULER_TASKS, Metric
from ggufrope.evals.stats import Mean, mean
from ggufrope.evals.types import Score

CHAT_THRESHOLD = 85.6
BASE_THRESHOLD = 79.4
"""Llama-2-7B's mean at 4k, chat and base: what RULER's authors call good enough, in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerResult:
    """One sample answered. `score` is the share of right answers found, 0 to 1."""

    task: str
    context_tokens: int
    sample: int
    prompt_tokens: int
    output: str
    answers: tuple[str, ...]
    score: Score

    @property
    def key(self) -> str:
        return f"{self.task}/{self.context_tokens}/{self.sample}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerLength:
    """A length's scores in percent: each task's mean over its samples, and the mean of the means.

    `value` is None where no task has a score. `complete` tells whether all thirteen have one: a
    published mean is of all of them. `unscored` samples failed.
    """

    tasks: tuple[tuple[str, Mean], ...]
    value: float | None
    complete: bool
    unscored: int


def found(output: str, answers: Sequence[str], metric: Metric) -> float:
    """How much of the answers is in the output, whatever the case: the share of them, or for
    "part" whether any is."""
    spoken = output.lower()
    hits = sum(answer.lower() in spoken for answer in answers)
    return float(hits > 0) if metric == "part" else hits / len(answers)


def by_length(results: Iterable[RulerResult]) -> dict[int, RulerLength]:
    """The scores at each length, ascending."""
    every = tuple(results)
    lengths = sorted({result.context_tokens for result in every})
    return {
        length: _at_length([result for result in every if result.context_tokens == length])
        for length in lengths
    }


def effective_length(scores: Mapping[int, float], threshold: float = CHAT_THRESHOLD) -> int | None:
    """The longest length whose mean, in percent, exceeds the threshold; None where none does."""
    return max((length for length, score in scores.items() if score > threshold), default=None)


def effective_length_by_share(scores: Mapping[int, float], share: float = 0.85) -> int | None:
    """The longest length that keeps that share of the shortest length's mean."""
    if not scores:
        return None
    own = scores[min(scores)]
    return max(
        (n for n, score in scores.items() if score > 0 and score >= share * own), default=None
    )


def _at_length(results: Sequence[RulerResult]) -> RulerLength:
    tasks = tuple((spec.name, _task_mean(results, spec.name)) for spec in RULER_TASKS)
    scored = tuple((name, score) for name, score in tasks if score.n)
    return RulerLength(
        tasks=scored,
        value=mean(score.value for _, score in scored if score.value is not None).value,
        complete=len(scored) == len(RULER_TASKS),
        unscored=sum(result.score.value is None for result in results),
    )


def _task_mean(results: Sequence[RulerResult], task: str) -> Mean:
    return mean(
        100 * result.score.value
        for result in results
        if result.task == task and result.score.value is not None
    )
