"""The thirteen tasks: their structure, their size, and the fake model's answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.formats import PromptFormat, prompt_format
from ggufrope.evals.results import Cell, CellResult
from ggufrope.evals.ruler.drafts import coded_words, common_words, niah, variable_tracking
from ggufrope.evals.ruler.qa import read_hotpotqa, read_squad
from ggufrope.evals.ruler.specs import BY_NAME, RULER_TASKS
from ggufrope.evals.ruler.task import RULER, RulerSample, RulerSource, samples
from ggufrope.evals.ruler.wording import OURS, our_wording
from ggufrope.evals.task import RulerSettings, TaskSettings
from ggufrope.runtime.fake import FakeModel
from tests.evals.bench import Bench, cells_of, refusing
from tests.evals.chat_templates import CHATML

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
def question_files(tmp_path: Path) -> tuple[str, str]:
    """Paths of a SQuAD file and a HotpotQA file."""
    first, second = tmp_path / "squad.json", tmp_path / "hotpot.json"
    first.write_text(json.dumps(squad()), encoding="utf-8")
    second.write_text(json.dumps(hotpotqa()), encoding="utf-8")
    return str(first), str(second)


@pytest.fixture
def recallable(tmp_path: Path) -> str:
    """The path of a file of templates with wording that the fake model can answer."""
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(RECALLABLE), encoding="utf-8")
    return str(path)


def drawn(
    *tasks: str, length: int, count: int = 1, seed: int = 0, source: RulerSource | None = None
) -> list[tuple[RulerSample, str]]:
    """The samples of some tasks at a length, and their prompts in words."""
    chosen = tasks or RulerSettings().parts
    cells = [
        Cell(
            model="fake",
            scaling="file",
            kv="f16",
            task="ruler",
            context_tokens=length,
            seed=seed,
            part=name,
            sample=number,
        )
        for name in chosen
        for number in range(count)
    ]
    model = FakeModel()
    found = list(samples(PromptFormat(model=model), cells, source or RulerSource(seed=seed)))
    assert [sample.cell for sample in found] == cells
    return [(sample, model.detokenize(sample.prompt)) for sample in found]


def mean_score(results: list[CellResult]) -> float:
    scores = [result.value("score") for result in results]
    assert None not in scores
    return sum(score or 0 for score in scores) / len(scores)


@pytest.mark.parametrize("length", [1024, 4096])
def test_every_task_fills_its_length(length: int, question_files: tuple[str, str]) -> None:
    settings = RulerSettings(squad=question_files[0], hotpotqa=question_files[1])
    results = Bench().run(RULER, contexts=(length,), samples=2, ruler=settings)
    assert [(r.cell.part, r.cell.context_tokens, r.cell.sample) for r in results] == [
        (spec.name, length, n) for spec in RULER_TASKS for n in range(2)
    ]
    for result in results:
        spec = BY_NAME[result.cell.part or ""]
        whole = (result.prompt_tokens or 0) + spec.output_tokens
        assert whole <= length
        if spec.family != "qa":  # their files are soon used up
            assert whole > length - 250


def test_a_model_that_recalls_scores_full_on_single_needles(recallable: str) -> None:
    single = tuple(
        spec.name
        for spec in RULER_TASKS
        if spec.family == "niah" and spec.values * spec.queries == 1
    )
    settings = RulerSettings(tasks=single, templates=recallable)
    results = Bench().run(RULER, contexts=(1024,), samples=3, ruler=settings)
    assert len(single) == 6
    assert [result.value("score") for result in results] == [1.0] * 18
    for result in results:
        notes = dict(result.notes)
        assert notes["answers"] in notes["output"]


def test_chat_models_are_asked_in_their_template(recallable: str) -> None:
    bench = Bench()
    bench.model = FakeModel(chat_template=CHATML)
    settings = RulerSettings(tasks=("niah_single_1", "niah_multikey_1"), templates=recallable)
    results = bench.run(RULER, contexts=(600, 1024), samples=2, ruler=settings)
    assert [result.value("score") for result in results] == [1.0] * 8
    for result in results:
        assert dict(result.notes)["format"] == "chat"
        used = (result.prompt_tokens or 0) + 128
        assert result.cell.context_tokens - 25 < used <= result.cell.context_tokens
    (sample,) = samples(prompt_format(bench.model), [results[0].cell], RulerSource())
    text = bench.model.detokenize(sample.prompt)
    assert re.fullmatch(
        r"<s><\|im_start\|>user\nSomewhere in the following text .*Question: [^\n]*"
        r"<\|im_end\|>\n<\|im_start\|>assistant\nAnswer: The secret number of .* is",
        text,
        flags=re.DOTALL,
    )


def test_a_model_that_sees_little_does_not(recallable: str) -> None:
    settings = RulerSettings(tasks=("niah_single_2",), templates=recallable)
    results = Bench(horizon=60).run(RULER, contexts=(1024,), samples=8, ruler=settings)
    assert len(results) == 8
    assert mean_score(results) < 0.4


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


def test_questions_stand_among_their_documents(question_files: tuple[str, str]) -> None:
    settings = RulerSettings(squad=question_files[0], hotpotqa=question_files[1])
    source = RulerSource.read(settings, seed=42)
    for sample, text in drawn("qa_1", "qa_2", length=512, count=3, source=source):
        if sample.spec.name == "qa_1":
            assert f"its source in {sample.answers[0]}." in text
            assert text.count("Document ") > 5
        else:
            assert f"The number {sample.cell.sample} is a number." in text
            assert "Parity\nEvery other number is even." in text


def test_same_seed_same_prompts() -> None:
    def prompts(seed: int) -> list[str]:
        return [text for _, text in drawn(length=1000, seed=seed)]

    assert len(prompts(1)) == 11
    assert prompts(1) == prompts(1)
    assert not set(prompts(1)) & set(prompts(2))


def test_finished_samples_are_not_measured_again() -> None:
    settings = RulerSettings(tasks=("vt", "fwe"))
    whole = Bench().run(RULER, contexts=(600,), samples=2, ruler=settings)
    rest = Bench().run(RULER, contexts=(600,), samples=2, ruler=settings, done=whole[:3])
    assert [result.prompt_tokens for result in rest] == [whole[3].prompt_tokens]
    assert dict(rest[0].notes)["answers"] == dict(whole[3].notes)["answers"]
    assert [(result.cell.part, result.cell.sample) for result in rest] == [("fwe", 1)]


def test_failures_are_the_reason_of_their_samples() -> None:
    # Each sample takes two calls, so every second one fails, in a context opened anew.
    settings = RulerSettings(tasks=("vt",))
    results = Bench(failing_calls=[4]).run(RULER, contexts=(600,), samples=4, ruler=settings)
    assert [r.value("score") is None for r in results] == [False, True, False, True]
    assert [r.status for r in results] == ["ok", "error", "ok", "error"]
    assert results[1].reason == "evaluation failed: call 4 is one of failing_calls"
    nothing = Bench(failing_calls=[1]).run(
        RULER, contexts=(600,), samples=4, ruler=settings, open_context=refusing("too large")
    )
    assert [(r.status, r.reason) for r in nothing] == [("error", "too large")] * 4


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("niah",), "unknown RULER task 'niah'; expected some of niah_single_1"),
        (("qa_1",), "the RULER task qa_1 needs a squad file"),
        (("vt", "qa_2"), "the RULER task qa_2 needs a hotpotqa file"),
        (("niah", "qa_2"), "unknown RULER task 'niah'.*; the RULER task qa_2 needs"),
    ],
)
def test_nonsense_is_refused(tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RulerSettings(tasks=tasks)


def test_an_invalid_template_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text('{"vt": {"prompt": "x"}}', encoding="utf-8")
    bench = Bench()
    with pytest.raises(RequestError, match=r"the field \{context\} is missing"):
        bench.run(RULER, contexts=(1024,), ruler=RulerSettings(templates=str(path)))
    assert not bench.contexts


def test_a_question_task_needs_its_data() -> None:
    with pytest.raises(RequestError, match="the RULER task qa_1 needs a squad file"):
        drawn("qa_1", length=1024)


def test_a_task_that_does_not_fit_a_length_is_skipped_and_the_others_are_measured() -> None:
    settings = RulerSettings(tasks=("niah_single_1", "niah_single_3"))
    results = Bench().run(RULER, contexts=(195, 400), ruler=settings)
    assert [(r.cell.part, r.cell.context_tokens, r.status) for r in results] == [
        ("niah_single_3", 195, "skipped"),
        ("niah_single_1", 195, "ok"),
        ("niah_single_1", 400, "ok"),
        ("niah_single_3", 400, "ok"),
    ]
    skipped, *measured = results
    assert skipped.reason == (
        "195 tokens are too few for the shortest prompt and its answer of niah_single_3 (217)"
    )
    assert not skipped.metrics
    assert all(result.value("score") is not None for result in measured)


def test_what_does_not_fit_is_found_before_anything_runs() -> None:
    bench = Bench()
    results = bench.run(RULER, contexts=(150,))
    assert {result.status for result in results} == {"skipped"}
    (reason,) = {result.reason for result in results}  # one line for a whole length
    assert "niah_single_1 (195), niah_single_2 (" in (reason or "")
    assert not bench.contexts


def test_without_files_the_question_tasks_are_left_out() -> None:
    cells = cells_of(RULER, TaskSettings(), (1024,))
    assert len(cells) == len({cell.part for cell in cells}) == 11


def test_chosen_tasks_come_in_rulers_order() -> None:
    assert RulerSettings(tasks=("fwe", "vt", "niah_single_1")).parts == (
        "niah_single_1",
        "vt",
        "fwe",
    )


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
