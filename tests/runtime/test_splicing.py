"""Splices in the real runtime, on models with random full-precision weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.errors import DecodeError, RequestError
from ggufrope.lm import AnswerScore, Branch, Splice
from ggufrope.runtime import context as runtime_context
from ggufrope.runtime.batch import decode
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

pytestmark = pytest.mark.llama

F32 = ContextSettings(n_ctx=256, type_k="f32", type_v="f32", n_threads=1)
RANDOM = np.random.default_rng(5)


def draw(count: int) -> tuple[int, ...]:
    return tuple(RANDOM.integers(256, size=count).tolist())


TRUNK, ASK, ANSWERS = draw(120), draw(9), (draw(4), draw(3))


@contextmanager
def opened(
    folder: Path, settings: ContextSettings = F32, architecture: str = "llama", **changes: Any
) -> Iterator[Context]:
    (path,) = build(architecture, folder / "tiny.gguf", **changes)
    with Model.open(path) as model, Context(model, settings) as context:
        context.extend(TRUNK)
        yield context


def branch(*splices: Splice) -> Branch:
    return Branch(prompt=ASK, answers=ANSWERS, splices=splices)


def whole(context: Context, *splices: Splice) -> tuple[AnswerScore, ...]:
    """The scores of the prompt of its own, after which the trunk is as it was."""
    tokens = list(TRUNK)
    for splice in splices:
        tokens[splice.position : splice.end] = splice.tokens
    context.rewind(0)
    context.extend(tokens)
    (scores,) = context.score([branch()])
    context.rewind(0)
    context.extend(TRUNK)
    return scores


def assert_alike(one: Sequence[AnswerScore], other: Sequence[AnswerScore]) -> None:
    assert len(one) == len(other) == len(ANSWERS)
    for a, b in zip(one, other, strict=True):
        assert a.log_probabilities == pytest.approx(b.log_probabilities, rel=1e-3, abs=0.01)
        assert a.greedy == b.greedy


SPLICES = [
    (Splice(position=0, tokens=draw(3)),),
    (Splice(position=50, tokens=draw(20)),),
    (Splice(position=3, tokens=draw(1)), Splice(position=4, tokens=draw(40))),
    (Splice(position=10, tokens=draw(5)), Splice(position=60, tokens=draw(60))),
]


@pytest.mark.parametrize("settings", [F32, replace(F32, n_batch=16, n_ubatch=8)])
def test_with_one_layer_a_splice_is_the_whole_prompt(
    settings: ContextSettings, tmp_path: Path
) -> None:
    """The keys and values of a first layer depend on their own tokens alone, so that nothing is
    lost by not evaluating what stands behind a splice anew."""
    with opened(tmp_path, settings, layers=1) as context:
        scores = context.score([branch(*splices) for splices in SPLICES])
        assert context.position == len(TRUNK)
        plain = context.score([branch()])[0]
        for splices, score in zip(SPLICES, scores, strict=True):
            assert_alike(score, whole(context, *splices))
            assert score[0].log_probabilities != pytest.approx(plain[0].log_probabilities, rel=2e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "cohere2"])
def test_a_splice_up_to_the_end_of_the_trunk_is_the_whole_prompt(
    architecture: str, tmp_path: Path
) -> None:
    with opened(tmp_path, architecture=architecture) as context:
        for length in (1, 30, 120):
            splice = Splice(position=len(TRUNK) - length, tokens=draw(length))
            assert_alike(context.score([branch(splice)])[0], whole(context, splice))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "cohere2"])
def test_a_splice_of_the_trunks_own_tokens_changes_nothing(
    architecture: str, tmp_path: Path
) -> None:
    own = tuple(Splice(position=p, tokens=TRUNK[p : p + n]) for p, n in ((0, 4), (30, 25)))
    with opened(tmp_path, architecture=architecture) as context:
        plain, spliced = context.score([branch(), branch(*own)])
        assert_alike(plain, spliced)


def test_branches_with_many_splices_score_as_each_alone(tmp_path: Path) -> None:
    """More branches than fit in one group, and answers that share a splice."""
    with opened(tmp_path, replace(F32, spare=96)) as context:
        branches = [
            branch(
                Splice(position=7 * n % 90, tokens=draw(1 + n % 13)),
                Splice(position=110, tokens=draw(5)),
            )
            for n in range(40)
        ]
        together = context.score(branches)
        assert len(together) == 40
        for one, scores in zip(branches, together, strict=True):
            assert_alike(context.score([one])[0], scores)


def test_splices_outside_the_trunk_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as context:
        with pytest.raises(RequestError, match="within the 120 tokens of the trunk"):
            context.score([branch(Splice(position=118, tokens=draw(3)))])
        with pytest.raises(RequestError, match="token 999999 is not in the vocabulary"):
            context.score([branch(Splice(position=5, tokens=(999_999,)))])
        assert len(context.score([branch()])[0]) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, DecodeError])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_ends_inside_a_splice_leaves_the_trunk_as_it_was(
    failure: type[BaseException], call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splices = (Splice(position=10, tokens=draw(5)), Splice(position=60, tokens=draw(9)))
    with opened(tmp_path) as context:
        plain, spliced = context.score([branch(), branch(*splices)])
        calls = iter(range(1, 99))

        def failing(*arguments: Any) -> None:
            decode(*arguments)
            if next(calls) == call:
                raise failure("stopped")

        monkeypatch.setattr(runtime_context, "decode", failing)
        with pytest.raises(failure, match="stopped"):
            context.score([branch(*splices)])
        monkeypatch.undo()
        assert context.position == len(TRUNK)
        again, spliced_again = context.score([branch(), branch(*splices)])
        assert_alike(plain, again)
        assert_alike(spliced, spliced_again)


def test_a_cache_that_keeps_only_the_window_can_be_asked_at_its_end(tmp_path: Path) -> None:
    with opened(tmp_path, architecture="gemma3") as context:
        assert context.append_only is None
        expected = context.score([branch()])[0]
    with opened(tmp_path, replace(F32, swa_full=False), "gemma3") as context:
        assert context.append_only == "the cache keeps only the sliding window (swa_full is off)"
        for _ in range(2):
            assert_alike(context.score([branch()] * 3)[2], expected)
        with pytest.raises(DecodeError, match="nothing can be spliced into the trunk: the cache"):
            context.score([branch(Splice(position=5, tokens=draw(3)))])
        with pytest.raises(DecodeError, match="cannot rewind to 60: the cache keeps only"):
            context.rewind(60)
        context.rewind(0)
        context.extend(TRUNK)
        assert_alike(context.score([branch()])[0], expected)
