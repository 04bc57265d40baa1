"""The short-context gate on a base and a variant that sees less far."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.divergence import DivergencePlan
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.short_context import ShortContextPlan, ShortContextTask, short_context
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench
from tests.evals.test_divergence import opener
from tests.evals.test_perplexity import TEXT

NEEDLES = NeedlePlan(lengths=(256, 512), depths=(0, 50, 100))
PLAN = ShortContextPlan(
    original_context=512, divergence=DivergencePlan(n_ctx=64, text=TEXT), needle=NEEDLES
)


def test_a_variant_that_sees_less_is_found_out() -> None:
    bench = Bench(horizon=100)
    results = bench.run(ShortContextTask(PLAN, opener(FakeModel())))
    found = short_context(results)
    assert found.base.exact.value == 1
    assert found.variant.exact.value == pytest.approx(2 / 6)
    assert found.divergence is not None
    assert found.divergence.tokens == 9 * 31


def test_it_goes_on_where_it_was_left() -> None:
    task = ShortContextTask(PLAN, opener(FakeModel()))
    whole = Bench().run(task)
    assert [result.key for result in whole[:2]] == ["divergence/64", "base/256/0/0"]
    for stored in (1, 4, 9):
        rest = Bench().run(task, done={result.key for result in whole[:stored]})
        assert [result.key for result in rest] == [result.key for result in whole[stored:]]


def test_beyond_the_original_context_is_refused() -> None:
    with pytest.raises(RequestError, match="512 tokens goes beyond the original context of 500"):
        ShortContextPlan(original_context=500, divergence=PLAN.divergence, needle=NEEDLES)
