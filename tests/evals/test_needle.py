"""The needle grid on a model that finds a fact exactly where it may look."""

from __future__ import annotations

from collections import Counter

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.needle import NEEDLE, PASSKEY, ask, asking_tokens, recall
from ggufrope.evals.needle_prompts import GridPoint, NeedlePlan, passkey_plan, prompts
from ggufrope.evals.task import TaskSettings
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, cells_of, refusing

LENGTHS = (512, 1024, 2048)
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


def plan(**settings: object) -> NeedlePlan:
    return NeedlePlan(lengths=LENGTHS, depths=DEPTHS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
@pytest.mark.parametrize("kind", ["number", "word", "uuid"])
@pytest.mark.parametrize("haystack", ["noise", "essay"])
def test_a_model_that_recalls_scores_full(mode: str, kind: str, haystack: str) -> None:
    scores = Bench().ask(plan(mode=mode, kind=kind, haystack=haystack))
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    assert all(score.exact and score.rank == 1 for score in scores)
    assert all(len(score.question.branch.answers) == 5 for score in scores)


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
def test_a_model_that_looks_back_so_far_finds_only_what_is_near(mode: str) -> None:
    scores = Bench(horizon=300).ask(plan(mode=mode))
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    for score in scores:
        question = score.question
        distance = question.prompt_tokens * (1 - question.measured_depth / 100)
        assert score.exact == (distance < 280), score
        assert score.log_probability is not None
        assert (score.log_probability > -1) == (distance < 280)


@pytest.mark.parametrize("mode", ["one-pass", "isolated"])
def test_prompts_fill_their_length_and_facts_stand_where_planned(mode: str) -> None:
    bench = Bench()
    scores = bench.ask(plan(mode=mode))
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    for score in scores:
        length, depth, _ = score.point
        answer = bench.model.tokenize(f" {score.question.answer}")
        assert length - 40 < score.question.prompt_tokens + len(answer) <= length
        if depth in (0, 100):
            assert score.question.measured_depth == depth
        assert abs(score.question.measured_depth - depth) <= 100 * 84 / length


def test_one_pass_evaluates_the_haystack_once() -> None:
    bench = Bench()
    bench.ask(plan(distractors=0))
    assert bench.tokens < LENGTHS[-1] + 15 * 40


def test_isolated_prompts_share_their_beginnings() -> None:
    together = asking_tokens(plan(mode="isolated", distractors=0), FakeModel())
    apart = sum(length * len(DEPTHS) for length in LENGTHS)
    assert together < 0.6 * apart


def test_isolated_prompts_hold_one_needle() -> None:
    model = FakeModel()
    found = list(prompts(model, plan(mode="isolated")))
    assert len(found) == len(LENGTHS) * len(DEPTHS)
    for prompt in found:
        assert model.detokenize(prompt.trunk).count("The secret number of the") == 1


def test_needles_and_queries_of_an_isolated_prompt() -> None:
    model = FakeModel()
    found = list(prompts(model, plan(mode="isolated", needles=3, queries=2)))
    assert len(found) == len(LENGTHS) * len(DEPTHS)
    for prompt in found:
        text = model.detokenize(prompt.trunk)
        (question,) = prompt.questions
        keys, values = question.needle.split(", "), question.answer.split(" and ")
        assert text.count("The secret number of the") == 3
        for key, value in zip(keys, values, strict=True):
            assert f"The secret number of the {key} is {value}." in text
            assert key in model.detokenize(question.branch.prompt)


def test_distractors_are_wrong_and_half_of_them_stated() -> None:
    model = FakeModel()
    last = list(prompts(model, plan(distractors=6)))[-1]
    text = model.detokenize(last.trunk)
    assert len(last.questions) == len(DEPTHS)
    for question in last.questions:
        answers = [model.detokenize(answer).strip() for answer in question.branch.answers]
        assert len(set(answers)) == 7
        assert [answer in text for answer in answers] == [True] * 4 + [False] * 3


def test_the_seed_and_the_sample_decide_the_prompts() -> None:
    def trunks(seed: int) -> list[str]:
        model = FakeModel()
        found = prompts(model, plan(seed=seed, samples=2))
        return [model.detokenize(prompt.trunk) for prompt in found]

    assert len(trunks(1)) == 2 * len(LENGTHS)
    assert trunks(1) == trunks(1)
    assert trunks(1)[:3] != trunks(2)[:3]
    assert trunks(1)[:3] != trunks(1)[3:]


def test_prompts_are_the_same_everywhere() -> None:
    model = FakeModel()
    first = next(prompts(model, plan(seed=7)))
    assert [(question.needle, question.answer) for question in first.questions] == [
        ("jolly barrel", "5637102"),
        ("fierce tower", "3533992"),
        ("rapid canyon", "7834297"),
        ("mighty tunnel", "5468656"),
        ("wise violin", "1625631"),
    ]


def test_samples_multiply_the_points_of_the_grid() -> None:
    scores = Bench().ask(plan(samples=2))
    assert len({score.point for score in scores}) == 30
    assert len({str(score.point) for score in scores}) == 30
    assert recall(scores).exact.n == 30
    assert Counter(score.point.context_tokens for score in scores) == {512: 10, 1024: 10, 2048: 10}


def test_the_order_of_lengths_changes_nothing() -> None:
    shuffled = NeedlePlan(lengths=(2048, 512, 1024, 512), depths=DEPTHS)
    assert Bench().ask(shuffled) == Bench().ask(plan())


def test_only_the_chosen_points_are_measured() -> None:
    whole = Bench().ask(plan(samples=2))
    bench = Bench()
    assert bench.ask(plan(samples=2), only={score.point for score in whole[20:]}) == whole[20:]
    assert bench.tokens < LENGTHS[-1] + 10 * 5 * 40


def test_each_cell_gets_its_score() -> None:
    results = Bench(horizon=300).run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2)
    scores = {score.point: score for score in Bench(horizon=300).ask(plan(samples=2))}
    assert len(results) == len(scores) == 30
    for result in results:
        cell = result.cell
        score = scores[GridPoint(cell.context_tokens, cell.depth_percent or 0, cell.sample or 0)]
        assert (result.status, result.reason) == ("ok", None)
        assert result.value("recall") == score.exact
        assert result.value("top_ranked") == (score.rank == 1)
        assert result.value("rank") == score.rank
        assert result.value("log_probability") == score.log_probability
        assert result.value("measured_depth") == score.question.measured_depth
        assert result.prompt_tokens == score.question.prompt_tokens
        assert dict(result.notes) == {
            "needle": score.question.needle,
            "answer": score.question.answer,
        }
    assert {result.value("recall") for result in results} == {0.0, 1.0}


def test_finished_cells_are_not_measured_again() -> None:
    whole = Bench().run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2)
    done = [result.cell for result in whole[:20]]
    rest = Bench().run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2, done=done)
    assert rest == whole[20:]


def test_the_native_context_is_added_and_marked_as_control() -> None:
    results = Bench().run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, native=256)
    assert {r.cell.context_tokens for r in results if r.cell.control} == {256}
    assert Counter(r.cell.control for r in results) == {True: 5, False: 15}
    assert {r.value("recall") for r in results} == {1.0}


@pytest.mark.parametrize(
    ("native", "settings"),
    [(None, {}), (512, {}), (4096, {}), (256, {"control": False})],
)
def test_no_control_where_it_tells_nothing(native: int | None, settings: dict[str, bool]) -> None:
    cells = cells_of(NEEDLE, TaskSettings(depths=3, **settings), LENGTHS, native)
    assert len(cells) == 9
    assert not any(cell.control for cell in cells)
    assert {cell.context_tokens for cell in cells} == set(LENGTHS)


def test_a_decode_failure_is_the_reason_of_its_cells_only() -> None:
    # In each sample's context: evaluate, ask, evaluate, ask, and the third evaluation fails.
    results = Bench(failing_calls=[5]).run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2)
    assert len(results) == 30
    for result in results:
        if result.cell.context_tokens == 2048:
            assert (result.status, result.value("recall")) == ("error", None)
            assert result.reason == "evaluation failed: call 5 is one of failing_calls"
        else:
            assert result.value("recall") == 1
    scores = Bench(failing_calls=[5]).ask(plan(samples=2))
    assert recall(scores).unscored == 10
    assert recall(scores).exact.n == 20


def test_a_context_that_does_not_open_is_the_reason_of_all() -> None:
    scores = list(ask(plan(), FakeModel(), refusing("no room for 2048 tokens")))
    assert len(scores) == 15
    assert {score.reason for score in scores} == {"no room for 2048 tokens"}


def test_passkey() -> None:
    bench = Bench()
    results = bench.run(PASSKEY, contexts=LENGTHS, depths=DEPTHS, native=256)
    assert [result.value("recall") for result in results] == [1.0] * 15
    found = list(prompts(bench.model, passkey_plan(lengths=LENGTHS, depths=DEPTHS)))
    assert len(found) == 15
    for prompt in found:
        (question,) = prompt.questions
        assert bench.model.detokenize(prompt.trunk).count(question.answer) == 2


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
        ({"mode": "isolated", "queries": 2}, "2 facts needs as many needles, got 1"),
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
        bench.run(NEEDLE, contexts=(30, 512), depths=DEPTHS)
    assert not bench.contexts


def test_an_unknown_haystack_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown haystack 'hay'"):
        Bench().ask(plan(haystack="hay"))
