"""A search as values: the plan of it, and the stages that it goes through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ggufrope.errors import RequestError
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan
from ggufrope.evals.results import Method
from ggufrope.evals.texts import Text, reference_text
from ggufrope.search.evaluate import Fitness, FitnessName, NeedleFitness, PerplexityFitness
from ggufrope.search.optimizers import OptimizerName
from ggufrope.search.spaces import Attention, SpaceName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.patching.rotation import Rotation

StageName: TypeAlias = Literal["screening", "final", "short-factors", "holdout", "short-context"]

_SEED_STEP = 1_000_003
"""Between the seeds of two stages: no haystack or needle of one is seen in another."""
_CHOICES = {
    "space": SpaceName,
    "attention": Attention,
    "fitness": FitnessName,
    "optimizer": OptimizerName,
}
_AT_LEAST = {
    "samples": 1,
    "screening_samples": 1,
    "finalists": 1,
    "haystacks": 1,
    "holdout_haystacks": 2,
    "candidates": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search for `target_context` tokens, from a seed.

    Up to `candidates` are screened in haystacks of `screening_context` tokens (None: the target),
    with `screening_samples` needles at each of `depths` percent. The best `finalists` of them, the
    seeds of the space and the scheme to beat then race at the target on other haystacks with
    `samples` needles at each depth, up to `haystacks` of them. What comes first is compared with
    the scheme to beat on up to `holdout_haystacks` others. For perplexity it is chunks of `text`
    (None: Python's help topics), as many to what is a haystack elsewhere.

    `budget_seconds` ends screening, finals and holdout early enough for what follows. With a
    `short_weight` above 0, candidates are judged by that share in the original context, and by the
    rest at the target. Unless `shared_factors` or a weight is given, a model whose architecture has
    them keeps separate short factors up to its original context, which are searched for where the
    attention factor would harm it there.

    Raises RequestError where the numbers make no sense.
    """

    target_context: int
    original_context: int | None = None
    space: SpaceName = "yarn"
    attention: Attention = "free"
    fitness: FitnessName = "needle"
    optimizer: OptimizerName = "cma"
    candidates: int = 200
    finalists: int = 5
    samples: int = 4
    haystacks: int = 8
    screening_samples: int = 4
    screening_context: int | None = None
    holdout_haystacks: int = 16
    depths: tuple[float, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    short_weight: float = 0.0
    seed: int = 0
    budget_seconds: float | None = None
    text: Text | None = None
    shared_factors: bool = False

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                yield (
                    f"unknown `{name}` {getattr(self, name)!r}: "
                    f"expected one of {', '.join(get_args(kind))}"
                )
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                yield f"`{name}` must be at least {least}, got {getattr(self, name)}"
        screening = self.screening_context
        if screening is not None and not 4 <= screening <= self.target_context:
            yield (
                f"`screening_context` must be from 4 to `target_context` {self.target_context} "
                f"tokens, got {screening}"
            )
        if not 0 <= self.short_weight < 1:
            yield f"`short_weight` must be from 0 to below 1, got {self.short_weight:g}"
        budget = self.budget_seconds
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            yield f"`budget_seconds` must be a finite number above 0, got {budget:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a search in which candidates are judged by one fitness. `whole` asks some of the
    same needles in whole prompts."""

    name: StageName
    fitness: Fitness
    whole: Fitness | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The five stages of a search.

    `screening` may be shorter than the target. `final` is at the target; `short_factors` within the
    original context. No haystack is in two stages. `holdout`, at the target, and `short_context`,
    within the original one, have one entry per fitness.
    """

    screening: Stage
    final: Stage
    short_factors: Stage
    holdout: tuple[Stage, ...]
    short_context: tuple[Stage, ...]


def stages_of(plan: SearchPlan, rotation: Rotation) -> Stages:
    """Return the stages of a search on the model of `rotation`."""
    target, original = plan.target_context, rotation.original_context
    short = min(target, original)
    within = dict.fromkeys((short // 2, short), 1.0)
    return Stages(
        screening=_judging(plan, "screening", _objective(plan, rotation, screening=True)),
        final=_judging(plan, "final", _objective(plan, rotation, screening=False)),
        short_factors=_judging(plan, "short-factors", within),
        holdout=_held_out(plan, "holdout", {target: 1.0}),
        short_context=_held_out(plan, "short-context", within),
    )


def _objective(plan: SearchPlan, rotation: Rotation, *, screening: bool) -> dict[int, float]:
    """The lengths that candidates are judged at, each with its weight."""
    longest = (plan.screening_context if screening else None) or plan.target_context
    weights = {longest: 1.0}
    if plan.short_weight and rotation.original_context < longest:
        weights = {rotation.original_context: plan.short_weight, longest: 1 - plan.short_weight}
    return weights


def _judging(plan: SearchPlan, name: StageName, weights: dict[int, float]) -> Stage:
    samples = plan.screening_samples if name == "screening" else plan.samples
    if plan.fitness == "perplexity":
        return Stage(name=name, fitness=_perplexity(plan, weights, samples, held_out=False))
    return Stage(name=name, fitness=_needle(plan, name, weights, samples, method="spliced"))


def _held_out(plan: SearchPlan, name: StageName, weights: dict[int, float]) -> tuple[Stage, ...]:
    """By needles, and by the text where that is what candidates are judged by."""
    needle = Stage(
        name=name,
        fitness=_needle(plan, name, weights, plan.samples, method="spliced"),
        whole=_needle(plan, name, weights, 1, method="whole"),
    )
    if plan.fitness == "needle" and plan.text is None:
        return (needle,)
    longest = {max(weights): 1.0}
    return (needle, Stage(name=name, fitness=_perplexity(plan, longest, 1, held_out=True)))


def _needle(
    plan: SearchPlan, name: StageName, weights: dict[int, float], samples: int, *, method: Method
) -> NeedleFitness:
    grid = NeedlePlan(
        lengths=tuple(weights),
        depths=plan.depths,
        samples=samples,
        seed=plan.seed + _SEED_STEP * get_args(StageName).index(name),
    )
    return NeedleFitness(plan=grid, method=method, weights=weights)


def _perplexity(
    plan: SearchPlan, weights: dict[int, float], chunks: int, *, held_out: bool
) -> PerplexityFitness:
    """Chunks of the first half of the text for the search, of the second for the holdout."""
    text = plan.text or reference_text()
    middle = len(text.content) // 2
    half = text.content[middle:] if held_out else text.content[:middle]
    part = Text(source=f"{'second' if held_out else 'first'} half of {text.source}", content=half)
    plans = tuple(PerplexityPlan(n_ctx=n, text=part, chunks=chunks) for n in sorted(weights))
    return PerplexityFitness(plans=plans, weights=weights)
