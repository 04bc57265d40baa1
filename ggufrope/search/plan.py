"""What a search is asked for, and the fitness of each of its stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from ggufrope.errors import RequestError
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan
from ggufrope.evals.texts import Text, reference_text
from ggufrope.search.evaluate import Fitness, FitnessName, NeedleFitness, PerplexityFitness
from ggufrope.search.optimizers import OptimizerName
from ggufrope.search.spaces import Attention, Rotation, SpaceName

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELD_OUT = 1_000_003
"""Added to the seed: the holdout's haystacks and needles are none of the search's."""
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
    needles at `depths` percent, or a chunk of `text` (None: Python's help topics). With
    `keep_short_context` the model keeps factors of its own up to its original context, which are
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
    keep_short_context: bool = True

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                yield (
                    f"unknown {name} {getattr(self, name)!r}: "
                    f"expected one of {', '.join(get_args(kind))}"
                )
        for name in ("samples", "screening_samples", "finalists"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        if self.holdout_samples < 2:
            yield f"holdout_samples must be at least 2 for an interval, got {self.holdout_samples}"
        if self.candidates < 8:
            yield f"{self.candidates} candidates are too few to search with: 8 or more"
        screening = self.screening_context
        if screening is not None and not 4 <= screening <= self.target_context:
            yield (
                f"screening at {screening} tokens makes no sense for a target of "
                f"{self.target_context}"
            )
        budget = self.budget_seconds
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            yield f"the budget of {budget:g} seconds must be a finite number above 0"

    def screening(self) -> Fitness:
        """Cheap: short, few samples."""
        length = self.screening_context or self.target_context
        return self._fitness((length,), self.screening_samples)

    def finals(self) -> Fitness:
        """At the full target."""
        return self._fitness((self.target_context,), self.samples)

    def short(self, rotation: Rotation) -> Fitness:
        """Within the original context, for the short factors."""
        return self._fitness(_short_lengths(rotation), self.samples)

    def holdout(self) -> tuple[Fitness, ...]:
        """At the target, on samples no candidate was judged by."""
        return self._held_out((self.target_context,))

    def gate(self, rotation: Rotation) -> tuple[Fitness, ...]:
        """Within the original context, on samples no candidate was judged by."""
        return self._held_out(_short_lengths(rotation))

    def _fitness(self, lengths: tuple[int, ...], samples: int) -> Fitness:
        if self.fitness == "perplexity":
            return self._perplexity(lengths[-1], samples, held_out=False)
        return self._needle(lengths, samples, self.seed)

    def _held_out(self, lengths: tuple[int, ...]) -> tuple[Fitness, ...]:
        samples, seed = self.holdout_samples, self.seed + _HELD_OUT
        needle = self._needle(lengths, samples, seed)
        if self.fitness == "needle" and self.text is None:
            return (needle,)
        return (needle, self._perplexity(lengths[-1], samples, held_out=True))

    def _needle(self, lengths: tuple[int, ...], samples: int, seed: int) -> NeedleFitness:
        return NeedleFitness(
            NeedlePlan(
                lengths=lengths, depths=self.depths, samples=samples, seed=seed, distractors=0
            )
        )

    def _perplexity(self, length: int, samples: int, *, held_out: bool) -> PerplexityFitness:
        """Chunks of the first half of the text for the search, of the second for the holdout."""
        text = self.text or reference_text()
        middle = len(text.content) // 2
        half = text.content[middle:] if held_out else text.content[:middle]
        part = Text(
            source=f"{'second' if held_out else 'first'} half of {text.source}", content=half
        )
        return PerplexityFitness(PerplexityPlan(n_ctx=length, text=part, chunks=samples))


def _short_lengths(rotation: Rotation) -> tuple[int, ...]:
    original = rotation.original_context
    return (original // 2, original)
