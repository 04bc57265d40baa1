"""The K/V matrix on fake caches: pairs that lose, pairs that crawl, pairs that cannot be."""

from __future__ import annotations

import pytest

from ggufrope.errors import CacheTypeError, WishError
from ggufrope.evals.cache import CachePlan, CacheTask
from ggufrope.evals.divergence import DivergencePlan
from ggufrope.evals.kvmatrix import BASE, KvMatrixPlan, KvMatrixTask, KvPair, KvResult, kv_rows
from ggufrope.evals.needle_plan import NeedlePlan
from ggufrope.evals.protocol import LanguageContext
from ggufrope.evals.types import OpenContext
from ggufrope.runtime.fake import FakeContext, FakeModel
from tests.evals.bench import Bench, refusing
from tests.evals.test_perplexity import TEXT

Q8 = KvPair(k="q8_0", v="q8_0")
Q4 = KvPair(k="q8_0", v="q4_0")
CACHE = CachePlan(n_ctx=256, prefill=200, decode=4)
PLAN = KvMatrixPlan(
    pairs=(Q8, Q4),
    cache=CACHE,
    needle=NeedlePlan(lengths=(256,), depths=(0, 50, 100)),
    divergence=DivergencePlan(n_ctx=64, text=TEXT),
)


def open_pair(pair: KvPair) -> OpenContext:
    """The q8_0 pair loses what is far back, and there is no q4_0."""
    if pair == Q4:

        def refuse(n_ctx: int) -> LanguageContext:
            raise CacheTypeError("V q4_0 needs flash attention")

        return refuse
    model = FakeModel(horizon=100 if pair == Q8 else None)
    return lambda n_ctx: FakeContext(model, n_ctx=n_ctx)


def test_the_matrix() -> None:
    results = Bench().run(KvMatrixTask(PLAN, lambda pair: open_pair(Q8 if pair == Q4 else pair)))
    assert [r.key for r in results if r.part != "needle"] == [
        "f16/cache/256",
        "q8_0/cache/256",
        "q8_0/divergence/64",
        "q8_0/q4_0/cache/256",
        "q8_0/q4_0/divergence/64",
    ]
    base, lossy, _ = kv_rows(results)
    assert base.pair == BASE
    assert base.divergence is None
    assert base.recall is not None
    assert lossy.recall is not None
    assert base.recall.exact.value == 1
    assert lossy.recall.exact.value == pytest.approx(1 / 3)
    assert lossy.divergence is not None
    assert lossy.divergence.tokens == 9 * 31


def test_a_pair_that_cannot_be_is_a_row_with_the_reason() -> None:
    results = list(KvMatrixTask(PLAN, open_pair).run(FakeModel()))
    *_, impossible = kv_rows(results)
    assert impossible.pair == Q4
    assert impossible.reason == "V q4_0 needs flash attention"
    assert impossible.recall is not None
    assert impossible.recall.exact.n == 0
    assert impossible.divergence is None


def test_finished_parts_are_not_measured_again() -> None:
    task = KvMatrixTask(PLAN, lambda pair: open_pair(BASE))
    whole = [result.key for result in task.run(FakeModel())]
    for stored in (1, 2, 6, len(whole)):
        rest = [result.key for result in task.run(FakeModel(), done=set(whole[:stored]))]
        assert rest == whole[stored:]
    assert task.planned_tokens(FakeModel(), done=set(whole)) == 0


class Ticking:
    """Seconds that pass with every look at the clock."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter((0.0, *seconds))

    def __call__(self) -> float:
        return next(self._seconds)


def test_speeds_are_tokens_over_seconds() -> None:
    bench = Bench()
    (result,) = bench.run(CacheTask(CACHE, clock=Ticking(2.0, 2.5, 3.0, 9.0, 9.5)))
    assert result.prefill_speed == result.score.value == 100
    assert result.decode_speed == 2
    assert result.bytes_per_token is None


def test_bytes_per_token_are_as_allocated() -> None:
    class Allocated(FakeContext):
        cache_bytes = 1024 * 300
        cache_rotated = True

    def open_context(n_ctx: int) -> LanguageContext:
        return Allocated(FakeModel(), n_ctx=300)

    (result,) = CacheTask(CACHE).run(FakeModel(), open_context)
    assert result.bytes_per_token == 1024
    assert result.rotated is True


def test_a_pair_that_crawls_is_flagged() -> None:
    def row(pair: KvPair, prefill: float, decode: float) -> KvResult:
        (result,) = CacheTask(CACHE, clock=Ticking(*(prefill + decode * n for n in range(5)))).run(
            FakeModel(), open_pair(BASE)
        )
        return KvResult(pair=pair, part="cache", result=result)

    base, fine, slow = kv_rows([row(BASE, 1, 1), row(Q8, 1.9, 1.9), row(Q4, 2.5, 1)])
    assert base.flags == fine.flags == ()
    (flag,) = slow.flags
    assert flag.startswith("prefill at 80 tokens/s is 0.40 of f16's: perhaps this build has no")


def test_a_cache_that_fails_has_a_reason() -> None:
    (result,) = CacheTask(CACHE).run(FakeModel(), refusing("too large"))
    assert (result.prefill_speed, result.score.reason) == (None, "too large")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_ctx": 256, "prefill": 10}, "at least 64 tokens of prefill"),
        ({"n_ctx": 256, "prefill": 200, "decode": 0}, "one of decode"),
        ({"n_ctx": 256, "prefill": 250}, r"250 \+ 32 tokens do not fit a context of 256"),
    ],
)
def test_impossible_timings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(WishError, match=message):
        CachePlan(**settings)


@pytest.mark.parametrize(
    ("pairs", "message"), [((), "at least one pair"), ((Q8, Q8), "a pair comes twice")]
)
def test_impossible_matrices_are_refused(pairs: tuple[KvPair, ...], message: str) -> None:
    with pytest.raises(WishError, match=message):
        KvMatrixPlan(pairs=pairs, cache=CACHE)
