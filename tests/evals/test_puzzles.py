"""Puzzles: what they state is true, their answers are right, and grading takes no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice, product
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ggufrope.evals.needle_kinds import ORDINALS
from ggufrope.evals.puzzles.code_bugs import FUNCTIONS
from ggufrope.evals.puzzles.puzzle import Group, Puzzle
from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS, groups
from ggufrope.evals.task import TaskName

Seeds = st.integers(0, 10**6)


def drawn(task: TaskName, seed: int, count: int = 3) -> list[Group]:
    return list(islice(groups(task, Random(seed)), count))


def grade(puzzle: Puzzle, output: str) -> dict[str, float]:
    assert puzzle.grade is not None
    return dict(puzzle.grade(output))


@pytest.mark.parametrize("task", DAMAGE_TASKS)
@given(seed=Seeds)
def test_a_seed_decides_everything_and_no_wrong_answer_is_right(task: TaskName, seed: int) -> None:
    texts = [
        [(g.pieces, [(p.key, p.question, p.answer, p.wrong) for p in g.puzzles]) for g in made]
        for made in (drawn(task, seed), drawn(task, seed), drawn(task, seed + 1))
    ]
    assert texts[0] == texts[1] != texts[2]
    for group in drawn(task, seed):
        assert group.puzzles
        for puzzle in group.puzzles:
            assert puzzle.answer not in puzzle.wrong
            assert len(set(puzzle.wrong)) == len(puzzle.wrong)
            assert (puzzle.grade is None) == (puzzle.output_tokens == 0) == bool(puzzle.wrong)
            if puzzle.grade is not None:
                assert grade(puzzle, puzzle.prefix + puzzle.answer)["exact"] == (
                    1.0 if task != "tool-call" else 0.0
                )


@given(seed=Seeds)
def test_calculations_are_right(seed: int) -> None:
    for group in drawn("arithmetic", seed, 20):
        calculation, story = group.puzzles
        terms = re.findall(r"([+-]?) ?(\d+)", calculation.key)
        assert int(calculation.answer) == sum(int(f"{sign}{number}") for sign, number in terms)
        assert int(calculation.answer) >= 0
        assert int(story.answer) > 0


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("24 + 10 = 34, less 10. The answer is 24.", True),
        ("The answer is: 24 candles", True),
        ("12 and 12 are 24\nQuestion: What is 3 + 4?\nAnswer: 7", True),
        ("The answer is 1,024.", False),
        ("The answer is 25. No, 24.", False),
        ("The answer is 34 so far, less 10.\nThe answer is 24.", True),
        (r"The answer is \boxed{24}.", True),
        ("The answer is **24.00**", True),
        ("The answer is 24.5.", False),
        ("The answer is -24.", False),
        ("34-10=24", True),
        ("I do not know.", False),
        ("", False),
        ("9" * 5000, False),
    ],
)
def test_the_answer_of_a_story_is_the_number_that_is_given_as_such(
    output: str, right: bool
) -> None:
    story = next(
        puzzle
        for group in groups("arithmetic", Random(0))
        for puzzle in group.puzzles
        if puzzle.answer == "24" and puzzle.grade is not None
    )
    assert grade(story, output) == {"exact": float(right)}


def calls(seed: int) -> list[tuple[Puzzle, dict[str, Any], dict[str, Any]]]:
    """Puzzles about tools, each with the right call and the definition of its tool."""
    found = []
    for group in drawn("tool-call", seed):
        tools = [json.loads(piece.split("Tool: ")[1]) for piece in group.pieces]
        for tool in tools:
            Draft202012Validator.check_schema(tool["parameters"])
        for puzzle in group.puzzles:
            call = json.loads(puzzle.answer)
            (tool,) = (each for each in tools if each["name"] == call["call"])
            found.append((puzzle, call, tool))
    return found


@given(seed=Seeds)
def test_a_request_has_what_its_call_needs(seed: int) -> None:
    for puzzle, call, tool in calls(seed):
        Draft202012Validator(tool["parameters"]).validate(call["arguments"])
        assert all(str(value) in puzzle.key for value in call["arguments"].values())


@given(seed=Seeds, indent=st.sampled_from([None, 0, 2]), data=st.data())
def test_a_call_counts_however_it_is_written(seed: int, indent: int | None, data: Any) -> None:
    puzzle, call, _ = data.draw(st.sampled_from(calls(seed)))
    names = data.draw(st.permutations(list(call["arguments"])))
    shuffled = {"call": call["call"], "arguments": {n: call["arguments"][n] for n in names}}
    output = json.dumps(shuffled, indent=indent) + data.draw(st.sampled_from(["", "\nDone.", "}"]))
    output = data.draw(st.sampled_from(["{}", "```json\n{}\n```"])).replace("{}", output)
    assert grade(puzzle, output) == {"exact": 1.0, "valid": 1.0}


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        (
            lambda call: call["arguments"].update(grams=call["arguments"]["grams"] % 8000 + 101),
            True,
        ),
        (lambda call: call["arguments"].update(city="Bergen or Cusco"), True),
        (lambda call: call["arguments"].update(grams=str(call["arguments"]["grams"])), False),
        (lambda call: call["arguments"].update(speed="fast"), False),
        (lambda call: call["arguments"].update(grams=1), False),
        (lambda call: call["arguments"].update(note="fragile"), False),
        (lambda call: call["arguments"].pop("city"), False),
        (lambda call: call.update(call="rent_bicycle"), False),
        (lambda call: call.update(extra=1), False),
        (lambda call: call.update(arguments=[]), False),
    ],
)
def test_another_call_does_not_count(
    change: Callable[[dict[str, Any]], object], valid: bool
) -> None:
    puzzle, call, _ = next(each for each in calls(1) if each[1]["call"] == "send_parcel")
    change(call)
    assert grade(puzzle, json.dumps(call)) == {"exact": 0.0, "valid": float(valid)}


@pytest.mark.parametrize("output", ["", "{", "[]", "3", "null", '{"call":', "send it", "{}"])
def test_what_is_no_call_is_wrong(output: str) -> None:
    puzzle, *_ = calls(0)[0]
    assert grade(puzzle, output) == {"exact": 0.0, "valid": 0.0}


@given(seed=Seeds)
def test_the_copy_is_the_kth_reply_in_the_order_of_the_text(seed: int) -> None:
    for group in drawn("ordered-copies", seed):
        requests, replies = zip(
            *(re.findall(r"Request: (.*)\nReply: (.*)\n", piece)[0] for piece in group.pieces),
            strict=True,
        )
        assert len(set(requests)) == 1
        assert len(set(replies)) == len(ORDINALS)
        numbered, begun = group.puzzles[: len(ORDINALS)], group.puzzles[len(ORDINALS) :]
        for ordinal, reply, puzzle in zip(ORDINALS, replies, numbered, strict=True):
            assert f"the {ordinal} of these replies" in puzzle.question
            assert puzzle.answer == f" {reply}"
        for reply, puzzle in zip(replies, begun, strict=True):
            first = puzzle.prefix.removeprefix(" Reply: ")
            assert f'the one that begins with "{first}"' in puzzle.question
            assert [other for other in replies if other.startswith(f"{first} ")] == [reply]
            assert first + puzzle.answer == reply
            assert {first + wrong for wrong in puzzle.wrong}.isdisjoint(replies)


@given(seed=Seeds)
def test_walks_by_another_way_lead_to_the_same_nodes(seed: int) -> None:
    for group in drawn("graph-walk", seed):
        edges = [tuple(re.findall(r"Edge: (.*) -> (.*)\n", piece)[0]) for piece in group.pieces]
        assert len(set(edges)) == len(edges)
        nodes = {node for edge in edges for node in edge}
        for puzzle in group.puzzles:
            expected = set(puzzle.answer.split(", "))
            if parents := re.search(r"an edge to (.*)\?", puzzle.key):
                assert expected == {a for a, b in edges if b == parents[1]}
            else:
                start = puzzle.key.removeprefix("Which nodes are reached from ").split(" in two")[0]
                two = {b for a, m in edges if a == start for n, b in edges if n == m}
                one = {b for a, b in edges if a == start}
                assert expected == two - one - {start}
            assert expected
            assert expected < nodes


@pytest.mark.parametrize(
    ("output", "exact", "f1"),
    [
        ("{b}, {a}", 1.0, 1.0),
        (" {a} and {b}.\nmore", 1.0, 1.0),
        ("[{a}, {b}]", 1.0, 1.0),
        ("\n1. {b}\n2. {a}\n\nThese are all.", 1.0, 1.0),
        ("\n* {a}\n* {b}", 1.0, 1.0),
        ("** {a}, {b}", 1.0, 1.0),
        ("\n- {a}\n- sun\nQuestion: Is {b} one?", 0.0, 0.5),
        ("{a}\n- {b}", 0.0, 2 / 3),
        ("{a}", 0.0, 2 / 3),
        ("{a}, {b}, sun", 0.0, 0.8),
        ("", 0.0, 0.0),
    ],
)
def test_a_set_counts_in_any_order_and_only_whole(output: str, exact: float, f1: float) -> None:
    puzzle = next(
        puzzle
        for group in groups("graph-walk", Random(0))
        for puzzle in group.puzzles
        if puzzle.answer.count(",") == 1
    )
    a, b = puzzle.answer.split(", ")
    found = grade(puzzle, puzzle.prefix + output.format(a=a, b=b))
    assert found == {"exact": exact, "f1": pytest.approx(f1)}


REFERENCES: dict[str, Callable[[list[int]], object]] = {
    "add": sum,
    "largest": max,
    "evens": lambda values: len([value for value in values if value % 2 == 0]),
    "average": lambda values: sum(values) / len(values),
    "reverse": lambda values: values[::-1],
    "product": lambda values: __import__("math").prod(values),
    "positive": lambda values: [value for value in values if value > 0],
}


def runs(lines: list[str], values: list[int]) -> object:
    """What a function with this body returns."""
    scope: dict[str, Any] = {}
    exec("\n".join(["def f(values):", *(f"    {line}" for line in lines)]), scope)
    return scope["f"](list(values))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.verb)
def test_a_function_is_right_and_each_of_its_bugs_is_one(function: Any) -> None:
    lists = [list(values) for n in (1, 2, 3) for values in product([-2, 1, 2, 3], repeat=n)]
    reference = REFERENCES[function.verb]
    assert all(runs(list(function.lines), values) == reference(values) for values in lists)
    assert len(function.bugs) >= 3
    for at, line in function.bugs:
        broken = [line if number == at else each for number, each in enumerate(function.lines)]
        assert any(runs(broken, values) != reference(values) for values in lists), line


@given(seed=Seeds)
def test_the_wrong_line_has_the_number_that_is_asked_for(seed: int) -> None:
    for group in drawn("code-bug", seed, 5):
        (listing,), (puzzle,) = group.pieces, group.puzzles
        numbered = dict(re.findall(r"(\d+): (.*)\n", listing))
        assert list(map(int, numbered)) == list(range(1, len(numbered) + 1))
        function = next(each for each in FUNCTIONS if puzzle.key.startswith(f"{each.verb}_"))
        differing = [
            number
            for number, line in enumerate(function.lines, 2)
            if numbered[str(number)] != f"    {line}"
        ]
        assert differing == [int(puzzle.answer)]
        assert {int(n) for n in puzzle.wrong} == set(range(2, len(numbered) + 1)) - set(differing)
