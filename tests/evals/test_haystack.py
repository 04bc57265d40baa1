"""Weaving facts into filler, and the filler itself."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.evals import corpus
from ggufrope.evals.facts import ADJECTIVES, NOUNS
from ggufrope.evals.haystack import Filler, Insert, sentences, weave
from ggufrope.evals.needle_prompts import NeedleGrid, NeedlePlan
from ggufrope.runtime.fake import FakeModel


def filler(*lengths: int) -> Filler:
    """Sentences of so many tokens, round and round."""
    texts = (" a" * n for n in lengths * 1000)
    return Filler(FakeModel(), texts)


def test_a_fact_goes_in_before_its_target() -> None:
    woven = weave(filler(5), [Insert(target=12, tokens=(7, 7, 7))], 20)
    assert woven.starts == (10,)
    assert woven.tokens[10:13] == (7, 7, 7)
    assert woven.boundaries == (0, 5, 10, 13, 18)
    assert woven.cut(20) == 18
    assert woven.cut(17) == 13


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    gaps=st.lists(st.integers(6, 60), max_size=6),
)
def test_no_fact_starts_late_and_none_is_cut(lengths: list[int], gaps: list[int]) -> None:
    targets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    inserts = [Insert(target=target, tokens=(-1,) * 6) for target in targets]
    room = sum(gaps) + 30
    woven = weave(filler(*lengths), inserts, room)
    assert len(woven.tokens) <= room
    for start, target in zip(woven.starts, targets, strict=True):
        assert target - max(lengths) < start <= target
        assert woven.tokens[start : start + 6] == (-1,) * 6


@pytest.mark.parametrize("kind", ["noise", "essay"])
def test_own_haystacks_hold_no_key_and_no_digit(kind: str) -> None:
    made = corpus.noise(Random(1)) if kind == "noise" else corpus.essay(Random(1))
    text = "".join(islice(made, 2000)).lower()
    words = set(text.replace(".", " ").replace(",", " ").split())
    assert not any(character.isdigit() for character in text)
    assert not {f"{a} {n}" for a in ADJECTIVES for n in NOUNS if f" {a} {n} " in text}
    assert len(words) > 10


def test_same_seed_same_haystack() -> None:
    first, again, other = (
        tuple(islice(sentences("essay", Random(seed), None), 50)) for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_text_without_words_is_refused() -> None:
    with pytest.raises(RequestError, match="haystack text is empty"):
        sentences("text", Random(1), " \n ")


def test_a_vocabulary_without_the_words_is_refused() -> None:
    class Mute(FakeModel):
        def tokenize(
            self, text: str, *, beginning: bool = False, special: bool = False
        ) -> list[int]:
            return []

    with pytest.raises(RequestError, match="vocabulary has no tokens"):
        Filler(Mute(), corpus.noise(Random(1)))[0]


@pytest.mark.parametrize("text", ["word " * 3000, "x" * 20_000, "one, two; " * 2000])
def test_a_text_without_sentence_ends_has_places_for_needles(text: str) -> None:
    pieces = list(islice(corpus.from_text(text), 30))
    assert all(len(piece) <= 402 and piece.startswith(" ") for piece in pieces)
    assert text.replace(" ", "").startswith("".join(pieces).replace(" ", ""))
    plan = NeedlePlan(lengths=(2048,), depths=(0, 30, 60, 100), haystack="text", text=text)
    grid = NeedleGrid(FakeModel(), plan)
    places = [grid.question(point).place for point in plan.points]
    assert places == sorted(set(places))
