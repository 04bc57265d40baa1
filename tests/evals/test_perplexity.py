"""Perplexity against the definition, evaluated token by token on the fake model."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any

import numpy as np
import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.perplexity import (
    CURVE,
    PERPLEXITY,
    PerplexityPlan,
    perplexity_of,
    read_chunks,
    reading_tokens,
)
from ggufrope.evals.texts import Text
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, refusing

WORDS = ("sun", "moon", "star", "sky", "sea", "hill", "wood", "rain", "snow", "wind")
TEXT = Text(
    source="sky",
    content=" ".join(WORDS[int(n)] for n in np.random.default_rng(5).integers(0, 10, 600)) + ".",
)


def nll(model: FakeModel, before: list[int], token: int) -> float:
    logits = model.next_logits(before).astype(np.float64)
    return float(np.log(np.exp(logits).sum()) - logits[token])


def test_chunked_as_defined() -> None:
    bench = Bench(n_batch=7)
    tokens = bench.model.tokenize(TEXT.content, beginning=True)
    expected = [
        [nll(bench.model, [tokens[0], *chunk[1:i]], chunk[i]) for i in range(33, 64)]
        for chunk in (tokens[start : start + 64] for start in range(0, 576, 64))
    ]
    chunks = bench.read(PerplexityPlan(n_ctx=64, text=TEXT))
    found = perplexity_of(chunks)
    every = np.array(expected).ravel()

    assert [c.nll for c in chunks] == pytest.approx([sum(c) for c in expected], rel=1e-6)
    assert found.tokens == 9 * 31
    assert found.chunks == 9
    assert found.value == pytest.approx(exp(every.mean()), rel=1e-6)
    error = sqrt(every.var() / (len(every) - 1)) * exp(every.mean())
    assert found.error == pytest.approx(error, rel=1e-6)


def test_odd_chunks_score_from_the_middle_on() -> None:
    bench = Bench()
    found = perplexity_of(bench.read(PerplexityPlan(n_ctx=65, text=TEXT, chunks=2)))
    # Positions 65 // 2 + 1 = 33 to 64, in each of two chunks.
    assert found.tokens == 2 * 32


def test_a_sliding_window_scores_every_token_once() -> None:
    bench = Bench()
    tokens = bench.model.tokenize(TEXT.content, beginning=True)
    plan = PerplexityPlan(n_ctx=64, stride=16, text=TEXT)
    chunks = bench.read(plan)
    expected = [nll(bench.model, tokens[:i], tokens[i]) for i in range(1, 64)]
    for start in range(16, len(tokens) - 63, 16):
        window = [tokens[0], *tokens[start + 1 : start + 64]]
        expected += [nll(bench.model, window[:i], window[i]) for i in range(48, 64)]
    found = perplexity_of(chunks)
    assert found.tokens == len(expected) == (len(tokens) - 64) // 16 * 16 + 63
    assert found.nll == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_curve_adds_up_and_leaves_the_value_alone() -> None:
    plain = perplexity_of(Bench().read(PerplexityPlan(n_ctx=64, text=TEXT)))
    plan = PerplexityPlan(n_ctx=64, text=TEXT, curve=True, buckets=4)
    curved = perplexity_of(Bench().read(plan))
    assert curved.value == plain.value
    assert [(b.start, b.end, b.tokens) for b in curved.curve] == [
        (0, 16, 9 * 15),
        (16, 32, 9 * 16),
        (32, 48, 9 * 16),
        (48, 64, 9 * 16),
    ]


def test_the_curve_shows_where_a_model_stops_to_see() -> None:
    line = "The council of the town met on the first day of every month but one. "
    text = Text(source="line", content=line + "Nobody knows what they spoke about. " * 3 + line * 9)
    model_sees, model_does_not = (
        perplexity_of(
            Bench(horizon=horizon).read(PerplexityPlan(n_ctx=160, text=text, chunks=1, curve=True))
        )
        for horizon in (None, 8)
    )
    assert model_sees.curve[-1].nll < 0.5 * model_does_not.curve[-1].nll
    assert model_sees.curve[0].nll == pytest.approx(model_does_not.curve[0].nll, rel=0.2)


def test_chunks_add_up_in_any_order_and_parts() -> None:
    whole = Bench().read(PerplexityPlan(n_ctx=64, text=TEXT))
    assert [chunk.index for chunk in whole] == list(range(9))
    assert perplexity_of([*whole[4:], *whole[:4]]) == perplexity_of(whole)
    part = perplexity_of(whole[:4])
    assert part.nll == pytest.approx(sum(c.nll for c in whole[:4]) / (4 * 31))


def test_a_limit_reads_the_beginning() -> None:
    plan = PerplexityPlan(n_ctx=64, text=TEXT)
    limited = PerplexityPlan(n_ctx=64, text=TEXT, chunks=3)
    limit = Bench().read(limited)
    assert len(limit) == 3
    assert limit == Bench().read(plan)[:3]


def test_a_failed_chunk_is_counted_apart() -> None:
    bench = Bench(failing_calls=[2])
    chunks = bench.read(PerplexityPlan(n_ctx=64, text=TEXT))
    # One call for each chunk, and every second fails, in a context opened anew.
    assert [chunk.tokens == 0 for chunk in chunks] == [False, True] * 4 + [False]
    assert [chunk.reason is None for chunk in chunks] == [True, False] * 4 + [True]
    assert chunks[1].reason == "evaluation failed: call 2 is one of failing_calls"
    found = perplexity_of(chunks)
    assert (found.chunks, found.unscored) == (5, 4)


def test_no_context_no_value() -> None:
    plan = PerplexityPlan(n_ctx=64, text=TEXT)
    found = perplexity_of(read_chunks(plan, FakeModel(), refusing("too large")))
    assert found.value is None
    assert found.unscored == 9


def test_a_text_too_short_names_needed_and_found() -> None:
    plan = PerplexityPlan(n_ctx=4096, text=TEXT)
    with pytest.raises(RequestError, match="sky is too short: 4096 tokens are needed, it has 602"):
        reading_tokens(plan, FakeModel())


def test_a_cell_for_each_length(text_file: str) -> None:
    results = Bench().run(PERPLEXITY, contexts=(128, 64), text=text_file, chunks=3)
    assert [result.cell.context_tokens for result in results] == [64, 128]
    for result in results:
        n_ctx = result.cell.context_tokens
        plan = PerplexityPlan(n_ctx=n_ctx, text=TEXT, chunks=3, curve=True)
        found = perplexity_of(Bench().read(plan))
        assert (result.status, result.reason, result.prompt_tokens) == ("ok", None, n_ctx)
        value = result.metric("perplexity")
        assert value is not None
        assert (value.value, value.n) == (found.value, found.tokens)
        assert found.value is not None
        assert value.low is not None
        assert value.high is not None
        assert value.low < found.value < value.high
        assert result.value("nll") == found.nll
        assert (result.value("chunks"), result.value("unscored_chunks")) == (3, 0)
        assert dict(result.notes) == {"text": "text.txt", "text_sha256": TEXT.sha256}
        (curve,) = result.curves
        assert curve.name == CURVE
        assert [position for position, _ in curve.points] == [b.end for b in found.curve]


def test_a_length_beyond_the_text_is_the_reason_of_its_cell_only(text_file: str) -> None:
    results = Bench().run(PERPLEXITY, contexts=(64, 4096), text=text_file)
    assert [result.status for result in results] == ["ok", "error"]
    assert "text.txt is too short" in str(results[1].reason)


def test_a_context_that_does_not_open_is_the_reason_of_its_cell(text_file: str) -> None:
    bench = Bench(failing_calls=[1])
    results = bench.run(
        PERPLEXITY, contexts=(64,), text=text_file, open_context=refusing("too large")
    )
    assert [(result.status, result.reason) for result in results] == [("error", "too large")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_ctx": 2}, "at least 4 tokens"),
        ({"n_ctx": 64, "chunks": 0}, "at least one chunk"),
        ({"n_ctx": 64, "stride": 64}, "stride lies between 1 and the context of 64"),
        ({"n_ctx": 64, "buckets": 0}, "1 to 64 points"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PerplexityPlan(**settings)
