"""The crowded grid: the facts of all cells in one haystack."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.multikey import MULTIKEY, MultikeyPlan, crowds
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench

LENGTHS = (512, 1024, 2048)
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


def plan(**settings: object) -> MultikeyPlan:
    return MultikeyPlan(lengths=LENGTHS, depths=DEPTHS, **settings)  # type: ignore[arg-type]


def test_a_model_that_recalls_tells_every_fact_from_the_others() -> None:
    results = Bench().run(MULTIKEY, contexts=LENGTHS, depths=DEPTHS, samples=2)
    assert len(results) == 30
    assert {(r.value("recall"), r.value("top_ranked"), r.value("rank")) for r in results} == {
        (1.0, 1.0, 1.0)
    }


def test_the_haystack_is_evaluated_once() -> None:
    bench = Bench()
    bench.run(MULTIKEY, contexts=LENGTHS, depths=DEPTHS)
    assert bench.tokens < LENGTHS[-1] + 15 * 60


def test_all_facts_stand_in_one_haystack() -> None:
    model = FakeModel()
    found = list(crowds(model, plan()))
    assert len(found) == len(LENGTHS)
    text = model.detokenize(found[-1].trunk)
    assert text.count("The secret number of the") >= 9
    for crowd in found:
        assert found[-1].trunk[: len(crowd.trunk)] == crowd.trunk
        assert len(crowd.questions) == len(DEPTHS)
        for question in crowd.questions:
            assert question.answer in model.detokenize(crowd.trunk)


def test_distractors_are_wrong_and_half_of_them_stated() -> None:
    model = FakeModel()
    last = list(crowds(model, plan(distractors=6)))[-1]
    text = model.detokenize(last.trunk)
    assert len(last.questions) == len(DEPTHS)
    for question in last.questions:
        answers = [model.detokenize(answer).strip() for answer in question.branch.answers]
        assert len(set(answers)) == 7
        assert [answer in text for answer in answers] == [True] * 4 + [False] * 3


def test_prompts_are_the_same_everywhere() -> None:
    first = next(crowds(FakeModel(), plan(seed=7)))
    assert [(question.needle, question.answer) for question in first.questions] == [
        ("jolly barrel", "5637102"),
        ("fierce tower", "3533992"),
        ("rapid canyon", "7834297"),
        ("mighty tunnel", "5468656"),
        ("wise violin", "1625631"),
    ]


def test_finished_cells_are_not_measured_again() -> None:
    whole = Bench().run(MULTIKEY, contexts=LENGTHS, depths=DEPTHS)
    rest = Bench().run(MULTIKEY, contexts=LENGTHS, depths=DEPTHS, done=whole[:7])
    assert rest == whole[7:]


def test_a_length_without_room_is_refused_before_anything_runs() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="30 tokens is too short: one fact and its question"):
        bench.run(MULTIKEY, contexts=(30, 512), depths=DEPTHS)
    assert not bench.contexts
