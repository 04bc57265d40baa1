"""The search itself: stages over candidates, each recorded as it is judged.

    YaRN at the target -> screening by the optimiser -> finalists at the target
    -> winner and YaRN on the holdout -> the short face -> the gate of short contexts

Everything is a function of the plan and of recorded losses, so a search resumes by running again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.rope import FrequencyFactors, RopeScaling, Unscaled
from ggufrope.search.holdout import Comparison, compare
from ggufrope.search.optimisers import make_optimiser
from ggufrope.search.rotation import Rotation, baselines
from ggufrope.search.spaces import ShortSpace, Space, make_space

if TYPE_CHECKING:
    from ggufrope.search.fitness import Fitness
    from ggufrope.search.judge import Course, Judge
    from ggufrope.search.plan import SearchPlan
    from ggufrope.search.record import Candidate, Stage

WINNER = "searched"
SHORT = "short face"
YARN = "yarn"

_NEAR_ONE = 1e-3
"""A magnitude this near 1 leaves the short face as it was."""

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
    two_faced: bool,
    keep: Keep | None = None,
) -> Found:
    """Search, or go on where the judge's record ends.

    `two_faced` is whether the model can have short factors. Raises RuntimeFailure where the
    runtime cannot evaluate, WishError where the plan cannot be carried out with this model; every
    candidate finished by then is in the record.
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
    short = _short_face(plan, rotation, judge, winner) if two_faced else None
    now = {WINNER: winner} if short is None else {SHORT: short}
    gate = _compare(
        judge, "gate", plan.gate(rotation), {**now, "unscaled": Unscaled()}, against="unscaled"
    )
    return Found(winner=winner, short=short, holdout=held_out, gate=gate, spent=screening.over)


def _explore(
    course: Course, space: Space, plan: SearchPlan, evaluations: int, keep: Keep | None
) -> list[Candidate]:
    """Let an optimiser ask until it has enough or the course is over. Every candidate that was not
    stopped early, each scheme once, best first."""
    optimiser = make_optimiser(plan.optimiser, space, evaluations=evaluations, seed=plan.seed)
    whole: dict[RopeScaling, Candidate] = {}
    while vectors := optimiser.ask():
        losses: list[float] = []
        for vector in vectors:
            if course.over and whole:
                return _ranked(whole)
            candidate = course.judge(space.scheme(vector), bar=optimiser.bar(losses))
            losses.append(candidate.loss)
            if not candidate.evaluation.stopped:
                whole[candidate.scheme] = candidate
            if keep is not None and course.best is candidate:
                keep(candidate.scheme)
        optimiser.tell(vectors, losses)
    return _ranked(whole)


def _ranked(candidates: Mapping[RopeScaling, Candidate]) -> list[Candidate]:
    return sorted(candidates.values(), key=lambda candidate: candidate.loss)


def _short_face(
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
