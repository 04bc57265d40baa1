"""The search itself: stages over candidates, each recorded as soon as it is judged on a haystack.

    screening: what the optimizer proposes, a race for every generation
    -> finals: a race of the best, the seeds, and the scheme to beat
    -> holdout: what came first against the scheme to beat, unless it lost the finals
    -> the short factors -> the check of short contexts

Everything is a function of the plan and of recorded losses, so a search resumes by running again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.rope.scaling import FrequencyFactors
from ggufrope.search.evaluate import Evaluation, evaluate
from ggufrope.search.holdout import Comparison, Judged, compare, in_whole_prompts, looks, wins
from ggufrope.search.optimizers import make_optimizer
from ggufrope.search.plan import stages_of
from ggufrope.search.race import Standing, race
from ggufrope.search.record import Candidate
from ggufrope.search.schemes import Scheme
from ggufrope.search.spaces import ShortSpace, Space, baselines, make_space, to_beat

if TYPE_CHECKING:
    from ggufrope.patching.rotation import Rotation
    from ggufrope.search.evaluate import Fitness
    from ggufrope.search.plan import SearchPlan, Stage
    from ggufrope.search.record import Record
    from ggufrope.search.rotators import Rotator

WINNER = "searched"
SHORT = "short factors"
_UNSCALED = "unscaled"

_NEAR_ONE = 1e-3
"""An attention factor this near 1 leaves the model as it was in short contexts."""
_GENERATION = (1, 2)
"""Haystacks of the rounds in which a generation races: all of it, then its better half. A haystack
costs a prefill, so it is the finals that ask for many."""
_PER_CANDIDATE = 1.5
"""How many haystacks those are for each candidate."""
_ENDS = {"screening": 0.45, "final": 0.6, "holdout": 0.9, "short-factors": 0.95}
"""The share of the budget after which a stage begins nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress:
    """One more evaluation, the `done`-th of about `planned` of its stage.

    `best` is the least mean loss of the stage so far, None before there is one. `left_seconds` is
    an estimate for this stage and what is known to follow, `least_seconds` one for what is done of
    them even where the budget ends before.
    """

    candidate: Candidate
    done: int
    planned: int
    best: float | None
    elapsed_seconds: float
    left_seconds: float
    least_seconds: float


Watch: TypeAlias = Callable[[SearchProgress], None]
Keep: TypeAlias = Callable[[Scheme], None]
"""Called with the best scheme so far, whenever there is a better one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search ended with.

    `finals` are the standings of the finalists, the winner first and `to_beat` among them.
    `holdout` compares these two by each fitness; it is empty where the winner was not ahead in the
    finals. `won` is whether the winner is better there beyond chance. Where it is, `short` are the
    factors up to the original context, None where the long ones are shared, and `short_context`
    compares what the model becomes within its original context with what it was.
    `budget_exhausted` is whether the budget ended a stage.
    """

    winner: Scheme
    to_beat: Scheme
    finals: tuple[Standing, ...]
    won: bool
    short: FrequencyFactors | None
    holdout: tuple[Comparison, ...]
    short_context: tuple[Comparison, ...]
    budget_exhausted: bool


class Evaluator:
    """Judges candidates, stage after stage.

    What is in the record is not evaluated again. `elapsed_seconds` counts what every candidate
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
        self._tokens = 0
        self.elapsed_seconds = 0.0
        self.budget_exhausted = False

    def begin(
        self,
        stage: Stage,
        *,
        planned: int,
        budget_seconds: float | None = None,
        least_tokens: int = 0,
        later_tokens: int = 0,
    ) -> None:
        """Begin a stage of about `planned` evaluations, in a search with a budget.

        Whatever the budget, the stage evaluates `least_tokens` and what follows it `later_tokens`.
        """
        self._least_tokens = self._tokens + least_tokens
        self._later_tokens = later_tokens
        self._stage = stage
        self._planned = planned
        self._deadline = (
            math.inf if budget_seconds is None else budget_seconds * _ENDS.get(stage.name, 1.0)
        )
        self._budget = math.inf if budget_seconds is None else budget_seconds
        self._done = 0
        self._seconds = 0.0
        self._lower_bounds: dict[tuple[str, int], dict[str, float]] = {}
        self.best: float | None = None

    def is_over(self) -> bool:
        """Return whether the stage has used up its part of the budget."""
        later = self._seconds_of(self._later_tokens)
        over = self.elapsed_seconds >= min(self._deadline, self._budget - later)
        self.budget_exhausted |= over
        return over

    def judge(self, scheme: Scheme, haystack: int, cutoff: float = math.inf) -> Evaluation | None:
        """Judge a scheme on one haystack of the stage; None where there are no more.

        An evaluation stops early where the candidate would stay above `cutoff` even if it were as
        good in each cell to come as the best candidate of the stage.
        """
        return self._judge(self._stage.fitness, scheme, haystack, cutoff)

    def judge_whole(self, scheme: Scheme, haystack: int) -> Evaluation | None:
        """Judge a scheme on one haystack of the stage in whole prompts; None where the stage has
        none."""
        fitness = self._stage.whole
        return None if fitness is None else self._judge(fitness, scheme, haystack, math.inf)

    def _judge(
        self, fitness: Fitness, scheme: Scheme, haystack: int, cutoff: float
    ) -> Evaluation | None:
        bounds = self._lower_bounds.setdefault((fitness.name, haystack), {})
        candidate = self._candidate(fitness, scheme, haystack, cutoff, bounds)
        if candidate is None:
            return None
        self._tokens += fitness.tokens
        self.elapsed_seconds += candidate.seconds
        self._done += 1
        self._seconds += candidate.seconds
        for cell in candidate.evaluation.cells:
            bounds[cell.key] = min(cell.loss, bounds.get(cell.key, math.inf))
        if not candidate.evaluation.stopped:
            self.best = min(candidate.loss, math.inf if self.best is None else self.best)
        if self._watch is not None:
            self._watch(self._progress(candidate))
        return candidate.evaluation

    def _candidate(
        self,
        fitness: Fitness,
        scheme: Scheme,
        haystack: int,
        cutoff: float,
        bounds: Mapping[str, float],
    ) -> Candidate | None:
        """The candidate of a scheme: the recorded one where there is one."""
        name = self._stage.name
        recorded = self._record.find(name, fitness.name, scheme, haystack)
        if recorded is not None:
            return recorded
        evaluation = evaluate(
            scheme, fitness, haystack, self._rotator, cutoff=cutoff, lower_bounds=bounds
        )
        self._unchanged()
        if not evaluation.cells:
            return None
        return self._record.append(name, fitness.name, scheme, haystack, evaluation)

    def _seconds_of(self, tokens: int) -> float:
        """How long so many tokens take, as far as is known."""
        return tokens * self.elapsed_seconds / max(self._tokens, 1)

    def _progress(self, candidate: Candidate) -> SearchProgress:
        left = max(self._planned - self._done, 0) * self._seconds / self._done
        least = self._seconds_of(max(self._least_tokens - self._tokens, 0) + self._later_tokens)
        if self._budget < math.inf:
            after = self._budget - self._deadline
            left = max(min(left, self._deadline - self.elapsed_seconds), 0.0) + after
        return SearchProgress(
            candidate=candidate,
            done=self._done,
            planned=max(self._planned, self._done),
            best=self.best,
            elapsed_seconds=self.elapsed_seconds,
            left_seconds=max(left, least),
            least_seconds=least,
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
    rival_name = to_beat(rotation)
    rival = baselines(rotation)[rival_name]
    space = make_space(plan.space, rotation, plan.attention)
    held_out_tokens = sum(_least_tokens(stage, plan) for stage in stages.holdout)
    final_tokens = (plan.finalists + len(space.seeds())) * stages.final.fitness.tokens
    screened = _explore(
        evaluator,
        stages.screening,
        space,
        plan,
        plan.candidates,
        keep,
        later_tokens=final_tokens + held_out_tokens,
    )
    finalists = _finalists(screened, space, plan, rotation, rival)
    evaluator.begin(
        stages.final,
        planned=2 * len(finalists),
        budget_seconds=plan.budget_seconds,
        least_tokens=(1 + len(finalists)) * stages.final.fitness.tokens,
        later_tokens=held_out_tokens,
    )
    finals = race(
        [rival, *finalists],
        evaluator.judge,
        _doubling(plan.haystacks),
        to_beat=rival,
        is_over=evaluator.is_over,
    )
    best = next(each for each in finals if each.scheme != rival)
    if keep is not None:
        keep(best.scheme)
    ours, theirs = best.against(next(each for each in finals if each.scheme == rival))
    sides = {WINNER: best.scheme, rival_name: rival}
    holdout: tuple[Comparison, ...] = ()
    if ours < theirs:
        holdout = _compare(evaluator, stages.holdout, sides, plan, against=rival_name)
    won = wins(holdout)
    short: FrequencyFactors | None = None
    short_context: tuple[Comparison, ...] = ()
    if won:
        if short_factors:
            short = _short_factors(plan, rotation, evaluator, stages.short_factors, best.scheme)
            sides = {SHORT: Scheme(scaling=short)}
        sides |= {_UNSCALED: baselines(rotation)[_UNSCALED]}
        short_context = _compare(evaluator, stages.short_context, sides, plan, against=_UNSCALED)
    return Outcome(
        winner=best.scheme,
        to_beat=rival,
        finals=(best, *(each for each in finals if each is not best)),
        won=won,
        short=short,
        holdout=holdout,
        short_context=short_context,
        budget_exhausted=evaluator.budget_exhausted,
    )


def _explore(
    evaluator: Evaluator,
    stage: Stage,
    space: Space,
    plan: SearchPlan,
    evaluations: int,
    keep: Keep | None = None,
    *,
    later_tokens: int = 0,
) -> list[Standing]:
    """Race what an optimizer proposes, generation by generation, until it has enough or the stage
    is over. Every candidate that was not stopped early, best first."""
    optimizer = make_optimizer(plan.optimizer, space, evaluations=evaluations, seed=plan.seed)
    vectors = optimizer.ask()
    evaluator.begin(
        stage,
        planned=round(_PER_CANDIDATE * evaluations),
        budget_seconds=plan.budget_seconds,
        least_tokens=len(vectors) * stage.fitness.tokens,
        later_tokens=later_tokens,
    )
    known: dict[Scheme, Standing] = {}
    best: Standing | None = None
    while vectors and not (known and evaluator.is_over()):
        schemes = [space.scheme(vector) for vector in vectors]
        raced = race(
            list(dict.fromkeys(schemes)), evaluator.judge, _GENERATION, is_over=evaluator.is_over
        )
        losses = _in_order(raced)
        optimizer.tell(vectors, [losses[scheme] for scheme in schemes])
        known |= {each.scheme: each for each in raced if not each.stopped}
        if best is None or raced[0].rank < best.rank:
            best = raced[0]
            if keep is not None:
                keep(best.scheme)
        vectors = optimizer.ask()
    return sorted(known.values(), key=lambda each: each.rank)


def _in_order(raced: Sequence[Standing]) -> dict[Scheme, float]:
    """The losses of a race, none smaller than one of those that came before it: what left early was
    judged on fewer haystacks, which may be easy ones."""
    losses, most = {}, -math.inf
    for standing in raced:
        most = max(math.nextafter(most, math.inf), standing.loss)
        losses[standing.scheme] = most
    return losses


def _finalists(
    screened: Sequence[Standing],
    space: Space,
    plan: SearchPlan,
    rotation: Rotation,
    rival: Scheme,
) -> list[Scheme]:
    """The best of the screening, and the seeds, which a search must not fall behind: each rotation
    once, and not that of the rival."""
    seeds = [space.scheme(vector) for vector in space.seeds()]
    found: list[Scheme] = []
    for scheme in (*(each.scheme for each in screened), *seeds):
        if len(found) >= plan.finalists and scheme not in seeds:
            continue
        if not any(scheme.turns_like(other, rotation) for other in (rival, *found)):
            found.append(scheme)
    if not found:
        raise RequestError("nothing was found that differs from the scheme to beat: search wider")
    return found


def _doubling(most: int) -> list[int]:
    """1, 2, 4 and so on, and last `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _short_factors(
    plan: SearchPlan, rotation: Rotation, evaluator: Evaluator, stage: Stage, winner: Scheme
) -> FrequencyFactors:
    """Factors for contexts up to the original: ones, unless the winner's attention factor, which
    acts there too, needs others."""
    magnitude = winner.magnitude(rotation)
    space = ShortSpace(rotation=rotation, attention_factor=magnitude)
    best = space.scheme(space.seeds()[0])
    if abs(magnitude - 1) >= _NEAR_ONE:
        best = _explore(evaluator, stage, space, plan, max(8, plan.candidates // 4))[0].scheme
    return FrequencyFactors(factors=best.factors(rotation), attention_factor=magnitude)


def _least_tokens(stage: Stage, plan: SearchPlan) -> int:
    """About how many tokens two schemes take up to the first look at a comparison."""
    first = looks(plan.holdout_haystacks)[0].haystacks
    whole = 0 if stage.whole is None else sum(map(in_whole_prompts, range(first)))
    asked = first * stage.fitness.tokens
    return 2 * (asked + whole * (stage.whole.tokens if stage.whole else 0))


def _compare(
    evaluator: Evaluator,
    stages: tuple[Stage, ...],
    schemes: Mapping[str, Scheme],
    plan: SearchPlan,
    *,
    against: str,
) -> tuple[Comparison, ...]:
    """Judge every scheme by every fitness on more and more haystacks, until the difference of the
    first is shown."""
    comparisons = []
    for stage in stages:
        evaluator.begin(
            stage,
            planned=len(schemes) * plan.holdout_haystacks,
            budget_seconds=plan.budget_seconds,
            least_tokens=_least_tokens(stage, plan),
        )
        comparisons.append(_look(evaluator, stage, schemes, plan.holdout_haystacks, against))
    return tuple(comparisons)


def _look(
    evaluator: Evaluator, stage: Stage, schemes: Mapping[str, Scheme], most: int, against: str
) -> Comparison:
    judged = {name: Judged(evaluations=[], whole={}) for name in schemes}
    first, *later = looks(most)
    _judge_up_to(first.haystacks, judged, schemes, evaluator, always=True)
    found = compare(stage.fitness.name, judged, against=against, error=first.error)
    for look in later:
        if found.verdict != "undecided":
            break
        if not _judge_up_to(look.haystacks, judged, schemes, evaluator):
            break
        found = compare(stage.fitness.name, judged, against=against, error=look.error)
    return found


def _judge_up_to(
    haystacks: int,
    judged: Mapping[str, Judged],
    schemes: Mapping[str, Scheme],
    evaluator: Evaluator,
    *,
    always: bool = False,
) -> bool:
    """Judge every scheme on as many haystacks; return whether it came to the end, which it does
    `always` unless there are no more haystacks."""
    for haystack in range(len(next(iter(judged.values())).evaluations), haystacks):
        if not always and evaluator.is_over():
            return False
        for name, scheme in schemes.items():
            found = evaluator.judge(scheme, haystack)
            if found is None:  # for the first of them already
                return False
            judged[name].evaluations.append(found)
            if in_whole_prompts(haystack):
                whole = evaluator.judge_whole(scheme, haystack)
                if whole is not None:
                    judged[name].whole[haystack] = whole
    return True
