"""Losses of candidates, and when their evaluation ends early."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.backends import Rotated
from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan
from ggufrope.evals.texts import Text
from ggufrope.rope.scaling import RopeScaling, Unscaled
from ggufrope.runtime.fake import FakeContext, FakeModel
from ggufrope.search.evaluate import (
    CellLoss,
    Evaluation,
    NeedleFitness,
    PerplexityFitness,
    evaluate,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from ggufrope.lm import LanguageModel, OpenContext

NEEDLE = NeedleFitness(NeedlePlan(lengths=(300,), depths=(0, 50, 100), samples=2, distractors=0))


class OneModel:
    """A rotator of one fake model, whatever the scheme."""

    updates_in_place = True

    def __init__(self, model: FakeModel, failing_calls: tuple[int, ...] = ()) -> None:
        self.model = model
        self.failing_calls = failing_calls

    def rotate(self, scaling: RopeScaling) -> Rotated:
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
        self.cells = len(losses)
        self.asked = 0

    def run(
        self, model: LanguageModel, open_context: OpenContext
    ) -> Generator[CellLoss, None, None]:
        for number, loss in enumerate(self.losses):
            self.asked += 1
            yield CellLoss(key=str(number), loss=loss)


def judged(fitness: Given, **more: object) -> Evaluation:
    return evaluate(Unscaled(), fitness, OneModel(FakeModel()), **more)  # type: ignore[arg-type]


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
    bounds = {"0": 0.5, "1": 1.0, "2": 1.0, "3": 0.0}
    assert judged(fitness, cutoff=0.7, lower_bounds=bounds).stopped
    assert fitness.asked == 1


def test_a_candidate_below_the_cutoff_is_never_stopped() -> None:
    bounds = {"0": 1.0, "1": 1.0, "2": 1.0}
    assert not judged(Given(1.0, 1.0, 1.0), cutoff=1.0, lower_bounds=bounds).stopped


def test_needles_found_lose_little_and_needles_missed_much() -> None:
    good = evaluate(Unscaled(), NEEDLE, OneModel(FakeModel(confidence=0.99)))
    bad = evaluate(Unscaled(), NEEDLE, OneModel(FakeModel(horizon=60)))
    assert len(good.cells) == len(bad.cells) == NEEDLE.cells == 6
    assert all(cell.exact for cell in good.cells)
    assert good.loss < 0.1 < 2 < bad.loss
    assert {cell.exact for cell in bad.cells} == {True, False}


def test_perplexity_is_of_the_second_half_of_each_chunk() -> None:
    text = Text(source="words", content="one two three four five six seven eight nine ten " * 40)
    fitness = PerplexityFitness(PerplexityPlan(n_ctx=64, text=text, chunks=3))
    found = evaluate(Unscaled(), fitness, OneModel(FakeModel(confidence=0.9)))
    assert len(found.cells) == 3
    assert found.loss == pytest.approx(0.105, abs=0.01)  # -ln 0.9: the words repeat
    assert all(cell.exact is None for cell in found.cells)


def test_text_shorter_than_a_sample_is_one_clear_line() -> None:
    fitness = PerplexityFitness(PerplexityPlan(n_ctx=64, text=Text(source="t", content="a b c")))
    with pytest.raises(RequestError, match="the text t is too short"):
        evaluate(Unscaled(), fitness, OneModel(FakeModel()))


@pytest.mark.parametrize("fitness", [NEEDLE, PerplexityFitness(PerplexityPlan(n_ctx=64, chunks=1))])
def test_a_failure_of_the_runtime_ends_the_evaluation(fitness: NeedleFitness) -> None:
    with pytest.raises(BackendError, match="call 1 is one of failing_calls"):
        evaluate(Unscaled(), fitness, OneModel(FakeModel(), failing_calls=(1,)))
