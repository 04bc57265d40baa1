"""The public fake model: it recalls, it forgets, and its probabilities add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import DecodeError, RequestError
from ggufrope.lm import Branch, LanguageContext, LanguageModel
from ggufrope.runtime.fake import FakeContext, FakeModel

FACT = "The secret of the red fox is 1234567."
QUESTION = " The secret of the red fox is"


def asked(model: FakeModel, filler: int) -> tuple[float, ...]:
    context = FakeContext(model, n_ctx=1000)
    context.extend(model.tokenize(FACT + " blah." * filler))
    branch = Branch(
        prompt=tuple(model.tokenize(QUESTION)),
        answers=(tuple(model.tokenize(" 1234567")), tuple(model.tokenize(" 7654321"))),
    )
    ((right, wrong),) = context.score([branch])
    assert context.position == len(model.tokenize(FACT)) + 2 * filler
    assert right.greedy is (sum(right.log_probabilities) > sum(wrong.log_probabilities))
    return right.log_probabilities


def test_it_fulfills_the_protocols() -> None:
    model: LanguageModel = FakeModel()
    context: LanguageContext = FakeContext(FakeModel(), n_ctx=8)
    assert model.n_vocab == 4096
    assert context.n_ctx == 8


def test_a_fact_within_the_horizon_is_recalled_with_the_confidence() -> None:
    values = asked(FakeModel(horizon=100, confidence=0.9), filler=20)
    assert values == pytest.approx([np.log(0.9)] * 3, abs=1e-6)


def test_a_fact_beyond_the_horizon_is_not_recalled() -> None:
    assert max(asked(FakeModel(horizon=100), filler=60)) < np.log(0.1)


def test_generation_answers_with_the_fact_and_leaves_the_trunk() -> None:
    model = FakeModel()
    context = FakeContext(model, n_ctx=100)
    context.extend(model.tokenize(FACT))
    answer = context.generate(model.tokenize(QUESTION), max_tokens=4)
    assert model.detokenize(answer) == " 1234567."
    assert context.position == len(model.tokenize(FACT))


def test_logits_are_distributions_that_agree_with_scores() -> None:
    model = FakeModel()
    context = FakeContext(model, n_ctx=100, n_batch=4)
    text = model.tokenize(FACT + QUESTION + " 1234567", beginning=True)
    batches = list(context.logits(text))
    assert [len(batch) for batch in batches] == [4] * (len(text) // 4) + [len(text) % 4] * (
        len(text) % 4 > 0
    )
    rows = np.concatenate(batches).astype(np.float64)
    log_probabilities = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    answer = model.tokenize(" 1234567")
    context.rewind(len(text) - len(answer) - 3)
    prompt = tuple(text[-len(answer) - 3 : -len(answer)])
    ((score,),) = context.score([Branch(prompt=prompt, answers=(tuple(answer),))])
    expected = [log_probabilities[len(text) - 1 - len(answer) + i, t] for i, t in enumerate(answer)]
    assert score.log_probabilities == pytest.approx(expected, abs=1e-6)


def test_a_failing_call_raises_and_the_next_works() -> None:
    context = FakeContext(FakeModel(), n_ctx=10, failing_calls=[2])
    context.extend([5])
    with pytest.raises(DecodeError, match="call 2"):
        context.extend([6])
    context.extend([7])
    assert context.position == 2


def test_limits_are_those_of_a_real_context() -> None:
    context = FakeContext(FakeModel(), n_ctx=4)
    with pytest.raises(DecodeError, match="the context holds 4"):
        context.extend([5] * 5)
    with pytest.raises(DecodeError, match="the context holds 4"):
        context.score([Branch(prompt=(5, 5, 5), answers=((5, 5, 5),))])
    with pytest.raises(RequestError, match="cannot rewind to 1"):
        context.rewind(1)


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    model = FakeModel(n_vocab=262)
    assert model.detokenize(model.tokenize(text)) == text


def test_logits_after_the_first_are_those_of_all() -> None:
    model = FakeModel()
    tokens = model.tokenize("one two three four five six seven eight nine")
    every = np.concatenate(list(FakeContext(model, n_ctx=64, n_batch=4).logits(tokens)))
    for skip in (0, 3, 4, 8, len(tokens)):
        context = FakeContext(model, n_ctx=64, n_batch=4)
        some = list(context.logits(tokens, skip=skip))
        assert np.array_equal(np.concatenate([*some, every[:0]]), every[skip:])
        assert context.position == len(tokens)
