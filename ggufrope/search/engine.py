"""The search itself: stages over candidates, each recorded as it is judged.

    YaRN at the target -> screening by the optimizer -> finalists at the target
    -> winner and YaRN on the holdout -> the short factors -> the gate of short contexts

Everything is a function of the plan and of recorded losses, so a search resumes by running again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.rope.scaling import FrequencyFactors, RopeScaling, Unscaled
from ggufrope.search.evaluate import Fitness, evaluate
from ggufrope.search.holdout import Comparison, compare
from ggufrope.search.optimizers import make_optimizer
from ggufrope.search.record import Candidate
from ggufrope.search.spaces import Rotation, ShortSpace, Space, baselines, make_space

if TYPE_CHECKING:
    from ggufrope.search.bench import Bench
    from ggufrope.search.plan import SearchPlan
    from ggufrope.search.record import Record, Stage


# Judges candidates: asks the record first, then the bench, and tells whoever watches.


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


class Judge:
    """`elapsed_seconds` counts what every candidate took, also those taken from the record."""

    def __init__(self, bench: Bench, record: Record, watch: Watch | None = None) -> None:
        self._bench = bench
        self._record = record
        self._watch = watch
        self.elapsed_seconds = 0.0

    def course(
        self,
        stage: Stage,
        fitness: Fitness,
        *,
        planned: int,
        later_seconds: float = 0.0,
        deadline_seconds: float = math.inf,
    ) -> Course:
        """A stage to judge about `planned` candidates in."""
        return Course(
            self,
            stage,
            fitness,
            planned=planned,
            later_seconds=later_seconds,
            deadline_seconds=deadline_seconds,
        )

    def candidate(
        self,
        stage: Stage,
        fitness: Fitness,
        scheme: RopeScaling,
        *,
        bar: float,
        floors: Mapping[str, float],
    ) -> Candidate:
        """The candidate of a scheme: the recorded one where there is one."""
        candidate = self._record.find(stage, fitness.name, scheme)
        if candidate is None:
            found = evaluate(scheme, fitness, self._bench, bar=bar, floors=floors)
            candidate = self._record.append(stage, fitness.name, scheme, found)
        self.elapsed_seconds += candidate.seconds
        return candidate

    def tell(self, progress: SearchProgress) -> None:
        if self._watch is not None:
            self._watch(progress)


class Course:
    """One stage as it goes. It is `over` when its deadline has passed, in seconds since the
    search began; `later_seconds` is what is known to follow it."""

    def __init__(
        self,
        judge: Judge,
        stage: Stage,
        fitness: Fitness,
        *,
        planned: int,
        later_seconds: float,
        deadline_seconds: float,
    ) -> None:
        self._judge = judge
        self._stage: Stage = stage
        self._fitness = fitness
        self._planned = planned
        self._later = later_seconds
        self._deadline = deadline_seconds
        self._done = 0
        self._seconds = 0.0
        self._floors: dict[str, float] = {}
        self.best: Candidate | None = None

    @property
    def over(self) -> bool:
        return self._judge.elapsed_seconds >= self._deadline

    def judge(self, scheme: RopeScaling, *, bar: float = math.inf) -> Candidate:
        """Judge one more candidate; early stopping counts on no better cells than the best any
        candidate of this stage had."""
        candidate = self._judge.candidate(
            self._stage, self._fitness, scheme, bar=bar, floors=self._floors
        )
        self._done += 1
        self._seconds += candidate.seconds
        for cell in candidate.evaluation.cells:
            self._floors[cell.key] = min(cell.loss, self._floors.get(cell.key, math.inf))
        if not candidate.evaluation.stopped and (
            self.best is None or candidate.loss < self.best.loss
        ):
            self.best = candidate
        self._judge.tell(
            SearchProgress(
                candidate=candidate,
                done=self._done,
                planned=self._planned,
                best=None if self.best is None else self.best.loss,
                elapsed_seconds=self._judge.elapsed_seconds,
                left_seconds=self._left(),
            )
        )
        return candidate

    def _left(self) -> float:
        each = self._seconds / self._done
        here = min(
            max(self._planned - self._done, 0) * each,
            max(self._deadline - self._judge.elapsed_seconds, 0.0),
        )
        return here + self._later


WINNER = "searched"
SHORT = "short factors"
YARN = "yarn"

_NEAR_ONE = 1e-3
"""A magnitude this near 1 leaves the short factors as it was."""

Keep: TypeAlias = Callable[[RopeScaling], None]
"""Called with the best scheme so far, whenever there is a better one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found.

    `short` is what acts up to the original context, None for a model of one face. `holdout`
    compares the winner with YaRN by each fitness, `gate` what the model becomes within its
    original context with what it was. `spent` says whether the budget ended the screening.
    """

    winner: RopeScaling
    short: FrequencyFactors | None
    holdout: tuple[Comparison, ...]
    gate: tuple[Comparison, ...]
    spent: bool


def search(
    plan: SearchPlan,
    rotation: Rotation,
    judge: Judge,
    *,
    keep_short_context: bool,
    keep: Keep | None = None,
) -> Found:
    """Search, or go on where the judge's record ends.

    `keep_short_context` is whether the model can have short factors. Raises BackendError where the
    runtime cannot evaluate, RequestError where the plan cannot be carried out with this model;
    every candidate finished by then is in the record.
    """
    yarn = baselines(rotation)[YARN]
    finals = plan.finals()
    reserve = _seconds_after_screening(
        plan, judge.course("final", finals, planned=1).judge(yarn).seconds
    )
    deadline = math.inf if plan.budget_seconds is None else plan.budget_seconds - reserve
    screening = judge.course(
        "screening",
        plan.screening(),
        planned=plan.candidates,
        later_seconds=reserve,
        deadline_seconds=deadline,
    )
    space = make_space(plan.space, rotation, plan.attention)
    screened = _explore(screening, space, plan, plan.candidates, keep)
    last = judge.course("final", finals, planned=min(plan.finalists, len(screened)))
    judged = [last.judge(candidate.scheme) for candidate in screened[: plan.finalists]]
    winner = min(judged, key=lambda candidate: candidate.loss).scheme
    if keep is not None:
        keep(winner)
    held_out = _compare(
        judge, "holdout", plan.holdout(), {WINNER: winner, YARN: yarn}, against=YARN
    )
    short = _short_factors(plan, rotation, judge, winner) if keep_short_context else None
    now = {WINNER: winner} if short is None else {SHORT: short}
    gate = _compare(
        judge, "gate", plan.gate(rotation), {**now, "unscaled": Unscaled()}, against="unscaled"
    )
    return Found(winner=winner, short=short, holdout=held_out, gate=gate, spent=screening.over)


def _explore(
    course: Course, space: Space, plan: SearchPlan, evaluations: int, keep: Keep | None
) -> list[Candidate]:
    """Let an optimizer ask until it has enough or the course is over. Every candidate that was not
    stopped early, each scheme once, best first."""
    optimizer = make_optimizer(plan.optimizer, space, evaluations=evaluations, seed=plan.seed)
    whole: dict[RopeScaling, Candidate] = {}
    while vectors := optimizer.ask():
        losses: list[float] = []
        for vector in vectors:
            if course.over and whole:
                return _ranked(whole)
            candidate = course.judge(space.scheme(vector), bar=optimizer.bar(losses))
            losses.append(candidate.loss)
            if not candidate.evaluation.stopped:
                whole[candidate.scheme] = candidate
            if keep is not None and course.best is candidate:
                keep(candidate.scheme)
        optimizer.tell(vectors, losses)
    return _ranked(whole)


def _ranked(candidates: Mapping[RopeScaling, Candidate]) -> list[Candidate]:
    return sorted(candidates.values(), key=lambda candidate: candidate.loss)


def _short_factors(
    plan: SearchPlan, rotation: Rotation, judge: Judge, winner: RopeScaling
) -> FrequencyFactors:
    """Factors for contexts up to the original: ones, unless the winner's attention factor, which
    holds for both faces, asks for others."""
    magnitude = rotation.magnitude(winner)
    space = ShortSpace(rotation=rotation, attention_factor=magnitude)
    if abs(magnitude - 1) < _NEAR_ONE:
        return space.scheme(space.seeds()[0])
    evaluations = max(8, plan.candidates // 4)
    course = judge.course(
        "short",
        plan.short(rotation),
        planned=evaluations,
        deadline_seconds=math.inf if plan.budget_seconds is None else plan.budget_seconds,
    )
    best = _explore(course, space, plan, evaluations, keep=None)[0].scheme
    return FrequencyFactors(
        factors=tuple(rotation.relative_factors(best)), attention_factor=magnitude
    )


def _compare(
    judge: Judge,
    stage: Stage,
    fitnesses: tuple[Fitness, ...],
    schemes: Mapping[str, RopeScaling],
    *,
    against: str,
) -> tuple[Comparison, ...]:
    """Every scheme by every fitness, to the end."""
    comparisons = []
    for fitness in fitnesses:
        course = judge.course(stage, fitness, planned=len(schemes))
        found = {name: course.judge(scheme).evaluation for name, scheme in schemes.items()}
        comparisons.append(compare(fitness.name, found, against=against))
    return tuple(comparisons)


def _seconds_after_screening(plan: SearchPlan, seconds_each: float) -> float:
    """An estimate of all that follows, from what judging one scheme at the target takes: the
    finalists, and the holdout of the winner and of YaRN."""
    return seconds_each * (plan.finalists + 2 * plan.holdout_samples / plan.samples)
