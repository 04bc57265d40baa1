"""The needle grid on a model that finds a fact exactly where it may look."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.needle import NeedleTask, recall, recall_by_length
from ggufrope.evals.needle_prompts import NeedlePlan, passkey_plan, stops
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, refusing

LENGTHS = (512, 1024, 2048)
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


def plan(**settings: object) -> NeedlePlan:
    return NeedlePlan(lengths=LENGTHS, depths=DEPTHS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
@pytest.mark.parametrize("kind", ["number", "word", "uuid"])
@pytest.mark.parametrize("haystack", ["noise", "essay"])
def test_a_model_that_recalls_scores_full(mode: str, kind: str, haystack: str) -> None:
    results = Bench().run(NeedleTask(plan(mode=mode, kind=kind, haystack=haystack)))
    assert len(results) == len(LENGTHS) * len(DEPTHS)
    assert all(r.exact.value == 1 and r.rank.value == 1 for r in results)
    assert all(r.candidates == 5 for r in results)


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
def test_a_model_that_looks_back_so_far_finds_only_what_is_near(mode: str) -> None:
    results = Bench(horizon=300).run(NeedleTask(plan(mode=mode)))
    for result in results:
        distance = result.prompt_tokens * (1 - result.measured_depth / 100)
        assert result.exact.value == (distance < 280), result
        assert result.log_probability.value is not None
        assert (result.log_probability.value > -1) == (distance < 280)


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
def test_prompts_fill_their_length_and_facts_stand_where_asked(mode: str) -> None:
    bench = Bench()
    for result in bench.run(NeedleTask(plan(mode=mode))):
        length = result.cell.context_tokens
        answer = bench.model.tokenize(f" {result.answer}")
        assert length - 40 < result.prompt_tokens + len(answer) <= length
        if result.cell.depth in (0, 100):
            assert result.measured_depth == result.cell.depth
        assert abs(result.measured_depth - result.cell.depth) <= 100 * 84 / length


def test_one_pass_evaluates_the_haystack_once() -> None:
    bench = Bench()
    bench.run(NeedleTask(plan(distractors=0)))
    assert bench.tokens < LENGTHS[-1] + 15 * 40


def test_isolated_prompts_share_their_beginnings() -> None:
    together = NeedleTask(plan(mode="isolated", distractors=0)).planned_tokens(FakeModel())
    apart = sum(length * len(DEPTHS) for length in LENGTHS)
    assert together < 0.6 * apart


def test_isolated_prompts_hold_one_needle() -> None:
    model = FakeModel()
    for stop in stops(model, plan(mode="isolated"), 0):
        assert model.detokenize(stop.trunk).count("The secret number of the") == 1


def test_needles_and_queries_of_an_isolated_prompt() -> None:
    model = FakeModel()
    for stop in stops(model, plan(mode="isolated", needles=3, queries=2), 0):
        text = model.detokenize(stop.trunk)
        (ask,) = stop.asks
        keys, values = ask.needle.split(", "), ask.answer.split(" and ")
        assert text.count("The secret number of the") == 3
        for key, value in zip(keys, values, strict=True):
            assert f"The secret number of the {key} is {value}." in text
            assert key in model.detokenize(ask.branch.prompt)


def test_distractors_are_wrong_and_half_of_them_stated() -> None:
    model = FakeModel()
    last = list(stops(model, plan(distractors=6), 0))[-1]
    text = model.detokenize(last.trunk)
    for ask in last.asks:
        answers = [model.detokenize(answer).strip() for answer in ask.branch.answers]
        assert len(set(answers)) == 7
        assert [answer in text for answer in answers] == [True] * 4 + [False] * 3


def test_same_seed_same_prompts_and_another_seed_others() -> None:
    def prompts(seed: int, sample: int) -> list[str]:
        model = FakeModel()
        return [model.detokenize(s.trunk) for s in stops(model, plan(seed=seed), sample)]

    assert prompts(1, 0) == prompts(1, 0)
    assert prompts(1, 0) != prompts(2, 0)
    assert prompts(1, 0) != prompts(1, 1)


def test_prompts_are_the_same_everywhere() -> None:
    model = FakeModel()
    first = next(stops(model, plan(seed=7), 0))
    asks = [(ask.needle, ask.answer) for ask in first.asks]
    assert asks == [
        ("jolly barrel", "5637102"),
        ("fierce tower", "3533992"),
        ("rapid canyon", "7834297"),
        ("mighty tunnel", "5468656"),
        ("wise violin", "1625631"),
    ]


def test_samples_multiply_cells_under_their_own_keys() -> None:
    results = Bench().run(NeedleTask(plan(samples=2)))
    assert len({result.key for result in results}) == 30
    assert recall(results).exact.n == 30
    assert {length: r.exact.n for length, r in recall_by_length(results).items()} == {
        512: 10,
        1024: 10,
        2048: 10,
    }


def test_finished_cells_are_not_asked_again() -> None:
    task = NeedleTask(plan(samples=2))
    whole = Bench().run(task)
    bench = Bench()
    assert bench.run(task, done={result.key for result in whole[:20]}) == whole[20:]
    assert bench.tokens < LENGTHS[-1] + 10 * 5 * 40


def test_the_control_length_is_marked() -> None:
    results = Bench().run(NeedleTask(plan(control=256)))
    assert {r.cell.context_tokens for r in results if r.cell.control} == {256}
    assert len(results) == 20


def test_a_decode_failure_is_the_reason_of_its_cells_only() -> None:
    # In each sample's context: evaluate, ask, evaluate, ask, and the third evaluation fails.
    results = Bench(failing_calls=[5]).run(NeedleTask(plan(samples=2)))
    assert len(results) == 30
    for result in results:
        if result.cell.context_tokens == 2048:
            assert result.score.value is None
            assert result.score.reason == "evaluation failed, as asked of call 5"
        else:
            assert result.score.value == 1
    assert recall(results).unscored == 10
    assert recall(results).exact.n == 20


def test_a_context_that_does_not_open_is_the_reason_of_all() -> None:
    results = list(NeedleTask(plan()).run(FakeModel(), refusing("no room for 2048 tokens")))
    assert len(results) == 15
    assert {result.exact.reason for result in results} == {"no room for 2048 tokens"}


def test_passkey() -> None:
    task = NeedleTask(passkey_plan(lengths=LENGTHS, depths=DEPTHS))
    bench = Bench()
    results = bench.run(task)
    assert task.name == "passkey"
    assert recall(results).exact.value == 1
    for stop in stops(bench.model, task.plan, 0):
        (ask,) = stop.asks
        assert bench.model.detokenize(stop.trunk).count(ask.answer) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (101,)}, "percentage from 0 to 100, got 101"),
        ({"depths": (float("nan"),)}, "percentage from 0 to 100, got nan"),
        ({"depths": ()}, "at least one depth"),
        ({"depths": (5, 5)}, "given twice"),
        ({"lengths": (0,)}, "at least 1 token"),
        ({"lengths": ()}, "at least 1 token"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"spacing": 0}, "spacing must be at least 1"),
        ({"distractors": -1}, "distractors must be 0 or more"),
        ({"mode": "both"}, "unknown needle mode 'both'"),
        ({"kind": "poem"}, "unknown kind of value 'poem'"),
        ({"mode": "isolated", "queries": 2}, "2 facts cannot be asked for where 1 are stated"),
        ({"queries": 6}, "5 depths are too few for 6"),
        ({"wording": "passkey"}, "passkey needs isolated mode"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        NeedlePlan(**{"lengths": LENGTHS, "depths": DEPTHS, **settings})  # type: ignore[arg-type]


def test_a_length_without_room_is_refused_before_anything_runs() -> None:
    bench = Bench()
    with pytest.raises(
        RequestError, match="30 tokens is too short: one fact and its question take"
    ):
        bench.run(NeedleTask(NeedlePlan(lengths=(30, 512), depths=DEPTHS)))
    assert not bench.contexts


def test_an_unknown_haystack_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown haystack 'hay'"):
        Bench().run(NeedleTask(plan(haystack="hay")))
