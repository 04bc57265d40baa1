"""Kinds of needles: what they state, what they ask, and that nothing gives an answer away."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.evals import corpus
from ggufrope.evals.facts import ADJECTIVES, NOUNS, WORDS, NeedleKind, ValueKind, facts
from ggufrope.evals.needle import NEEDLE, ask, recall
from ggufrope.evals.needle_kinds import (
    ORDINALS,
    STATED,
    LatentGroup,
    Needle,
    latent_table,
    needles,
)
from ggufrope.evals.needle_prompts import NeedleGrid, NeedlePlan
from ggufrope.evals.task import TaskSettings
from ggufrope.runtime.context import Context
from ggufrope.runtime.fake import FakeModel
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from tests.evals.bench import Bench

KINDS: tuple[NeedleKind, ...] = get_args(NeedleKind)
HARDER = KINDS[1:]
GROUPS = latent_table().groups
STOP_WORDS = frozenset(
    """a an the of to in on at by for from with without and or is are be was been has have had it
    its that who which what as into out up off over under through after against until whenever all
    any each every everyone something exactly""".split()
)


def drawn(kind: NeedleKind, count: int, seed: int = 1, **options: object) -> list[Needle]:
    return list(islice(needles(kind, Random(seed), **options), count))  # type: ignore[arg-type]


def content_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def alike(one: str, other: str) -> bool:
    """Whether two words may have one stem: equal in four letters, or in all of the shorter."""
    return one[:4] == other[:4] or (
        min(len(one), len(other)) == 3 and (one.startswith(other) or other.startswith(one))
    )


@cache
def haystack_words() -> set[str]:
    sentences = [*corpus.NOISE, *islice(corpus.essay(Random(0)), 5000)]
    return {word for sentence in sentences for word in re.findall(r"\w+", sentence.lower())}


def questions_of(group: LatentGroup) -> list[str]:
    return [each.format(clue=clue) for each in group.questions for _, clue in group.links]


def statements_of(group: LatentGroup) -> list[str]:
    return [each.format(name="", fact=fact) for each in group.statements for fact, _ in group.links]


def test_a_standard_needle_is_a_fact() -> None:
    fact = next(facts(Random(3)))
    assert drawn("standard", 1, seed=3) == [
        Needle(
            key=fact.key,
            statements=(fact.statement,),
            question=f"What is the secret number of the {fact.key}?",
            prefix=f" The secret number of the {fact.key} is",
            answer=f" {fact.value}",
        )
    ]


def test_a_pass_key_is_stated_twice() -> None:
    needle = next(needles("passkey", Random(3), distractors=4))
    value = needle.answer
    assert needle.statements == (
        f" The pass key is{value}. Keep it in mind:{value} is the pass key.",
    )
    assert (needle.question, needle.prefix) == ("What is the pass key?", " The pass key is")
    assert len({value, *needle.wrong}) == 5
    assert all(re.fullmatch(r" \d{5}", answer) for answer in (value, *needle.wrong))


def test_no_word_of_a_confusable_key_is_its_own() -> None:
    for needle in drawn("confusable", 50):
        keys = [re.findall(r"of the (\w+) (\w+) is", text)[0] for text in needle.statements]
        for words in zip(*keys, strict=True):
            assert sorted(words.count(word) for word in words) == [2, 2, 2, 2]
        assert len(set(keys)) == STATED
        assert needle.key == " ".join(keys[needle.at])
        assert f"{needle.prefix}{needle.answer}." == needle.statements[needle.at]


def test_confusable_keys_keep_the_counter_of_a_key_used_before() -> None:
    needle = drawn("confusable", len(ADJECTIVES) * len(NOUNS) + 1)[-1]
    assert needle.key.endswith(" 2")
    assert all(" 2 is " in text for text in needle.statements)


def test_values_are_asked_for_in_the_order_of_the_text() -> None:
    for needle in drawn("values", 50):
        stated = [text.split()[-1].rstrip(".") for text in needle.statements]
        assert needle.answer == f" {', '.join(stated)}"
        for answer in needle.wrong:
            assert sorted(re.findall(r"\d+", answer)) == sorted(stated)


def test_ordered_copies_differ_only_in_their_values() -> None:
    asked = []
    for needle in drawn("ordered", 50):
        stated = [text.split()[-1].rstrip(".") for text in needle.statements]
        assert {text.rpartition(" ")[0] for text in needle.statements} == {
            needle.statements[0].rpartition(" ")[0]
        }
        assert needle.answer == f" {stated[needle.at]}"
        assert ORDINALS[needle.at] in needle.question
        assert ORDINALS[needle.at] in needle.prefix
        asked.append(needle.at)
    assert set(asked) == set(range(STATED))


def test_latent_answers_follow_from_the_table() -> None:
    for needle in drawn("latent", 200):
        theme = next(group for group in GROUPS if needle.key in questions_of(group))
        link = next(
            (fact, clue)
            for fact, clue in theme.links
            if any(needle.key == each.format(clue=clue) for each in theme.questions)
        )
        assert link[0] in needle.statements[needle.at]
        assert needle.statements[needle.at].count(needle.answer) == 1
        stated = [text for text in needle.statements if needle.answer in text]
        assert len(stated) == 1
        assert needle.question == f"What is the first name of the person who {needle.key}?"
        assert needle.prefix == f" The first name of the person who {needle.key} is"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", get_args(ValueKind))
def test_every_needle_is_well_formed(kind: NeedleKind, value: ValueKind) -> None:
    for needle in drawn(kind, 100, value_kind=value, distractors=6):
        assert len(needle.statements) == (1 if kind == "standard" else STATED)
        assert len(set(needle.statements)) == len(needle.statements)
        for text in needle.statements:
            assert re.fullmatch(r" [^ \n].*\.", text)
        for text in (needle.prefix, needle.answer, *needle.wrong):
            assert re.fullmatch(r" [^ \n].*[^ .]", text)
        assert re.fullmatch(r"[A-Z].*[?.]", needle.question)
        assert len({needle.answer, *needle.wrong}) == 7
        words = needle.answer.strip().split(", ")
        assert all(sum(word in text for text in needle.statements) == 1 for word in words)


@pytest.mark.parametrize("kind", HARDER)
def test_the_first_wrong_answers_are_what_the_other_statements_suggest(kind: NeedleKind) -> None:
    for needle in drawn(kind, 20):
        assert len(needle.wrong) == STATED - 1
        if kind != "values":
            for answer in needle.wrong:
                assert any(answer in text for text in needle.statements)


def test_distractors_do_not_change_which_needles_are_drawn() -> None:
    for kind in KINDS:
        few, many = drawn(kind, 20), drawn(kind, 20, distractors=9)
        assert [n.statements for n in few] == [n.statements for n in many]
        assert all(len(n.wrong) == 9 for n in many)
        assert all(n.wrong[: len(f.wrong)] == f.wrong for f, n in zip(few, many, strict=True))


def test_there_are_no_more_wrong_answers_than_values() -> None:
    assert len(drawn("standard", 1, value_kind="word", distractors=500)[0].wrong) == len(WORDS) - 1
    assert len(drawn("values", 1, distractors=500)[0].wrong) == 23
    assert len(drawn("latent", 1, distractors=500)[0].wrong) == len(latent_table().names) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_needles_repeat_only_when_used_up(kind: NeedleKind) -> None:
    links = [link for group in GROUPS for link in group.links]
    count = len(links) if kind == "latent" else 1000
    made = drawn(kind, count)
    assert len({needle.key for needle in made}) == count
    if kind == "latent":
        names = len(latent_table().names)
        assert len({needle.answer for needle in made[:names]}) == names
    else:
        assert len({needle.answer for needle in made}) == count


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("standard", "4f3bdb8eddce17f4"),
        ("confusable", "4ab178f9ae7076bc"),
        ("values", "4807cd79408ddf8f"),
        ("latent", "d99653639b46feb2"),
        ("ordered", "0ef4a70d7e5cca6b"),
    ],
)
def test_the_same_seed_draws_the_same_needles_on_every_machine(
    kind: NeedleKind, digest: str
) -> None:
    made = drawn(kind, 50, seed=7, distractors=5)
    assert hashlib.sha256(repr(made).encode()).hexdigest()[:16] == digest
    assert made != drawn(kind, 50, seed=8, distractors=5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_or_key_is_in_a_haystack(kind: NeedleKind) -> None:
    haystack = haystack_words()
    assert len(haystack) > 100
    for needle in drawn(kind, 400, value_kind="word"):
        assert not haystack & set(re.findall(r"\w+", needle.answer.lower()))
    assert not haystack & {*ADJECTIVES, *NOUNS, "secret", "number", "word", "code", "note"}


@given(
    depth=st.floats(min_value=0, max_value=100),
    at=st.integers(min_value=0, max_value=STATED - 1),
    count=st.integers(min_value=1, max_value=STATED),
)
def test_statements_stand_in_order_around_the_depth(depth: float, at: int, count: int) -> None:
    at = min(at, count - 1)
    statements = tuple(f" {i}." for i in range(count))
    needle = Needle(
        key="", statements=statements, at=at, question="", prefix="", answer=" 1", wrong=()
    )
    depths = needle.depths(depth)
    assert len(depths) == count
    assert depths[at] == depth
    assert list(depths) == sorted(depths)
    assert 0 <= depths[0] <= depths[-1] <= 100
    if 1 < depth < 99:
        assert len(set(depths)) == count


def test_there_are_enough_latent_facts() -> None:
    assert sum(len(group.links) for group in GROUPS) >= 240
    assert all(len(group.links) > STATED for group in GROUPS)
    assert all(min(len(group.statements), len(group.questions)) >= 2 for group in GROUPS)


def test_no_latent_wording_repeats() -> None:
    every = [text for group in GROUPS for text in (*statements_of(group), *questions_of(group))]
    assert len(set(every)) == len(every)
    facts_stated = [fact for group in GROUPS for fact, _ in group.links]
    assert len(set(facts_stated)) == len(facts_stated)
    for group in GROUPS:
        assert len({clue for _, clue in group.links}) == len(group.links)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.theme)
def test_a_latent_question_shares_no_content_word_with_any_statement(group: LatentGroup) -> None:
    """Not with its own, and not with the others of its theme, which would mislead by a word."""
    asked = {word for text in questions_of(group) for word in content_words(text)}
    asked |= {"first", "name", "person"}
    stated = {word for text in statements_of(group) for word in content_words(text)}
    assert asked
    assert stated
    assert [(a, b) for a in sorted(asked) for b in sorted(stated) if alike(a, b)] == []


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.theme)
def test_no_content_word_of_a_latent_fact_is_in_a_haystack(group: LatentGroup) -> None:
    words = content_words(" ".join((*statements_of(group), *questions_of(group))))
    assert len(words) > 100
    assert not haystack_words() & set(words)


def test_the_check_for_shared_words_finds_them() -> None:
    assert alike("bee", "beekeeper")
    assert alike("bakes", "baker")
    assert alike("porto", "portugal")
    assert not alike("one", "once")
    assert not alike("watt", "watson")


def test_a_name_is_no_other_word() -> None:
    names = latent_table().names
    texts = [*ADJECTIVES, *NOUNS, *WORDS, *haystack_words()]
    texts += [text for group in GROUPS for text in (*statements_of(group), *questions_of(group))]
    others = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    assert len(set(names)) == len(names) >= 100
    assert not others & {name.lower() for name in names}
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in names)
    assert not [(a, b) for a in names for b in names if a != b and a.startswith(b)]


def test_a_fact_and_its_latent_theme_are_plain_text() -> None:
    for group in GROUPS:
        for text in (*statements_of(group), *questions_of(group)):
            assert text.isascii()
            assert "{" not in text


# In a haystack ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HARDER)
@pytest.mark.parametrize("length", [512, 2048])
def test_the_statements_stand_in_the_order_of_the_text(kind: NeedleKind, length: int) -> None:
    depths = (0, 3, 20, 50, 80, 99, 100)
    plan = NeedlePlan(lengths=(length,), depths=depths, samples=4, needle=kind)
    model = FakeModel()
    grid = NeedleGrid(model, plan)
    points = list(plan.points)
    assert len(points) == 28
    for point in points:
        question = grid.question(point)
        prompt = question.whole(grid.haystack(length))
        text = model.detokenize(prompt.trunk + prompt.branch.prompt)
        needle = next(needles(kind, Random(f"{plan.seed}/{point}")))
        places = [text.index(statement) for statement in needle.statements]
        assert places == sorted(places)
        assert all(text.count(statement) == 1 for statement in needle.statements)
        asked = needle.statements[needle.at]
        share = 100 * places[needle.at] / (text.index("\nQuestion: ") - len(asked))
        assert abs(share - point.depth_percent) < 100 * 80 / length
        assert abs(share - question.measured_depth) < 100 * 40 / length
        assert text.endswith(f"\nQuestion: {needle.question}\nAnswer:{needle.prefix}")
        longest = max(map(len, question.branch.answers))
        assert length - 320 < question.prompt_tokens + longest <= length


@pytest.mark.parametrize("kind", HARDER)
def test_statements_are_far_apart(kind: NeedleKind) -> None:
    plan = NeedlePlan(lengths=(4096,), depths=(50,), samples=8, needle=kind)
    grid = NeedleGrid(FakeModel(), plan)
    for point in plan.points:
        places = [splice.position for splice in grid.question(point).branch.splices]
        assert len(places) == STATED
        gaps = [after - before for before, after in pairwise(places)]
        assert min(gaps) > 4096 / 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", get_args(ValueKind))
def test_every_kind_is_measured(kind: NeedleKind, value: ValueKind) -> None:
    if kind == "latent" and value != "number":
        with pytest.raises(RequestError, match="the answers to latent needles are names"):
            TaskSettings(needle=kind, value=value)
        return
    contexts, depths = (1024, 2048), (0, 50, 100)
    results = Bench().run(
        NEEDLE, contexts=contexts, depths=depths, samples=2, needle=kind, value=value
    )
    assert len(results) == 2 * 2 * 6
    assert {result.cell.part for result in results} == {None if kind == "standard" else kind}
    names = {metric.name for result in results for metric in result.metrics}
    assert ("top_ranked" in names) == (kind != "standard")
    scored = {
        (result.cell.context_tokens, result.cell.depth_percent, result.cell.sample): result
        for result in results
        if result.cell.method == "spliced"
    }
    assert len(scored) == 12
    for result in results:
        twin = scored[result.cell.context_tokens, result.cell.depth_percent, result.cell.sample]
        if result.status == "ok":
            assert result.notes == twin.notes


def test_a_model_that_copies_the_longest_match_tells_confusable_keys_apart() -> None:
    plan = NeedlePlan(lengths=(1024,), depths=(0, 50, 100), samples=4, needle="confusable")
    scores = Bench().ask(plan)
    assert len(scores) == 12
    assert all(score.exact and score.rank == 1 for score in scores)


@pytest.mark.parametrize("kind", ["latent", "ordered"])
def test_a_model_that_copies_the_longest_match_fails_where_words_do_not_match(
    kind: NeedleKind,
) -> None:
    plan = NeedlePlan(lengths=(1024,), depths=(0, 50, 100), samples=8, needle=kind)
    scores = Bench().ask(plan)
    assert len(scores) == 24
    assert sum(score.exact is True for score in scores) < 12


@pytest.mark.llama
def test_nano_mixes_up_keys_that_share_a_word(nano: Path) -> None:
    """It finds every standard needle within its context, and half of the confusable ones."""
    depths = tuple(range(0, 101, 10))
    found = {}
    with Model.open(nano) as model:
        for kind in ("standard", "confusable"):
            plan = NeedlePlan(lengths=(256,), depths=depths, samples=4, needle=kind)
            scores = ask(plan, model, lambda n: Context(model, ContextSettings(n_ctx=n)))
            found[kind] = recall(scores).exact
    assert found["standard"].value == 1
    assert found["confusable"].n == 44
    assert found["confusable"].high is not None
    assert found["confusable"].high < 0.8


def test_a_length_without_room_for_four_statements_is_refused() -> None:
    for kind in HARDER:
        plan = NeedlePlan(lengths=(96,), depths=(50,), needle=kind)
        with pytest.raises(RequestError, match="96 tokens is too short: a needle and its"):
            NeedleGrid(FakeModel(), plan)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown kind of needle 'easy': expected passkey, stan"):
        NeedlePlan(lengths=(512,), depths=(50,), needle="easy")  # type: ignore[arg-type]
