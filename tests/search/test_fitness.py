"""Losses of candidates, and when their evaluation ends early."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan
from ggufrope.evals.texts import Text
from ggufrope.rope.scaling import Unscaled
from ggufrope.runtime.fake import FakeContext, FakeModel
from ggufrope.search.evaluate import (
    CellLoss,
    Evaluation,
    NeedleFitness,
    PerplexityFitness,
    evaluate,
)
from ggufrope.search.rotators import Rotated
from ggufrope.search.schemes import Scheme

if TYPE_CHECKING:
    from collections.abc import Generator

    from ggufrope.lm import LanguageModel, OpenContext

PLAIN = Scheme(scaling=Unscaled())
NEEDLE = NeedleFitness(
    plan=NeedlePlan(lengths=(300,), depths=(0, 50, 100), samples=2, distractors=0)
)


class OneModel:
    """A rotator of one fake model, whatever the scheme."""

    updates_in_place = True

    def __init__(self, model: FakeModel, failing_calls: tuple[int, ...] = ()) -> None:
        self.model = model
        self.failing_calls = failing_calls

    def rotate(self, scheme: Scheme) -> Rotated:
        return Rotated(
            model=self.model,
            open_context=lambda n_ctx: FakeContext(
                self.model, n_ctx=n_ctx, failing_calls=self.failing_calls
            ),
        )

    def close(self) -> None: ...


class Given:
    """A fitness that gives these losses, and counts how many were asked for."""

    name = "needle"

    def __init__(self, *losses: float) -> None:
        self.losses = losses
        self.shares = {64: 1 / len(losses)}
        self.tokens = 64
        self.asked = 0

    def run(
        self, haystack: int, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        for number, loss in enumerate(self.losses):
            self.asked += 1
            yield CellLoss(key=f"64/{number}", context_tokens=64, loss=loss)


def judged(fitness: Given, **more: object) -> Evaluation:
    return evaluate(PLAIN, fitness, 0, OneModel(FakeModel()), **more)  # type: ignore[arg-type]


def test_loss_is_the_mean_over_cells() -> None:
    found = judged(Given(1.0, 2.0, 6.0), cutoff=100.0)
    assert (found.loss, found.stopped, len(found.cells)) == (3.0, False, 3)


def test_stops_when_even_perfect_cells_would_not_save_it() -> None:
    fitness = Given(1.0, 2.0, 6.0, 0.0)
    found = judged(fitness, cutoff=0.7)
    assert (fitness.asked, found.stopped) == (2, True)
    assert found.loss == 0.75  # the least it could have become: above the cutoff


def test_stops_sooner_where_the_best_cells_so_far_are_known() -> None:
    fitness = Given(1.0, 2.0, 6.0, 0.0)
    bounds = {"64/0": 0.5, "64/1": 1.0, "64/2": 1.0, "64/3": 0.0}
    assert judged(fitness, cutoff=0.7, lower_bounds=bounds).stopped
    assert fitness.asked == 1


def test_a_candidate_below_the_cutoff_is_never_stopped() -> None:
    bounds = {"64/0": 1.0, "64/1": 1.0, "64/2": 1.0}
    assert not judged(Given(1.0, 1.0, 1.0), cutoff=1.0, lower_bounds=bounds).stopped


def test_needles_found_lose_little_and_needles_missed_much() -> None:
    good = evaluate(PLAIN, NEEDLE, 0, OneModel(FakeModel(confidence=0.99)))
    bad = evaluate(PLAIN, NEEDLE, 0, OneModel(FakeModel(horizon=60)))
    assert len(good.cells) == len(bad.cells) == 6
    assert all(cell.exact for cell in good.cells)
    assert good.loss < 0.1 < 2 < bad.loss
    assert {cell.exact for cell in bad.cells} == {True, False}


def test_perplexity_is_of_the_second_half_of_each_chunk() -> None:
    text = Text(source="words", content="one two three four five six seven eight nine ten " * 40)
    fitness = PerplexityFitness(plans=(PerplexityPlan(n_ctx=64, text=text, chunks=3),))
    found = evaluate(PLAIN, fitness, 0, OneModel(FakeModel(confidence=0.9)))
    assert len(found.cells) == 3
    assert found.loss == pytest.approx(0.105, abs=0.01)  # -ln 0.9: the words repeat
    assert all(cell.exact is None for cell in found.cells)


def test_text_shorter_than_a_sample_is_one_clear_line() -> None:
    text = Text(source="t", content="a b c")
    fitness = PerplexityFitness(plans=(PerplexityPlan(n_ctx=64, text=text),))
    with pytest.raises(RequestError, match="the text t is too short"):
        evaluate(PLAIN, fitness, 0, OneModel(FakeModel()))


@pytest.mark.parametrize(
    "fitness", [NEEDLE, PerplexityFitness(plans=(PerplexityPlan(n_ctx=64, chunks=1),))]
)
def test_a_failure_of_the_runtime_ends_the_evaluation(fitness: NeedleFitness) -> None:
    with pytest.raises(BackendError, match="call 1 is one of failing_calls"):
        evaluate(PLAIN, fitness, 0, OneModel(FakeModel(), failing_calls=(1,)))


def test_two_lengths_weigh_what_they_are_to_weigh() -> None:
    plan = NeedlePlan(lengths=(200, 300), depths=(0, 50, 100), samples=2, distractors=0)
    fitness = NeedleFitness(plan=plan, weights={200: 0.25, 300: 0.75})
    found = evaluate(PLAIN, fitness, 0, OneModel(FakeModel(horizon=190)))
    short, long = found.loss_at(200), found.loss_at(300)
    assert short < long
    assert found.loss == pytest.approx(0.25 * short + 0.75 * long)
    assert math.isnan(found.loss_at(400))


def test_no_two_haystacks_are_alike_and_each_is_the_same_again() -> None:
    def keys(haystack: int) -> list[tuple[str, float]]:
        found = evaluate(PLAIN, NEEDLE, haystack, OneModel(FakeModel(horizon=60)))
        return [(cell.key, cell.loss) for cell in found.cells]

    assert keys(0) == keys(0) != keys(1)


def test_whole_prompts_take_more_tokens_and_have_a_name_of_their_own() -> None:
    whole = NeedleFitness(plan=NEEDLE.plan, method="whole")
    assert whole.name != NEEDLE.name
    assert whole.tokens > NEEDLE.tokens


def test_chunks_go_on_where_those_before_ended_until_there_are_no_more() -> None:
    text = Text(source="words", content="one two three four five six seven eight nine ten " * 40)
    plan = PerplexityPlan(n_ctx=64, text=text, chunks=2)
    fitness = PerplexityFitness(plans=(plan,))
    model = OneModel(FakeModel(confidence=0.9))
    first, second, later = (evaluate(PLAIN, fitness, n, model).cells for n in (0, 1, 1000))
    assert [cell.key for cell in first + second] == ["64/0", "64/1", "64/2", "64/3"]
    assert later == ()
