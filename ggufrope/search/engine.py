"""The search itself: stages over candidates, each recorded as soon as it is judged.

    YaRN at the target -> screening by the optimizer -> finalists at the target, YaRN among them
    -> winner and YaRN on the holdout -> the short factors -> the check of short contexts

Everything is a function of the plan and of recorded losses, so a search resumes by running again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.rope.scaling import FrequencyFactors, RopeScaling, Unscaled
from ggufrope.search.evaluate import evaluate
from ggufrope.search.holdout import Comparison, compare
from ggufrope.search.optimizers import make_optimizer
from ggufrope.search.plan import stages_of
from ggufrope.search.record import Candidate
from ggufrope.search.spaces import ShortSpace, Space, baselines, make_space

if TYPE_CHECKING:
    from ggufrope.backends import Rotator
    from ggufrope.patching.rotation import Rotation
    from ggufrope.search.plan import SearchPlan, Stage
    from ggufrope.search.record import Record

WINNER = "searched"
SHORT = "short factors"
YARN = "yarn"

_NEAR_ONE = 1e-3
"""An attention factor this near 1 leaves the model as it was in short contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress:
    """One more candidate judged, the `done`-th of about `planned` of its stage.

    `best` is the least loss of the stage so far, None before there is one. `left_seconds` is an
    estimate for this stage and what is known to follow.
    """

    candidate: Candidate
    done: int
    planned: int
    best: float | None
    elapsed_seconds: float
    left_seconds: float


Watch: TypeAlias = Callable[[SearchProgress], None]
Keep: TypeAlias = Callable[[RopeScaling], None]
"""Called with the best scheme so far, whenever there is a better one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search ended with.

    `short` are the factors up to the original context, None where the long ones are shared.
    `holdout` compares the winner with YaRN by each fitness, `short_context` what the model becomes
    within its original context with what it was. `budget_exhausted` is whether the budget ended the
    screening.
    """

    winner: RopeScaling
    short: FrequencyFactors | None
    holdout: tuple[Comparison, ...]
    short_context: tuple[Comparison, ...]
    budget_exhausted: bool


class Evaluator:
    """Judges the candidates of one stage after the other.

    Candidates in the record are not evaluated again. `elapsed_seconds` counts what every candidate
    took, also those of the record. `unchanged` is called before a candidate is recorded, and raises
    where it was not measured on the model of the record.
    """

    def __init__(
        self,
        rotator: Rotator,
        record: Record,
        watch: Watch | None = None,
        *,
        unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        self._rotator = rotator
        self._record = record
        self._watch = watch
        self._unchanged = unchanged
        self.elapsed_seconds = 0.0

    def begin(
        self,
        stage: Stage,
        *,
        planned: int,
        later_seconds: float = 0.0,
        deadline_seconds: float = math.inf,
    ) -> None:
        """Begin a stage of about `planned` candidates.

        Its deadline is in seconds since the search began; `later_seconds` is what follows it.
        """
        self._stage = stage
        self._planned = planned
        self._later_seconds = later_seconds
        self._deadline = deadline_seconds
        self._done = 0
        self._seconds = 0.0
        self._lower_bounds: dict[str, float] = {}
        self.best: Candidate | None = None

    @property
    def is_over(self) -> bool:
        """Whether the deadline of the stage has passed."""
        return self.elapsed_seconds >= self._deadline

    def judge(self, scheme: RopeScaling, *, cutoff: float = math.inf) -> Candidate:
        """Judge one more candidate of the stage.

        An evaluation stops early where the candidate would stay above `cutoff` even if it were as
        good in each cell to come as the best candidate of the stage.
        """
        candidate = self._candidate(scheme, cutoff)
        self.elapsed_seconds += candidate.seconds
        self._done += 1
        self._seconds += candidate.seconds
        for cell in candidate.evaluation.cells:
            bound = self._lower_bounds.get(cell.key, math.inf)
            self._lower_bounds[cell.key] = min(cell.loss, bound)
        if not candidate.evaluation.stopped and (
            self.best is None or candidate.loss < self.best.loss
        ):
            self.best = candidate
        if self._watch is not None:
            self._watch(self._progress(candidate))
        return candidate

    def _candidate(self, scheme: RopeScaling, cutoff: float) -> Candidate:
        """The candidate of a scheme: the recorded one where there is one."""
        name, fitness = self._stage.name, self._stage.fitness
        recorded = self._record.find(name, fitness.name, scheme)
        if recorded is not None:
            return recorded
        evaluation = evaluate(
            scheme, fitness, self._rotator, cutoff=cutoff, lower_bounds=self._lower_bounds
        )
        self._unchanged()
        return self._record.append(name, fitness.name, scheme, evaluation)

    def _progress(self, candidate: Candidate) -> SearchProgress:
        each = self._seconds / self._done
        left = min(
            max(self._planned - self._done, 0) * each,
            max(self._deadline - self.elapsed_seconds, 0.0),
        )
        return SearchProgress(
            candidate=candidate,
            done=self._done,
            planned=self._planned,
            best=None if self.best is None else self.best.loss,
            elapsed_seconds=self.elapsed_seconds,
            left_seconds=left + self._later_seconds,
        )


def search(
    plan: SearchPlan,
    rotation: Rotation,
    evaluator: Evaluator,
    *,
    short_factors: bool,
    keep: Keep | None = None,
) -> Outcome:
    """Search, or go on where the evaluator's record ends.

    `short_factors` is whether the model gets short factors. Raises BackendError where the runtime
    cannot evaluate, RequestError where the plan cannot be carried out with this model; every
    candidate finished by then is in the record.
    """
    stages = stages_of(plan, rotation)
    yarn = baselines(rotation)[YARN]
    evaluator.begin(stages.final, planned=1)
    first = evaluator.judge(yarn)
    reserve = _seconds_after_screening(plan, first.seconds)
    evaluator.begin(
        stages.screening,
        planned=plan.candidates,
        later_seconds=reserve,
        deadline_seconds=_deadline(plan) - reserve,
    )
    space = make_space(plan.space, rotation, plan.attention)
    screened = _explore(evaluator, space, plan, plan.candidates, keep)
    exhausted = evaluator.is_over
    finalists = screened[: plan.finalists]
    evaluator.begin(stages.final, planned=len(finalists))
    judged = [first, *(evaluator.judge(candidate.scheme) for candidate in finalists)]
    winner = min(judged, key=lambda candidate: candidate.loss).scheme
    if keep is not None:
        keep(winner)
    holdout = _compare(evaluator, stages.holdout, {WINNER: winner, YARN: yarn}, against=YARN)
    short = None
    if short_factors:
        short = _short_factors(plan, rotation, evaluator, stages.short_factors, winner)
    now = {WINNER: winner} if short is None else {SHORT: short}
    checked = _compare(
        evaluator, stages.short_context, {**now, "unscaled": Unscaled()}, against="unscaled"
    )
    return Outcome(
        winner=winner,
        short=short,
        holdout=holdout,
        short_context=checked,
        budget_exhausted=exhausted,
    )


def _explore(
    evaluator: Evaluator, space: Space, plan: SearchPlan, evaluations: int, keep: Keep | None
) -> list[Candidate]:
    """Judge what an optimizer proposes until it has enough or the stage is over. Every candidate
    that was not stopped early, each scheme once, best first."""
    optimizer = make_optimizer(plan.optimizer, space, evaluations=evaluations, seed=plan.seed)
    whole: dict[RopeScaling, Candidate] = {}
    while vectors := optimizer.ask():
        losses: list[float] = []
        for vector in vectors:
            if evaluator.is_over and whole:
                return _ranked(whole)
            candidate = evaluator.judge(space.scheme(vector), cutoff=optimizer.cutoff(losses))
            losses.append(candidate.loss)
            if not candidate.evaluation.stopped:
                whole[candidate.scheme] = candidate
            if keep is not None and evaluator.best is candidate:
                keep(candidate.scheme)
        optimizer.tell(vectors, losses)
    return _ranked(whole)


def _ranked(candidates: Mapping[RopeScaling, Candidate]) -> list[Candidate]:
    return sorted(candidates.values(), key=lambda candidate: candidate.loss)


def _short_factors(
    plan: SearchPlan, rotation: Rotation, evaluator: Evaluator, stage: Stage, winner: RopeScaling
) -> FrequencyFactors:
    """Factors for contexts up to the original: ones, unless the winner's attention factor, which
    acts there too, needs others."""
    magnitude = rotation.magnitude(winner)
    space = ShortSpace(rotation=rotation, attention_factor=magnitude)
    if abs(magnitude - 1) < _NEAR_ONE:
        return space.scheme(space.seeds()[0])
    evaluations = max(8, plan.candidates // 4)
    evaluator.begin(stage, planned=evaluations, deadline_seconds=_deadline(plan))
    best = _explore(evaluator, space, plan, evaluations, keep=None)[0].scheme
    return FrequencyFactors(factors=rotation.relative_factors(best), attention_factor=magnitude)


def _compare(
    evaluator: Evaluator,
    stages: tuple[Stage, ...],
    schemes: Mapping[str, RopeScaling],
    *,
    against: str,
) -> tuple[Comparison, ...]:
    """Judge every scheme by every fitness, to the end."""
    comparisons = []
    for stage in stages:
        evaluator.begin(stage, planned=len(schemes))
        evaluations = {name: evaluator.judge(scheme).evaluation for name, scheme in schemes.items()}
        comparisons.append(compare(stage.fitness.name, evaluations, against=against))
    return tuple(comparisons)


def _deadline(plan: SearchPlan) -> float:
    return math.inf if plan.budget_seconds is None else plan.budget_seconds


def _seconds_after_screening(plan: SearchPlan, seconds_each: float) -> float:
    """An estimate of all that follows, from what judging one scheme at the target takes: the
    finalists, and the holdout of the winner and of YaRN."""
    return seconds_each * (plan.finalists + 2 * plan.holdout_samples / plan.samples)
