"""Facts: their words, and that none is mistaken for another."""

from __future__ import annotations

import uuid
from itertools import islice
from random import Random

import pytest

from ggufrope.evals.facts import (
    ADJECTIVES,
    NOUNS,
    WORDS,
    Fact,
    facts,
    listing,
    pass_keys,
)

ONE = Fact(key="quiet harbor", value="1234567")


def test_the_statement_begins_as_the_question_ends() -> None:
    assert ONE.statement == " The secret number of the quiet harbor is 1234567."
    assert ONE.statement == f"{ONE.prefix}{ONE.answer}."
    assert ONE.question == "What is the secret number of the quiet harbor?"


def test_listing() -> None:
    assert [listing(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_keys_never_repeat_and_numbers_neither() -> None:
    made = list(islice(facts(Random(1)), len(ADJECTIVES) * len(NOUNS) + 50))
    assert len({fact.key for fact in made}) == len(made)
    assert len({fact.value for fact in made}) == len(made)
    first = made[: len(NOUNS)]
    assert len({fact.key.split()[1] for fact in first}) == len(NOUNS)


def test_words_repeat_only_when_used_up() -> None:
    made = list(islice(facts(Random(1), "word"), len(WORDS) + 5))
    assert len({fact.value for fact in made[: len(WORDS)]}) == len(WORDS)


def test_uuids_are_uuids() -> None:
    drawn = list(islice(facts(Random(1), "uuid"), 20))
    assert [uuid.UUID(fact.value).version for fact in drawn] == [4] * 20


def test_no_word_is_part_of_another_kind() -> None:
    for words in (ADJECTIVES, NOUNS, WORDS):
        assert len(set(words)) == len(words)
    assert not set(ADJECTIVES) & set(NOUNS)


def test_pass_keys_have_five_digits() -> None:
    made = list(islice(pass_keys(Random(1)), 1000))
    assert len({key.value for key in made}) == 1000
    assert all(len(key.value) == 5 and key.statement.count(key.value) == 2 for key in made)


@pytest.mark.parametrize("kind", ["number", "word", "uuid"])
def test_same_seed_same_facts(kind: str) -> None:
    def drawn(seed: int) -> list[Fact]:
        return list(islice(facts(Random(seed), kind), 30))  # type: ignore[arg-type]

    assert drawn(1) == drawn(1) != drawn(2)
