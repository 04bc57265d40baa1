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

_HELD_OUT = 1_000_003
"""Added to the seed: the holdout has haystacks and needles that no other stage has."""
_CHOICES = {
    "space": SpaceName,
    "attention": Attention,
    "fitness": FitnessName,
    "optimizer": OptimizerName,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search for `target_context` tokens, from a seed.

    Up to `candidates` are screened on `screening_samples` samples of `screening_context` tokens
    (None: the target); the best `finalists` of them, and YaRN, are judged on
    `samples` samples at the target. `budget_seconds` ends the screening early enough for the rest.
    The winner is measured against YaRN on `holdout_samples` others. A sample is a haystack with
    needles at `depths` percent, or a chunk of `text` (None: Python's help topics). Unless
    `shared_factors`, the model keeps separate short factors up to its original context, which are
    searched for where the attention factor would harm it there.

    Raises RequestError where the numbers make no sense.
    """

    target_context: int
    original_context: int | None = None
    space: SpaceName = "longrope"
    attention: Attention = "free"
    fitness: FitnessName = "needle"
    optimizer: OptimizerName = "cma"
    candidates: int = 200
    finalists: int = 5
    samples: int = 4
    screening_samples: int = 2
    screening_context: int | None = None
    holdout_samples: int = 16
    depths: tuple[float, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
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
        for name in ("samples", "screening_samples", "finalists"):
            if getattr(self, name) < 1:
                yield f"`{name}` must be at least 1, got {getattr(self, name)}"
        if self.holdout_samples < 2:
            yield f"`holdout_samples` must be at least 2, got {self.holdout_samples}"
        if self.candidates < 8:
            yield f"`candidates` must be at least 8, got {self.candidates}"
        screening = self.screening_context
        if screening is not None and not 4 <= screening <= self.target_context:
            yield (
                f"`screening_context` must be from 4 to `target_context` {self.target_context} "
                f"tokens, got {screening}"
            )
        budget = self.budget_seconds
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            yield f"`budget_seconds` must be a finite number above 0, got {budget:g}"


StageName: TypeAlias = Literal["screening", "final", "short-factors", "holdout", "short-context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a search in which candidates are judged by one fitness."""

    name: StageName
    fitness: Fitness


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The five stages of a search.

    `screening` is cheap: short, on few samples. `final` is at the target; `short_factors` within
    the original context. The samples of `holdout`, at the target, and of `short_context`, within
    the original one, are seen in no other stage; these two have one entry per fitness.
    """

    screening: Stage
    final: Stage
    short_factors: Stage
    holdout: tuple[Stage, ...]
    short_context: tuple[Stage, ...]


def stages_of(plan: SearchPlan, rotation: Rotation) -> Stages:
    """Return the stages of a search on the model of `rotation`."""
    target = (plan.target_context,)
    short = (rotation.original_context // 2, rotation.original_context)
    screening = (plan.screening_context or plan.target_context,)
    return Stages(
        screening=Stage(
            name="screening", fitness=_fitness(plan, screening, plan.screening_samples)
        ),
        final=Stage(name="final", fitness=_fitness(plan, target, plan.samples)),
        short_factors=Stage(name="short-factors", fitness=_fitness(plan, short, plan.samples)),
        holdout=_held_out(plan, "holdout", target),
        short_context=_held_out(plan, "short-context", short),
    )


def _fitness(plan: SearchPlan, lengths: tuple[int, ...], samples: int) -> Fitness:
    if plan.fitness == "perplexity":
        return _perplexity(plan, lengths[-1], samples, held_out=False)
    return _needle(plan, lengths, samples, plan.seed)


def _held_out(plan: SearchPlan, name: StageName, lengths: tuple[int, ...]) -> tuple[Stage, ...]:
    samples, seed = plan.holdout_samples, plan.seed + _HELD_OUT
    needle = Stage(name=name, fitness=_needle(plan, lengths, samples, seed, method="whole"))
    if plan.fitness == "needle" and plan.text is None:
        return (needle,)
    perplexity = _perplexity(plan, lengths[-1], samples, held_out=True)
    return (needle, Stage(name=name, fitness=perplexity))


def _needle(
    plan: SearchPlan,
    lengths: tuple[int, ...],
    samples: int,
    seed: int,
    *,
    method: Method = "spliced",
) -> NeedleFitness:
    grid = NeedlePlan(lengths=lengths, depths=plan.depths, samples=samples, seed=seed)
    return NeedleFitness(grid, method)


def _perplexity(
    plan: SearchPlan, length: int, samples: int, *, held_out: bool
) -> PerplexityFitness:
    """Chunks of the first half of the text for the search, of the second for the holdout."""
    text = plan.text or reference_text()
    middle = len(text.content) // 2
    half = text.content[middle:] if held_out else text.content[:middle]
    part = Text(source=f"{'second' if held_out else 'first'} half of {text.source}", content=half)
    return PerplexityFitness(PerplexityPlan(n_ctx=length, text=part, chunks=samples))
