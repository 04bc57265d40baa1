"""The needle grid on a model that finds a fact exactly where it may look."""

from __future__ import annotations

from collections import Counter

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.needle import NEEDLE, PASSKEY, ask, asking_tokens, recall
from ggufrope.evals.needle_prompts import GridPoint, NeedleGrid, NeedlePlan
from ggufrope.evals.results import NOT_NEEDED, CellResult
from ggufrope.evals.task import Task
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, refusing

LENGTHS = (512, 1024, 2048)
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
METHODS = pytest.mark.parametrize("method", ["spliced", "whole"])


def plan(**settings: object) -> NeedlePlan:
    return NeedlePlan(lengths=LENGTHS, depths=DEPTHS, **settings)  # type: ignore[arg-type]


@METHODS
@pytest.mark.parametrize("value", ["number", "word", "uuid"])
@pytest.mark.parametrize("haystack", ["noise", "essay"])
def test_a_model_that_recalls_scores_full(method: str, value: str, haystack: str) -> None:
    scores = Bench().ask(plan(value=value, haystack=haystack, distractors=4), method=method)  # type: ignore[arg-type]
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    assert all(score.exact and score.rank == 1 for score in scores)
    assert all(len(score.question.branch.answers) == 5 for score in scores)


@METHODS
def test_a_model_that_looks_back_so_far_finds_only_what_is_near(method: str) -> None:
    scores = Bench(horizon=300).ask(plan(), method=method)  # type: ignore[arg-type]
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    for score in scores:
        question = score.question
        distance = question.prompt_tokens * (1 - question.measured_depth / 100)
        assert score.exact == (distance < 280), score
        assert score.rank is None
        assert score.log_probability is not None
        assert (score.log_probability > -1) == (distance < 280)


def test_spliced_needles_are_the_whole_prompts() -> None:
    model = FakeModel()
    grid = NeedleGrid(model, plan(samples=2))
    points = list(plan(samples=2).points)
    assert len(points) == 30
    for point in points:
        question = grid.question(point)
        haystack = grid.haystack(point.context_tokens)
        prompt = question.whole(haystack)
        text = model.detokenize(prompt.trunk + prompt.branch.prompt)
        assert text.count(f"The secret number of the {question.needle} is") == 2
        assert text.count("The secret number of the") == 2
        assert text.count(question.answer) == 1
        assert not prompt.branch.splices
        changed = [i for i, (a, b) in enumerate(zip(haystack, prompt.trunk, strict=True)) if a != b]
        spliced = {i for s in question.branch.splices for i in range(s.position, s.end)}
        assert set(changed) <= spliced


def test_a_needle_begins_after_a_sentence_and_the_haystack_ends_with_one() -> None:
    model = FakeModel()
    grid = NeedleGrid(model, plan())
    for point in plan().points:
        question, haystack = grid.question(point), grid.haystack(point.context_tokens)
        before = model.detokenize(haystack[: question.place])
        assert before == "<s>" or before.endswith(".")
        assert model.detokenize(haystack).endswith(".")
    assert len(list(plan().points)) == 15


@METHODS
def test_prompts_fill_their_length_and_needles_stand_where_planned(method: str) -> None:
    bench = Bench()
    scores = bench.ask(plan(), method=method)  # type: ignore[arg-type]
    assert len(scores) == len(LENGTHS) * len(DEPTHS)
    for score in scores:
        length, depth, _ = score.point
        answer = bench.model.tokenize(f" {score.question.answer}")
        assert length - 60 < score.question.prompt_tokens + len(answer) <= length
        if depth in (0, 100):
            assert score.question.measured_depth == depth
        assert abs(score.question.measured_depth - depth) <= 100 * 60 / length


def test_one_haystack_serves_every_cell_and_sample() -> None:
    bench = Bench()
    bench.ask(plan(samples=4))
    assert bench.tokens < LENGTHS[-1] + 60 * 50


def test_a_further_sample_costs_its_needle_and_question() -> None:
    model = FakeModel()
    few, many = (asking_tokens(plan(samples=n), model) for n in (1, 5))
    assert few < many < few + 4 * 15 * 45


def test_whole_prompts_share_their_beginnings() -> None:
    together = asking_tokens(plan(), FakeModel(), method="whole")
    apart = sum(length * len(DEPTHS) for length in LENGTHS)
    assert together < 0.65 * apart


def test_the_seed_decides_the_haystack_and_the_needles() -> None:
    def prompts(seed: int, samples: int = 2) -> dict[GridPoint, tuple[str, ...]]:
        model = FakeModel()
        chosen = plan(seed=seed, samples=samples)
        grid = NeedleGrid(model, chosen)
        return {
            point: (
                model.detokenize(grid.haystack(point.context_tokens)),
                grid.question(point).needle,
                grid.question(point).answer,
            )
            for point in chosen.points
        }

    one, other, more = prompts(1), prompts(2), prompts(1, samples=3)
    assert len(one) == 30
    assert one == prompts(1)
    assert not set(one.values()) & set(other.values())
    assert {point: more[point] for point in one} == one
    assert len({needle for _, needle, _ in one.values()}) > 25


def test_needles_are_the_same_everywhere() -> None:
    grid = NeedleGrid(FakeModel(), plan(seed=7))
    questions = [grid.question(GridPoint(512, depth, 0)) for depth in DEPTHS]
    assert [(question.needle, question.answer) for question in questions] == [
        ("merry raven", "5608104"),
        ("solemn panther", "2345856"),
        ("calm ladder", "6737645"),
        ("patient otter", "4502969"),
        ("faded pencil", "6729443"),
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


# The task ---------------------------------------------------------------------------------------


def test_each_cell_gets_its_score() -> None:
    results = Bench(horizon=300).run(
        NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2, whole_prompts=0, distractors=2
    )
    asked = Bench(horizon=300).ask(plan(samples=2, distractors=2))
    scores = {score.point: score for score in asked}
    assert len(results) == len(scores) == 30
    for result in results:
        cell = result.cell
        score = scores[GridPoint(cell.context_tokens, cell.depth_percent or 0, cell.sample or 0)]
        assert (result.status, result.reason, cell.method) == ("ok", None, "spliced")
        assert result.value("recall") == score.exact
        assert result.value("top_ranked") == (score.rank == 1)
        assert result.value("rank") == score.rank
        assert result.value("log_probability") == score.log_probability
        assert result.value("measured_depth") == score.question.measured_depth
        assert result.prompt_tokens == score.question.prompt_tokens
        assert dict(result.notes) == {
            "needle": score.question.needle,
            "answer": score.question.answer,
            "format": "completion",
        }
    assert {result.value("recall") for result in results} == {0.0, 1.0}


def whole_of(results: list[CellResult], length: int) -> list[CellResult]:
    return [
        result
        for result in results
        if result.cell.method == "whole" and result.cell.context_tokens == length
    ]


def test_whole_prompts_are_asked_until_the_recall_is_decided() -> None:
    results = Bench(horizon=300).run(
        NEEDLE, contexts=(300, 2048), depths=DEPTHS, samples=12, recall_minimum=0.9
    )
    assert len(results) == 2 * 60 + 2 * 44
    near, far = whole_of(results, 300), whole_of(results, 2048)
    asked = [sum(result.status == "ok" for result in each) for each in (near, far)]
    # Everything is found within 300 tokens, and a fifth of it in 2048.
    assert asked[0] >= 35
    assert 0 < asked[1] < 20
    assert {r.value("recall") for r in near if r.status == "ok"} == {1.0}
    for result in (*near, *far):
        if result.status != "ok":
            assert (result.status, result.reason) == ("skipped", NOT_NEEDED)


def test_whole_prompts_and_spliced_needles_are_twins() -> None:
    results = Bench().run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=1, whole_prompts=3)
    found = {(r.cell.method, r.cell.context_tokens, r.cell.depth_percent): r for r in results}
    whole = [r for r in results if r.cell.method == "whole" and r.status == "ok"]
    assert len(whole) == 9
    for result in whole:
        twin = found["spliced", result.cell.context_tokens, result.cell.depth_percent]
        assert (result.metrics, result.notes) == (twin.metrics, twin.notes)
        assert result.prompt_tokens == twin.prompt_tokens


def test_every_prompt_is_whole_where_that_is_the_mode() -> None:
    results = Bench().run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2, mode="whole")
    assert len(results) == 30
    assert {(r.cell.method, r.status, r.value("recall")) for r in results} == {("whole", "ok", 1)}


@pytest.mark.parametrize("task", [NEEDLE, PASSKEY])
def test_a_context_that_cannot_be_spliced_takes_whole_prompts(task: Task) -> None:
    results = Bench(append_only="the model keeps a recurrent state").run(
        task, contexts=LENGTHS, depths=DEPTHS, samples=2
    )
    spliced = [r for r in results if r.cell.method == "spliced"]
    whole = [r for r in results if r.cell.method == "whole"]
    assert len(spliced) == len(whole) == 30
    assert {(r.status, r.reason) for r in spliced} == {
        ("skipped", "asked in whole prompts only: the model keeps a recurrent state")
    }
    assert {(r.status, r.value("recall")) for r in whole} == {("ok", 1.0)}


@pytest.mark.parametrize("kept", [7, 30, 33])
def test_finished_cells_are_not_measured_again(kept: int) -> None:
    settings = {"contexts": LENGTHS, "depths": DEPTHS, "samples": 2, "recall_minimum": 0.9}
    whole = Bench().run(NEEDLE, **settings)  # type: ignore[arg-type]
    bench = Bench()
    rest = bench.run(NEEDLE, done=whole[:kept], **settings)  # type: ignore[arg-type]
    assert {result.cell: result for result in (*whole[:kept], *rest)} == {
        result.cell: result for result in whole
    }
    assert bench.contexts


def test_a_decode_failure_in_a_fork_is_the_reason_of_its_cell_only() -> None:
    # Evaluate, ask all five together, which fails, then ask each: the third of them fails again.
    bench = Bench(failing_calls=[2, 5])
    results = bench.run(NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=1, whole_prompts=0)
    failed = [result for result in results if result.status == "error"]
    assert len(results) == 15
    assert [(r.cell.context_tokens, r.cell.depth_percent) for r in failed] == [(512, 50.0)]
    assert failed[0].reason == "evaluation failed: call 5 is one of failing_calls"
    assert {r.value("recall") for r in results if r.status == "ok"} == {1.0}
    assert len(bench.contexts) == 1


def test_a_haystack_that_cannot_be_evaluated_is_the_reason_of_its_cells() -> None:
    # Evaluate, ask, evaluate, ask, and the third evaluation fails.
    results = Bench(failing_calls=[5]).run(
        NEEDLE, contexts=LENGTHS, depths=DEPTHS, samples=2, whole_prompts=0
    )
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
    results = Bench().run(
        NEEDLE,
        contexts=LENGTHS,
        depths=DEPTHS,
        open_context=refusing("no room for 2048 tokens"),
    )
    assert len(results) == 3 * (5 * 4 + 20)
    assert {(r.status, r.reason) for r in results} == {("error", "no room for 2048 tokens")}


def test_passkey() -> None:
    bench = Bench()
    results = bench.run(PASSKEY, contexts=LENGTHS, depths=DEPTHS, samples=1, whole_prompts=0)
    assert [result.value("recall") for result in results] == [1.0] * 15
    chosen = plan(needle="passkey")
    grid = NeedleGrid(bench.model, chosen)
    for point in chosen.points:
        question = grid.question(point)
        prompt = question.whole(grid.haystack(point.context_tokens))
        text = bench.model.detokenize(prompt.trunk + prompt.branch.prompt)
        assert text.count(question.answer) == 2


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
        ({"distractors": -1}, "distractors must be 0 or more"),
        ({"value": "poem"}, "unknown kind of value 'poem'"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        NeedlePlan(**{"lengths": LENGTHS, "depths": DEPTHS, **settings})  # type: ignore[arg-type]


def test_a_length_without_room_is_refused_before_anything_runs() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="50 tokens is too short: a needle and its question"):
        bench.run(NEEDLE, contexts=(50, 512), depths=DEPTHS)
    assert not bench.contexts


def test_an_unknown_haystack_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown haystack 'hay'"):
        list(ask(plan(haystack="hay"), FakeModel(), refusing("never opened")))
