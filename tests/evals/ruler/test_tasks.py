"""The thirteen tasks: their structure, their size, and the fake model's answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.ruler.counting import coded_words, common_words
from ggufrope.evals.ruler.niah import niah
from ggufrope.evals.ruler.qa import QuestionSet, read_hotpotqa, read_squad
from ggufrope.evals.ruler.scoring import by_length
from ggufrope.evals.ruler.specs import BY_NAME, RULER_TASKS
from ggufrope.evals.ruler.task import RulerPlan, RulerTask
from ggufrope.evals.ruler.tracing import variable_tracking
from ggufrope.evals.ruler.wording import OURS, our_wording
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, refusing

RECALLABLE = {"niah": {"prefix": "\nAnswer: The secret {kind} of {query} is"}}
"""Wording that repeats the needle, which is what the fake model goes by."""
NEEDLES = tuple(spec.name for spec in RULER_TASKS if spec.family == "niah")


def squad(count: int = 30) -> dict[str, object]:
    paragraphs = [
        {
            "context": f"The river number {n} has its source in the hills of {n}.",
            "qas": [
                {
                    "question": f"Where does river number {n} have its source?",
                    "answers": [{"text": f"the hills of {n}"}, {"text": f"hills of {n}"}],
                },
                {"question": "Unanswerable?", "answers": []},
            ],
        }
        for n in range(count)
    ]
    return {"version": "x", "data": [{"title": "Rivers", "paragraphs": paragraphs}]}


def hotpotqa() -> list[dict[str, object]]:
    return [
        {
            "question": f"Is {n} even?",
            "answer": "yes" if n % 2 == 0 else "no",
            "supporting_facts": [[f"Number {n}", 0], ["Parity", 0]],
            "context": [
                [f"Number {n}", [f"The number {n} is ", "a number."]],
                ["Parity", ["Every other number is even."]],
                [f"Other {n}", ["Nothing to see."]],
            ],
        }
        for n in range(12)
    ]


@pytest.fixture
def question_files(tmp_path: Path) -> tuple[QuestionSet, QuestionSet]:
    first, second = tmp_path / "squad.json", tmp_path / "hotpot.json"
    first.write_text(json.dumps(squad()), encoding="utf-8")
    second.write_text(json.dumps(hotpotqa()), encoding="utf-8")
    return read_squad(first), read_hotpotqa(second)


@pytest.mark.parametrize("length", [1024, 4096])
def test_every_task_fills_its_length(
    length: int, question_files: tuple[QuestionSet, QuestionSet]
) -> None:
    plan = RulerPlan(
        lengths=(length,), samples=2, squad=question_files[0], hotpotqa=question_files[1]
    )
    results = Bench().run(RulerTask(plan))
    assert [r.key for r in results] == [
        f"{spec.name}/{length}/{n}" for spec in RULER_TASKS for n in range(2)
    ]
    for result in results:
        spec = BY_NAME[result.task]
        whole = result.prompt_tokens + spec.output_tokens
        assert whole <= length
        if spec.family != "qa":  # their files are soon used up
            assert whole > length - 250


def test_a_model_that_recalls_scores_full_on_single_needles() -> None:
    single = tuple(
        spec.name
        for spec in RULER_TASKS
        if spec.family == "niah" and spec.values * spec.queries == 1
    )
    plan = RulerPlan(lengths=(1024,), tasks=single, samples=3, templates=RECALLABLE)
    scores = by_length(Bench().run(RulerTask(plan)))[1024]
    assert len(scores.tasks) == 6
    assert scores.value == 100
    assert not scores.complete


def test_a_model_that_sees_little_does_not() -> None:
    plan = RulerPlan(lengths=(1024,), tasks=("niah_single_2",), samples=8, templates=RECALLABLE)
    value = by_length(Bench(horizon=60).run(RulerTask(plan)))[1024].value
    assert value is not None
    assert value < 40


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_as_the_table_has_them(name: str) -> None:
    spec = BY_NAME[name]
    draft = niah(spec, our_wording(spec), Random(3))
    text = draft.context(60)
    statements = re.findall(r"The secret (\w+) of the ([\w -]+?) is ([\w-]+)\.", text)
    keys = Counter(key for _, key, _ in statements)
    assert len(draft.answers) == spec.values * spec.queries
    assert len(set(draft.answers)) == len(draft.answers)
    assert set(draft.answers) <= {value for _, _, value in statements}
    assert len(statements) == spec.keys * spec.values + (60 if spec.haystack == "needle" else 0)
    if spec.haystack != "needle":
        assert set(keys.values()) == {spec.values}
        assert len(keys) == spec.keys
    asked = {key for _, key, value in statements if value in draft.answers}
    assert all(key in draft.fields["query"] for key in asked)
    assert {kind for kind, _, _ in statements} == {
        "code" if spec.value_kind == "uuid" else "number"
    }


def test_a_chain_is_followed_to_its_value() -> None:
    draft = variable_tracking(OURS["vt"], Random(4))
    for units in (0, 3, 500):
        text = draft.context(units)
        steps = re.findall(r"SET (\w+) = (\w+)\.", text)
        assert [name for name, _ in steps] == list(draft.answers)
        assert [source for _, source in steps] == [draft.fields["query"], *draft.answers[:-1]]
    assert len(draft.answers) == 5
    assert not set(re.findall(r"SET (\w+)", draft.example)) & set(draft.answers)
    assert draft.example.rstrip().endswith(", ".join(re.findall(r"SET (\w+)", draft.example)))


@pytest.mark.parametrize(("length", "common", "rest"), [(4096, 30, 3), (4095, 6, 1)])
def test_common_words_are_common(length: int, common: int, rest: int) -> None:
    draft = common_words(OURS["cwe"], Random(5), length)
    numbered = re.findall(r"(\d+)\. ([\w-]+)", draft.context(400))
    counts = Counter(word for _, word in numbered)
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert {counts[word] for word in draft.answers} == {common}
    assert {n for word, n in counts.items() if word not in draft.answers} == {rest}
    assert len(counts) == 410
    assert len(draft.answers) == 10
    singles = [word for word in counts if word not in draft.answers]
    assert not [word for word in singles for answer in draft.answers if answer in word.split("-")]


def test_uncommon_words_never_run_out() -> None:
    draft = common_words(OURS["cwe"], Random(5), 4096)
    words = re.findall(r"\d+\. ([\w-]+)", draft.context(100_000))
    assert len(set(words)) == 100_010


def test_coded_words_follow_zipf() -> None:
    draft = coded_words(BY_NAME["fwe"], Random(6), 8192)
    for units in (draft.least, 1000, 20_000):
        counts = Counter(draft.context(units).split())
        noise, *asked = (word for word, _ in counts.most_common(4))
        assert noise == "..."
        assert tuple(asked) == draft.answers
    assert counts["..."] == pytest.approx(20_000 * 6 / 3.14159**2, rel=0.001)
    assert counts[draft.answers[0]] == pytest.approx(counts["..."] / 4, abs=1)


def test_questions_stand_among_their_documents(
    question_files: tuple[QuestionSet, QuestionSet],
) -> None:
    plan = RulerPlan(
        lengths=(512,),
        tasks=("qa_1", "qa_2"),
        samples=3,
        squad=question_files[0],
        hotpotqa=question_files[1],
    )
    model = FakeModel()
    for cell, sample in RulerTask(plan)._samples(model, ()):
        text = model.detokenize(sample.prompt)
        if cell.spec.name == "qa_1":
            assert f"its source in {sample.answers[0]}." in text
            assert text.count("Document ") > 5
        else:
            assert f"The number {cell.sample} is a number." in text
            assert "Parity\nEvery other number is even." in text


def test_same_seed_same_prompts() -> None:
    def prompts(seed: int) -> list[str]:
        model = FakeModel()
        task = RulerTask(RulerPlan(lengths=(800,), samples=1, seed=seed))
        return [model.detokenize(sample.prompt) for _, sample in task._samples(model, ())]

    assert prompts(1) == prompts(1)
    assert not set(prompts(1)) & set(prompts(2))


def test_finished_samples_are_not_asked_again() -> None:
    task = RulerTask(RulerPlan(lengths=(600,), tasks=("vt", "fwe"), samples=2))
    whole = Bench().run(task)
    rest = Bench().run(task, done={result.key for result in whole[:3]})
    assert [result.key for result in rest] == ["fwe/600/1"]


def test_failures_are_counted_apart() -> None:
    # Each sample takes two calls, so every second one fails, in a context opened anew.
    task = RulerTask(RulerPlan(lengths=(600,), tasks=("vt",), samples=4))
    results = Bench(failing_calls=[4]).run(task)
    assert [r.score.value is None for r in results] == [False, True, False, True]
    assert by_length(results)[600].unscored == 2
    nothing = by_length(task.run(FakeModel(), refusing("too large")))[600]
    assert (nothing.value, nothing.unscored, nothing.tasks) == (None, 4, ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": ()}, "at least 1 token"),
        ({"lengths": (0,)}, "at least 1 token"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"tasks": ("niah",)}, "unknown RULER task 'niah'; expected one of niah_single_1"),
        ({"tasks": ("qa_1",)}, "the RULER task qa_1 needs a squad file"),
        ({"templates": {"vt": {"prompt": "x"}}}, "the field {context} is missing"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RulerPlan(**{"lengths": (1024,), **settings})  # type: ignore[arg-type]


def test_a_length_too_short_is_refused_before_anything_runs() -> None:
    bench = Bench()
    with pytest.raises(
        RequestError, match="150 tokens are too few for the RULER task niah_single_1"
    ):
        bench.run(RulerTask(RulerPlan(lengths=(150,))))
    assert not bench.contexts


def test_without_files_the_question_tasks_are_left_out() -> None:
    assert len(RulerPlan(lengths=(1024,)).specs) == 11


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ({}, "not a SQuAD file: no 'data'"),
        ([], "not a SQuAD file"),
        ({"data": []}, "no question with an answer in it"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "no 'context'"),
        ({"data": [{"paragraphs": [{"context": 5, "qas": []}]}]}, "expected text, found int"),
    ],
)
def test_not_squad(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_squad(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "not a HotpotQA file"),
        ([{"question": "?"}], "not a HotpotQA file: no 'context'"),
        ([{**hotpotqa()[0], "context": [["only a title"]]}], "not a HotpotQA file"),
        ([{**hotpotqa()[0], "answer": None}], "expected text, found NoneType"),
    ],
)
def test_not_hotpotqa(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_hotpotqa(written(tmp_path, content))
