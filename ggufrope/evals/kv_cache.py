"""What a K/V cache costs and how fast it is: bytes per token, prefill and decode speed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median
from time import perf_counter

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.haystack import Filler, sentences, weave
from ggufrope.evals.trunk import Trunk
from ggufrope.evals.types import Score
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext, Progress

_WARM_UP_TOKENS = 32
_TICK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """In a context of `n_ctx` tokens, `prefill` tokens are evaluated together and then `decode`
    one by one.

    Raises RequestError where they do not fit.
    """

    n_ctx: int
    prefill: int = 2048
    decode: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prefill < 2 * _WARM_UP_TOKENS or self.decode < 1:
            raise RequestError(
                f"to time a cache takes at least {2 * _WARM_UP_TOKENS} tokens of prefill and one "
                f"of decode, got {self.prefill} and {self.decode}"
            )
        if self.prefill + self.decode > self.n_ctx:
            raise RequestError(
                f"{self.prefill} + {self.decode} tokens do not fit a context of {self.n_ctx}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheResult:
    """Speeds in tokens per second; `bytes_per_token` as allocated, `rotated` whether K or V are
    rotated before they are stored, both None where the runtime does not tell. `decode_speed` is
    that of the median token, which a busy moment does not change. `score` is the prefill speed."""

    key: str
    n_ctx: int
    bytes_per_token: float | None
    rotated: bool | None
    prefill_speed: float | None
    decode_speed: float | None
    score: Score


@dataclass(frozen=True, slots=True)
class CacheTask:
    """A CachePlan as a task of one cell; `clock` counts seconds."""

    plan: CachePlan
    clock: Callable[[], float] = perf_counter

    @property
    def name(self) -> str:
        return "cache"

    @property
    def key(self) -> str:
        return str(self.plan.n_ctx)

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens a run will evaluate, warming up included."""
        plan = self.plan
        return 0 if self.key in done else _WARM_UP_TOKENS + plan.prefill + plan.decode

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[CacheResult]:
        """The one result."""
        if self.key in done:
            return
        tokens = _text(model, self.plan)
        with Trunk(open_context, self.plan.n_ctx) as trunk:
            try:
                result = self._measured(trunk.move_to(()), tokens, progress)
            except BackendError as failure:
                result = CacheResult(
                    key=self.key,
                    n_ctx=self.plan.n_ctx,
                    bytes_per_token=None,
                    rotated=None,
                    prefill_speed=None,
                    decode_speed=None,
                    score=Score(value=None, reason=str(failure)),
                )
            yield result

    def _measured(
        self, context: LanguageContext, tokens: list[int], progress: Progress | None
    ) -> CacheResult:
        size = context.cache_bytes
        context.extend(tokens[:_WARM_UP_TOKENS], progress=progress)
        context.rewind(0)
        together, alone = tokens[: self.plan.prefill], tokens[self.plan.prefill :]
        times = [self.clock()]
        # The last logits are waited for: a device may still be at work when `extend` returns.
        context.extend(together[:-1], progress=progress)
        for token in (together[-1], *alone):
            for _ in context.logits([token], progress=progress):
                pass
            times.append(self.clock())
        first, *others = (max(after - before, _TICK) for before, after in pairwise(times))
        prefill = len(together) / first
        return CacheResult(
            key=self.key,
            n_ctx=self.plan.n_ctx,
            bytes_per_token=None if size is None else size / context.n_ctx,
            rotated=context.cache_rotated,
            prefill_speed=prefill,
            decode_speed=1 / median(others),
            score=Score(value=prefill),
        )


def _text(model: LanguageModel, plan: CachePlan) -> list[int]:
    """Prose of exactly the tokens needed."""
    filler = Filler(model, sentences("essay", Random(f"{plan.seed}/cache"), None))
    wanted = plan.prefill + plan.decode
    room = wanted
    while len(tokens := weave(filler, (), room).tokens) < wanted:
        room += wanted
    return list(tokens[:wanted])
