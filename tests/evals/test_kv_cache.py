"""The cost and speed of a cache, by a clock that ticks with the tokens."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.kv_cache import KV_CACHE, measure_cache, prefilled_tokens
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, refusing


def test_speeds_by_the_clock() -> None:
    bench = Bench()
    times: list[float] = []

    def clock() -> float:
        # Seven seconds for the prompt, then half a second for each token but one slow one.
        step = 0.0 if not times else 7.0 if len(times) == 1 else 9.0 if len(times) == 5 else 0.5
        times.append((times[-1] if times else 100.0) + step)
        return times[-1]

    score = measure_cache(256, bench.model, bench.open, clock=clock)
    assert score.reason is None
    assert score.prefill_speed == pytest.approx((256 - 64) / 7)
    assert score.decode_speed == pytest.approx(2)
    assert len(times) == 66


def test_work_is_repeated_until_both_speeds_mean_something() -> None:
    """At a millisecond for each step, half a second of prefill takes 500 prompts."""
    bench = Bench()
    ticks = iter(range(10**6))
    score = measure_cache(128, bench.model, bench.open, clock=lambda: next(ticks) / 1000)
    assert score.prefill_speed == pytest.approx((128 - 64) / 0.001)
    assert score.decode_speed == pytest.approx(1000)
    (context,) = bench.contexts
    assert context.calls == 1 + 500 * (1 + 65)


def test_the_whole_context_is_filled_before_a_token_is_decoded() -> None:
    bench = Bench()
    positions: list[int] = []

    def clock() -> float:
        positions.append(bench.contexts[0].position)
        return 10.0 * len(positions)

    measure_cache(512, bench.model, bench.open, clock=clock)
    assert positions == [0, *range(512 - 64, 512 + 1)]


def test_a_cell_for_each_length() -> None:
    bench = Bench()
    results = bench.run(KV_CACHE, contexts=(4096, 256))
    assert [result.cell.context_tokens for result in results] == [256, 4096]
    assert [result.prompt_tokens for result in results] == [192, 4032]
    assert {result.status for result in results} == {"ok"}
    for result in results:
        assert [metric.name for metric in result.metrics] == [
            "cache_bytes_per_token",
            "prefill_tokens_per_second",
            "decode_tokens_per_second",
        ]
        assert (result.value("prefill_tokens_per_second") or 0) > 0
        assert (result.value("decode_tokens_per_second") or 0) > 0
        assert [name for name, _ in result.notes] == ["rotated"]


def test_a_context_that_does_not_open_is_the_reason_of_its_cell() -> None:
    bench = Bench(failing_calls=[1])
    (result,) = bench.run(KV_CACHE, contexts=(256,), open_context=refusing("too large"))
    assert (result.status, result.reason) == ("error", "too large")
    assert [metric.value for metric in result.metrics] == [None, None, None]


def test_a_context_too_short_to_time_is_refused() -> None:
    assert prefilled_tokens(96) == 32
    with pytest.raises(RequestError, match="95 tokens is too short to time: at least 96"):
        measure_cache(95, FakeModel(), refusing("unused"))
