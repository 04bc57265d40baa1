"""The short-context check on a base and a variant that sees less far."""

from __future__ import annotations

import pytest

from ggufrope.evals.divergence import DivergencePlan, divergence_metrics
from ggufrope.evals.needle import recall
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.short_context import CHEAP_CONTEXT, DEPTHS, SHORT_CONTEXT
from ggufrope.evals.task import TaskSettings
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, cells_of, opener, refusing
from tests.evals.test_perplexity import TEXT


def test_a_variant_that_sees_less_is_found_out(text_file: str) -> None:
    bench = Bench(horizon=100)
    (result,) = bench.run(
        SHORT_CONTEXT, contexts=(512,), text=text_file, open_base=opener(FakeModel()), seed=3
    )
    assert (result.status, result.prompt_tokens) == ("ok", 512)
    assert result.value("base_recall") == 1
    assert result.value("recall") == pytest.approx(1 / 5)
    share = result.metric("recall")
    assert share is not None
    assert share.n == 20
    assert share.low is not None
    assert result.notes == (("base", "the base"), ("cost of", "cache"))
    plan = DivergencePlan(n_ctx=512, text=TEXT, chunks=1)
    measured = Bench(horizon=100).compare(plan, opener(FakeModel())).measured
    assert measured is not None
    assert result.metrics[:-2] == divergence_metrics(measured)
    grid = NeedlePlan(lengths=(512,), depths=DEPTHS, samples=4, seed=3)
    assert recall(Bench(horizon=100).ask(grid)).exact.value == result.value("recall")


def test_a_variant_as_good_as_the_base_loses_nothing(text_file: str) -> None:
    bench = Bench()
    (result,) = bench.run(
        SHORT_CONTEXT, contexts=(512,), text=text_file, open_base=opener(bench.model)
    )
    assert result.value("nll_difference") == 0
    assert result.value("recall") == result.value("base_recall") == 1


def test_what_fails_is_the_reason_of_the_cell(text_file: str) -> None:
    failing = Bench(failing_calls=[1])
    (result,) = failing.run(
        SHORT_CONTEXT, contexts=(512,), text=text_file, open_base=refusing("too large")
    )
    assert (result.status, result.reason, result.metrics) == ("error", "too large", ())


@pytest.mark.parametrize(
    ("contexts", "native", "tokens"),
    [
        ((512, 2048), 1024, 512),
        ((512, 2048), 512, 512),
        ((512, 2048), None, 2048),
        ((2048, 8192), 1024, 1024),
        ((65536,), 32768, CHEAP_CONTEXT),
    ],
)
def test_it_measures_within_the_native_context(
    contexts: tuple[int, ...], native: int | None, tokens: int
) -> None:
    (cell,) = cells_of(SHORT_CONTEXT, TaskSettings(), contexts, native)
    assert cell.context_tokens == tokens
    assert native is None or cell.context_tokens <= native
