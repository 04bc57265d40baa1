"""The evaluations on SmolLM2 with llama.cpp, in small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggufrope.evals.divergence import DivergencePlan, compare_contexts
from ggufrope.evals.facts import NeedleKind
from ggufrope.evals.needle import ask, asking_tokens
from ggufrope.evals.needle_prompts import NeedleGrid, NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan, perplexity_of, read_chunks
from ggufrope.lm import OpenContext
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

GRID = NeedlePlan(lengths=(192, 320), depths=(0, 50, 100), distractors=2, format="completion")

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with Model.open(smollm2) as opened:
        yield opened


def opener(model: Model, cache_type: str = "f16") -> OpenContext:
    return lambda n: Context(model, ContextSettings(n_ctx=n, type_k=cache_type, type_v=cache_type))


def test_sentences_tokenized_apart_are_the_text(model: Model) -> None:
    grid = NeedleGrid(model, GRID)
    for length in GRID.lengths:
        haystack = grid.haystack(length)
        assert len(haystack) > length / 2
        assert model.tokenize(model.detokenize(haystack)) == list(haystack)


def test_it_finds_needles_in_a_short_haystack(model: Model) -> None:
    tokens: list[int] = []
    scores = list(ask(GRID, model, opener(model), progress=tokens.append))
    assert sum(tokens) == asking_tokens(GRID, model)
    assert [score.point for score in scores] == list(GRID.points)
    for score in scores:
        assert score.rank == 1
        assert score.log_probability is not None
        assert score.log_probability > -1


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
def test_spliced_needles_score_as_whole_prompts(model: Model, cache_type: str) -> None:
    spliced, whole = (
        {score.point: score for score in ask(GRID, model, opener(model, cache_type), method=method)}
        for method in ("spliced", "whole")
    )
    assert set(spliced) == set(whole) == set(GRID.points)
    for point, score in spliced.items():
        assert score.exact == whole[point].exact
        assert score.log_probability == pytest.approx(whole[point].log_probability, abs=0.2)


@pytest.mark.parametrize("kind", ["confusable", "values", "latent", "ordered"])
def test_several_statements_are_spliced_as_one_is(model: Model, kind: NeedleKind) -> None:
    plan = NeedlePlan(lengths=(400,), depths=(50,), needle=kind)
    spliced, whole = (
        next(ask(plan, model, opener(model), method=method)) for method in ("spliced", "whole")
    )
    assert spliced.point == whole.point
    assert len(spliced.question.branch.splices) == 4
    assert spliced.log_probability == pytest.approx(whole.log_probability, abs=0.2)


def test_a_quantized_cache_strays_a_little(model: Model) -> None:
    plan = DivergencePlan(n_ctx=128, chunks=1)
    same = compare_contexts(plan, model, opener(model), opener(model)).measured
    lossy = compare_contexts(plan, model, opener(model), opener(model, "q8_0")).measured
    assert same is not None
    assert same.divergence.value == 0
    assert lossy is not None
    assert lossy.divergence.value is not None
    assert 0 < lossy.divergence.value < 0.05
    assert lossy.same_top.value is not None
    assert lossy.same_top.value > 0.9


def test_perplexity_is_the_loss_of_the_base(model: Model) -> None:
    plan = PerplexityPlan(n_ctx=128, chunks=1)
    found = perplexity_of(read_chunks(plan, model, opener(model)))
    compared = compare_contexts(
        DivergencePlan(n_ctx=128, chunks=1), model, opener(model), opener(model)
    )
    assert compared.measured is not None
    assert found.nll == pytest.approx(compared.measured.base_nll.value, rel=1e-6)
    assert found.value is not None
    assert 1 < found.value < 100


def test_logits_after_the_first_are_those_of_all(model: Model) -> None:
    tokens = model.tokenize(" The river runs down to the sea, and the road goes on and on.")
    with Context(model, ContextSettings(n_ctx=256, n_batch=8)) as context:
        every = np.concatenate([rows.copy() for rows in context.logits(tokens)])
        for skip in (1, 8, 11):
            context.rewind(0)
            some = [rows.copy() for rows in context.logits(tokens, skip=skip)]
            assert np.array_equal(np.concatenate(some), every[skip:])
