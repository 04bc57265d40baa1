"""Divergence against the definition on pairs of fake models."""

from __future__ import annotations

import numpy as np
import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.divergence import DivergencePlan, DivergenceTask, summary
from ggufrope.evals.logprobs import Comparison
from ggufrope.evals.needle import NeedleTask
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan, PerplexityTask, perplexity_of
from ggufrope.lm import LanguageContext, OpenContext
from ggufrope.runtime.fake import FakeContext, FakeModel
from tests.evals.bench import Bench, refusing
from tests.evals.test_perplexity import TEXT

PLAN = DivergencePlan(n_ctx=64, text=TEXT)


def opener(model: FakeModel, n_batch: int = 512) -> OpenContext:
    def open_context(n_ctx: int) -> LanguageContext:
        return FakeContext(model, n_ctx=n_ctx, n_batch=n_batch)

    return open_context


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64))
    return wide / wide.sum()


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

    (result,) = bench.run(DivergenceTask(PLAN, opener(base, n_batch=11)))

    found = result.measured
    n = len(kld)
    assert found.tokens == n == 9 * 31
    assert result.score.value == found.divergence.value == pytest.approx(np.mean(kld), rel=1e-4)
    assert found.divergence.standard_error == pytest.approx(np.std(kld, ddof=1) / n**0.5, rel=1e-4)
    assert found.divergence_max == pytest.approx(max(kld), rel=1e-4)
    points, values = zip(*found.divergence_percentiles, strict=True)
    assert values == pytest.approx(tuple(np.percentile(kld, points)), abs=1e-5)
    assert found.delta_p.value == pytest.approx(np.mean(delta_p), abs=1e-6)
    assert found.delta_p_rms.value == pytest.approx(np.mean(np.square(delta_p)) ** 0.5, rel=1e-4)
    assert found.same_top.value == pytest.approx(np.mean(same))


def test_a_model_does_not_stray_from_itself() -> None:
    bench = Bench()
    (result,) = bench.run(DivergenceTask(PLAN, opener(bench.model, n_batch=100)))
    assert result.measured.divergence_max == 0
    assert result.measured.delta_p_rms.value == 0
    assert result.measured.same_top.value == 1
    assert result.measured.nll_difference.value == 0


def test_the_paired_difference_is_the_ratio_of_perplexities() -> None:
    base, variant = Bench(), Bench(horizon=20)
    (result,) = variant.run(DivergenceTask(PLAN, opener(base.model)))
    task = PerplexityTask(PerplexityPlan(n_ctx=64, text=TEXT))
    of_base, of_variant = perplexity_of(base.run(task)), perplexity_of(variant.run(task))
    assert result.measured.base_nll.value == pytest.approx(of_base.nll, rel=1e-6)
    assert result.measured.nll_difference.value == pytest.approx(
        of_variant.nll - of_base.nll, rel=1e-5
    )
    assert abs(result.measured.nll_difference.value) > 0.001


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


def test_a_finished_result_is_not_measured_again() -> None:
    bench = Bench()
    task = DivergenceTask(PLAN, opener(bench.model))
    assert bench.run(task, done={"64"}) == []
    assert not bench.contexts


def test_failed_chunks_are_counted_and_named() -> None:
    bench = Bench(failing_calls=[2])
    task = DivergenceTask(PLAN, opener(FakeModel()))
    (result,) = bench.run(task)
    assert result.unscored == 4
    assert result.measured.tokens == 5 * 31
    (nothing,) = task.run(FakeModel(), refusing("too large"))
    assert (nothing.score.value, nothing.score.reason) == (None, "too large")
    assert nothing.unscored == 9


def test_logits_that_are_no_numbers_have_no_score() -> None:
    class Lost(FakeModel):
        def next_logits(self, tokens: list[int]) -> np.ndarray:
            return np.full(self.n_vocab, np.nan, dtype=np.float32)

    open_lost = opener(Lost())
    tasks = (
        DivergenceTask(DivergencePlan(n_ctx=64, text=TEXT, chunks=1), opener(FakeModel())),
        PerplexityTask(PerplexityPlan(n_ctx=64, text=TEXT, chunks=1)),
        NeedleTask(NeedlePlan(lengths=(256,), depths=(50,))),
    )
    for task in tasks:
        (result,) = task.run(FakeModel(), open_lost)
        assert result.score.value is None, task.name
        assert result.score.reason == "the model's logits are not finite numbers"


def test_other_vocabularies_are_refused() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="vocabularies of 5000 and 4096 tokens"):
        bench.run(DivergenceTask(PLAN, opener(FakeModel(n_vocab=5000))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_ctx": 3}, "at least 4 tokens"), ({"n_ctx": 64, "chunks": 0}, "at least one chunk")],
)
def test_nonsense_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        DivergencePlan(**settings)
