"""The gate that reaching further must pass: no worse than the original within its own context.

The variant is held against the base, its settings untouched, in three ways: the divergence and the
paired loss on a text, and recall of the same needles by both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.divergence import Divergence, DivergencePlan, DivergenceResult, DivergenceTask
from ggufrope.evals.needle import NeedleResult, NeedleTask, Recall, recall
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.types import Score, keys_of
from ggufrope.lm import LanguageModel, OpenContext, Progress

Part: TypeAlias = Literal["divergence", "base", "variant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortContextPlan:
    """What is compared within `original_context`, the tokens the model was made for.

    Raises RequestError where either part goes beyond it.
    """

    original_context: int
    divergence: DivergencePlan
    needle: NeedlePlan

    def __post_init__(self) -> None:
        longest = max(self.divergence.n_ctx, *self.needle.all_lengths)
        if longest > self.original_context:
            raise RequestError(
                f"a short-context check of {longest} tokens goes beyond the original context of "
                f"{self.original_context}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortContextResult:
    """The divergence, or a needle found or not by the base or the variant."""

    part: Part
    result: DivergenceResult | NeedleResult

    @property
    def key(self) -> str:
        return f"{self.part}/{self.result.key}"

    @property
    def score(self) -> Score:
        return self.result.score


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortContext:
    """All of it taken together; `divergence` is None where it has no score."""

    divergence: Divergence | None
    base: Recall
    variant: Recall


@dataclass(frozen=True, slots=True)
class ShortContextTask:
    """A ShortContextPlan as a task: `open_base` opens the original, `run` is given the variant."""

    plan: ShortContextPlan
    open_base: OpenContext

    @property
    def name(self) -> str:
        return "short-context"

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens all contexts will evaluate. Raises RequestError as its parts do."""
        needle = NeedleTask(self.plan.needle)
        return self._divergence.planned_tokens(model, done=keys_of("divergence", done)) + sum(
            needle.planned_tokens(model, done=keys_of(part, done)) for part in ("base", "variant")
        )

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[ShortContextResult]:
        """The divergence first, then the base's needles and the variant's."""
        needle = NeedleTask(self.plan.needle)
        parts: tuple[tuple[Part, DivergenceTask | NeedleTask, OpenContext], ...] = (
            ("divergence", self._divergence, open_context),
            ("base", needle, self.open_base),
            ("variant", needle, open_context),
        )
        for part, task, opener in parts:
            for result in task.run(model, opener, done=keys_of(part, done), progress=progress):
                yield ShortContextResult(part=part, result=result)

    @property
    def _divergence(self) -> DivergenceTask:
        return DivergenceTask(self.plan.divergence, self.open_base)


def short_context(results: Iterable[ShortContextResult]) -> ShortContext:
    """Sum up the results of a plan."""
    every = tuple(results)
    divergence = [r.result.measured for r in every if isinstance(r.result, DivergenceResult)]
    needles = [(r.part, r.result) for r in every if isinstance(r.result, NeedleResult)]
    return ShortContext(
        divergence=divergence[0] if divergence else None,
        base=recall(result for part, result in needles if part == "base"),
        variant=recall(result for part, result in needles if part == "variant"),
    )
