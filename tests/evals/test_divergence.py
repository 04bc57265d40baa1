"""Divergence against the definition on pairs of fake models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufrope.errors import RequestError
from ggufrope.evals.divergence import (
    DIVERGENCE,
    DivergencePlan,
    compare_contexts,
    divergence_metrics,
    summary,
)
from ggufrope.evals.logprobs import Comparison
from ggufrope.evals.needle import NEEDLE
from ggufrope.evals.perplexity import PERPLEXITY, PerplexityPlan, perplexity_of
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, opener, refusing
from tests.evals.test_perplexity import TEXT

PLAN = DivergencePlan(n_ctx=64, text=TEXT)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = np.exp(logits.astype(np.float64))
    wide /= wide.sum()
    return wide


def test_as_defined_whatever_the_batches() -> None:
    bench = Bench(n_batch=7)
    base = FakeModel(confidence=0.6)
    tokens = bench.model.tokenize(TEXT.content, beginning=True)
    kld, delta_p, same = [], [], []
    for start in range(0, 576, 64):
        chunk = [tokens[0], *tokens[start + 1 : start + 64]]
        for i in range(33, 64):
            p = softmax(base.next_logits(chunk[:i]))
            q = softmax(bench.model.next_logits(chunk[:i]))
            kld.append((p * np.log(p / q)).sum())
            delta_p.append(q[chunk[i]] - p[chunk[i]])
            same.append(p.argmax() == q.argmax())

    found = bench.compare(PLAN, opener(base, n_batch=11)).measured
    assert found is not None
    n = len(kld)
    assert found.tokens == n == 9 * 31
    assert found.divergence.value == pytest.approx(np.mean(kld), rel=1e-4)
    assert found.divergence.standard_error == pytest.approx(np.std(kld, ddof=1) / n**0.5, rel=1e-4)
    assert found.divergence_max == pytest.approx(max(kld), rel=1e-4)
    points, values = zip(*found.divergence_percentiles, strict=True)
    assert values == pytest.approx(tuple(np.percentile(kld, points)), abs=1e-5)
    assert found.delta_p.value == pytest.approx(np.mean(delta_p), abs=1e-6)
    assert found.delta_p_rms.value == pytest.approx(np.mean(np.square(delta_p)) ** 0.5, rel=1e-4)
    assert found.same_top.value == pytest.approx(np.mean(same))


def test_a_model_does_not_stray_from_itself() -> None:
    bench = Bench()
    found = bench.compare(PLAN, opener(bench.model, n_batch=100)).measured
    assert found is not None
    assert found.divergence_max == 0
    assert found.delta_p_rms.value == 0
    assert found.same_top.value == 1
    assert found.nll_difference.value == 0


def test_the_paired_difference_is_the_ratio_of_perplexities() -> None:
    base, variant = Bench(), Bench(horizon=20)
    found = variant.compare(PLAN, opener(base.model)).measured
    plan = PerplexityPlan(n_ctx=64, text=TEXT)
    of_base, of_variant = perplexity_of(base.read(plan)), perplexity_of(variant.read(plan))
    assert found is not None
    assert found.base_nll.value == pytest.approx(of_base.nll, rel=1e-6)
    assert of_base.nll is not None
    assert of_variant.nll is not None
    difference = of_variant.nll - of_base.nll
    assert abs(difference) > 0.001
    assert found.nll_difference.value == pytest.approx(difference, rel=1e-5)


def test_figures_by_hand() -> None:
    found = summary(
        Comparison(
            divergence=np.array([0.1, 0.3]),
            base=np.log([0.5, 0.5]),
            variant=np.log([0.4, 0.8]),
            same_top=np.array([True, False]),
        )
    )
    assert found.divergence.value == pytest.approx(0.2)
    assert found.divergence.standard_error == pytest.approx(0.1)
    assert found.delta_p.value == pytest.approx(0.1)
    assert found.delta_p_rms.value == pytest.approx(0.05**0.5)
    # Squares 0.01 and 0.09: their error 0.04, over twice the root.
    assert found.delta_p_rms.standard_error == pytest.approx(0.04 / (2 * 0.05**0.5))
    assert found.same_top.value == 0.5


def test_a_cell_for_each_length(text_file: str) -> None:
    base = opener(FakeModel(confidence=0.6))
    results = Bench().run(DIVERGENCE, contexts=(128, 64), text=text_file, open_base=base)
    assert [result.cell.context_tokens for result in results] == [64, 128]
    for result in results:
        n_ctx = result.cell.context_tokens
        plan = DivergencePlan(n_ctx=n_ctx, text=TEXT, chunks=4)
        measured = Bench().compare(plan, base).measured
        assert measured is not None
        assert result.status == "ok"
        assert result.metrics == divergence_metrics(measured)
        assert (result.value("mean_divergence") or 0) > 0
        assert result.notes == (("base", "the base"), ("cost of", "cache"))


def test_a_finished_cell_is_not_measured_again(text_file: str) -> None:
    settings: dict[str, Any] = {
        "contexts": (64, 128),
        "text": text_file,
        "open_base": opener(FakeModel()),
    }
    whole = Bench().run(DIVERGENCE, **settings)
    bench = Bench()
    assert bench.run(DIVERGENCE, **settings, done=whole) == []
    assert not bench.contexts
    assert bench.run(DIVERGENCE, **settings, done=whole[:1]) == whole[1:]


def test_without_a_base_there_is_nothing_to_compare() -> None:
    with pytest.raises(RequestError, match="diverges from nothing"):
        Bench().run(DIVERGENCE, contexts=(64,))


def test_failed_chunks_are_counted_and_named() -> None:
    bench = Bench(failing_calls=[2])
    score = bench.compare(PLAN, opener(FakeModel()))
    assert score.unscored == 4
    assert score.measured is not None
    assert score.measured.tokens == 5 * 31
    model = FakeModel()
    nothing = compare_contexts(PLAN, model, opener(model), refusing("too large"))
    assert (nothing.measured, nothing.reason) == (None, "too large")
    assert nothing.unscored == 9


def test_logits_that_are_no_numbers_have_no_score(text_file: str) -> None:
    class Lost(FakeModel):
        def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
            return np.full(self.n_vocab, np.nan, dtype=np.float32)

    for task, metric in (
        (DIVERGENCE, "mean_divergence"),
        (PERPLEXITY, "perplexity"),
        (NEEDLE, "recall"),
    ):
        (result,) = Bench().run(
            task,
            contexts=(256,),
            depths=(50,),
            samples=1,
            whole_prompts=0,
            text=text_file,
            chunks=1,
            open_base=opener(FakeModel()),
            open_context=opener(Lost()),
        )
        assert (result.status, result.value(metric)) == ("error", None), task.name
        assert result.reason == "the model's logits are not finite numbers"


def test_other_vocabularies_are_refused() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="vocabularies of 5000 and 4096 tokens"):
        bench.compare(PLAN, opener(FakeModel(n_vocab=5000)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_ctx": 3}, "at least 4 tokens"), ({"n_ctx": 64, "chunks": 0}, "at least one chunk")],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        DivergencePlan(**settings)
