"""Log-probabilities and divergences against the textbook formulas in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufrope.evals.logprobs import compare, log_probabilities


def drawn(seed: int, rows: int, vocabulary: int, scale: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, vocabulary), dtype=np.float32) * np.float32(scale)


def softmax_logs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def test_two_tokens_by_hand() -> None:
    logits = np.log(np.array([[1, 3], [4, 1]], dtype=np.float32))
    found = log_probabilities(logits, np.array([1, 0]))
    assert found == pytest.approx(np.log([0.75, 0.8]), abs=1e-6)


def test_divergence_of_two_coins_by_hand() -> None:
    base = np.log(np.array([[0.5, 0.5]], dtype=np.float32))
    variant = np.log(np.array([[0.25, 0.75]], dtype=np.float32))
    found = compare(base, variant, np.array([0]))
    assert found.divergence[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    assert np.exp([found.base[0], found.variant[0]]) == pytest.approx([0.5, 0.25], abs=1e-6)


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = drawn(1, 40, 9001, 5)
    found = compare(logits, logits, np.zeros(40, dtype=np.int64))
    assert not found.divergence.any()
    assert found.same_top.all()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 70),
    vocabulary=st.sampled_from([2, 128, 9001, 300_000]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    offset=st.sampled_from([0.0, -200.0, 5000.0]),
)
def test_as_the_formulas(
    seed: int, rows: int, vocabulary: int, scale: float, offset: float
) -> None:
    base = drawn(seed, min(rows, 3_000_000 // vocabulary), vocabulary, scale) + np.float32(offset)
    variant = base + drawn(seed + 1, len(base), vocabulary, 0.3)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, len(base))
    p, q = softmax_logs(base), softmax_logs(variant)
    row = np.arange(len(base))

    found = compare(base, variant, tokens)

    assert log_probabilities(base, tokens) == pytest.approx(p[row, tokens], abs=1e-5, rel=1e-6)
    assert found.base == pytest.approx(p[row, tokens], abs=1e-5, rel=1e-6)
    assert found.variant == pytest.approx(q[row, tokens], abs=1e-5, rel=1e-6)
    assert found.divergence == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), abs=2e-6, rel=1e-4)
    assert (found.same_top == (p.argmax(axis=1) == q.argmax(axis=1))).all()
