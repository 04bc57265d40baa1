"""K and V cache types side by side: what they cost, how fast they are, and what they lose.

Every pair is measured like f16/f16, the base: cost and speed, recall of the same needles, and the
divergence from the base on the same text. A pair that this build cannot run is a row with the
reason; one that runs far slower than the base is flagged, for some builds fall back to a slow path
without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ggufrope.errors import WishError
from ggufrope.evals.cache import CachePlan, CacheResult, CacheTask
from ggufrope.evals.divergence import (
    Divergence,
    DivergencePlan,
    DivergenceResult,
    DivergenceTask,
)
from ggufrope.evals.needle import NeedleResult, NeedleTask, Recall, recall
from ggufrope.evals.needle_plan import NeedlePlan
from ggufrope.evals.protocol import LanguageModel, Progress
from ggufrope.evals.types import OpenContext, Score, keys_of

Part: TypeAlias = Literal["cache", "needle", "divergence"]
SLOW = 0.5
"""Below this share of the base's speed a pair is flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPair:
    """Types of the K and V cache by their ggml names."""

    k: str
    v: str

    def __str__(self) -> str:
        return self.k if self.k == self.v else f"{self.k}/{self.v}"


BASE = KvPair(k="f16", v="f16")
OpenPair: TypeAlias = Callable[[KvPair], OpenContext]
"""How contexts with such a cache are opened, everything else equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMatrixPlan:
    """Which pairs, and what is measured of each; the base is added where it is missing.

    Raises WishError where there is no pair or one comes twice.
    """

    pairs: tuple[KvPair, ...]
    cache: CachePlan
    needle: NeedlePlan | None = None
    divergence: DivergencePlan | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise WishError("the K/V matrix needs at least one pair of cache types")
        if len(set(self.pairs)) < len(self.pairs):
            raise WishError(f"a pair comes twice in {', '.join(map(str, self.pairs))}")

    @property
    def all_pairs(self) -> tuple[KvPair, ...]:
        """The base, then the others as given."""
        return (BASE, *(pair for pair in self.pairs if pair != BASE))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvResult:
    """One result of one pair."""

    pair: KvPair
    part: Part
    result: CacheResult | NeedleResult | DivergenceResult

    @property
    def key(self) -> str:
        return f"{self.pair}/{self.part}/{self.result.key}"

    @property
    def score(self) -> Score:
        return self.result.score


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRow:
    """A pair in the matrix. What is None was not measured, or not possible for `reason`; `flags`
    say what to be wary of."""

    pair: KvPair
    cache: CacheResult | None
    recall: Recall | None
    divergence: Divergence | None
    reason: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KvMatrixTask:
    """A KvMatrixPlan as a task; `run` opens its contexts by `open_pair` alone."""

    plan: KvMatrixPlan
    open_pair: OpenPair

    @property
    def name(self) -> str:
        return "kv"

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens a run will evaluate if every pair can be run."""
        return sum(
            task.planned_tokens(model, done=keys_of(f"{pair}/{part}", done))
            for pair, part, task in self._tasks()
        )

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext | None = None,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[KvResult]:
        """Results pair by pair, the base first. `open_context` is not used."""
        for pair, part, task in self._tasks():
            results: Iterator[CacheResult | NeedleResult | DivergenceResult] = task.run(
                model,
                self.open_pair(pair),
                done=keys_of(f"{pair}/{part}", done),
                progress=progress,
            )
            for result in results:
                yield KvResult(pair=pair, part=part, result=result)

    def _tasks(self) -> Iterator[tuple[KvPair, Part, CacheTask | NeedleTask | DivergenceTask]]:
        plan = self.plan
        for pair in plan.all_pairs:
            yield pair, "cache", CacheTask(plan.cache)
            if plan.needle is not None:
                yield pair, "needle", NeedleTask(plan.needle)
            if plan.divergence is not None and pair != BASE:
                yield pair, "divergence", DivergenceTask(plan.divergence, self.open_pair(BASE))


def kv_rows(results: Iterable[KvResult], *, slow: float = SLOW) -> tuple[KvRow, ...]:
    """The matrix, a row a pair in the order they come."""
    by_pair: dict[KvPair, list[KvResult]] = {}
    for result in results:
        by_pair.setdefault(result.pair, []).append(result)
    base = _cache(by_pair.get(BASE, []))
    return tuple(_row(pair, found, base, slow) for pair, found in by_pair.items())


def _row(pair: KvPair, found: list[KvResult], base: CacheResult | None, slow: float) -> KvRow:
    cache = _cache(found)
    needles = [r.result for r in found if isinstance(r.result, NeedleResult)]
    divergences = [r.result for r in found if isinstance(r.result, DivergenceResult)]
    unscored = [r.score.reason for r in found if r.score.value is None]
    return KvRow(
        pair=pair,
        cache=cache,
        recall=recall(needles) if needles else None,
        divergence=divergences[0].measured if divergences else None,
        reason=unscored[0] if unscored else "",
        flags=tuple(_flags(cache, base, slow)),
    )


def _cache(found: list[KvResult]) -> CacheResult | None:
    return next((r.result for r in found if isinstance(r.result, CacheResult)), None)


def _flags(cache: CacheResult | None, base: CacheResult | None, slow: float) -> Iterator[str]:
    if cache is None or base is None:
        return
    speeds = (
        ("prefill", cache.prefill_speed, base.prefill_speed),
        ("decode", cache.decode_speed, base.decode_speed),
    )
    for word, speed, reference in speeds:
        if speed is not None and reference is not None and speed < slow * reference:
            yield (
                f"{word} at {speed:.3g} tokens/s is {speed / reference:.2f} of {BASE}'s: perhaps "
                "this build has no fast way with this pair"
            )
