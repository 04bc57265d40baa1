"""Whether a cache is safe: every word, its reason, and what would decide it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.evals.cache_verdict import (
    MOST_LOST,
    SAFE_DIVERGENCE,
    UNSAFE_DIVERGENCE,
    CacheEvidence,
    judge_cache,
)
from ggufrope.evals.results import NOT_FINITE, Metric
from ggufrope.evals.stats import ALPHA, exact_interval

FEW = (
    "0.004 nat from f16, but f16 answers only 10 of 120 questions, and up to 26% of such answers "
    "may be lost (safe: at most 10%)"
)


def found(
    value: float, low: float, high: float, answered: int = 80, lost: int = 0, gained: int = 0
) -> CacheEvidence:
    return CacheEvidence(
        divergence=Metric(name="mean_divergence", value=value, low=low, high=high, n=2000),
        asked=120,
        answered=answered,
        lost=lost,
        gained=gained,
    )


def test_what_rounding_does_is_not_laid_to_the_cache() -> None:
    """Twenty thousandths are risky by themselves, and safe where rounding alone does nineteen."""
    rounding = Metric(name="rounding", value=0.019, low=0.0185, high=0.0195)
    plain = found(0.02, 0.0195, 0.0205)
    assert judge_cache(plain).word == "risky"
    safe = judge_cache(replace(plain, rounding=rounding))
    assert safe.word == "safe"
    assert safe.reason.startswith("0.02 nat from f16, 0.001 beyond rounding; loses 0")
    far = judge_cache(replace(found(0.06, 0.059, 0.061), rounding=rounding))
    assert far.word == "unsafe"
    below = judge_cache(replace(found(0.015, 0.0145, 0.0155), rounding=rounding))
    assert ", 0 beyond rounding" in below.reason
    wide = Metric(name="rounding", value=0.019, low=0.009, high=0.029)
    assert judge_cache(replace(plain, rounding=wide)).word == "undecided"


@pytest.mark.parametrize(
    ("evidence", "word", "reason"),
    [
        (
            found(0.004, 0.003, 0.005),
            "safe",
            "0.004 nat from f16; loses 0 of 80 answers and gains 0: at most 4% of such are lost",
        ),
        (found(0.02, 0.019, 0.021), "risky", "0.02 nat from f16 (safe: at most 0.01)"),
        (found(0.05, 0.04, 0.06), "unsafe", "0.05 nat from f16 (unsafe: above 0.03)"),
        (
            found(0.009, 0.007, 0.011),
            "undecided",
            "0.009 nat from f16, 0.007 to 0.011 (safe: at most 0.01)",
        ),
        (
            found(0.004, 0.003, 0.005, lost=20, gained=1),
            "unsafe",
            "loses 20 of 80 answers and gains 1 (unsafe: more than 10%)",
        ),
        (
            found(0.004, 0.003, 0.005, lost=6),
            "risky",
            "loses 6 of 80 answers and gains 0, more than chance would",
        ),
        (
            found(0.004, 0.003, 0.005, answered=10),
            "undecided",
            FEW,
        ),
        (CacheEvidence(), "undecided", "no divergence was measured"),
        (
            CacheEvidence(divergence=Metric(name="mean_divergence", value=0.004)),
            "undecided",
            "0.004 nat from f16; no question was asked of both",
        ),
        (CacheEvidence(unscored="too large"), "undecided", "too large"),
        (CacheEvidence(unscored=NOT_FINITE), "unsafe", NOT_FINITE),
        (
            CacheEvidence(unsupported="heads of 96 values", unscored="x"),
            "unsupported",
            "heads of 96 values",
        ),
    ],
)
def test_words_and_their_reasons(evidence: CacheEvidence, word: str, reason: str) -> None:
    verdict = judge_cache(evidence)
    assert (verdict.word, verdict.reason) == (word, reason)


@given(answered=st.integers(1, 60), lost=st.integers(0, 3))
def test_the_answers_that_would_decide_it_do(answered: int, lost: int) -> None:
    lost = min(lost, answered)
    verdict = judge_cache(found(0.001, 0.001, 0.002, answered, lost=lost))
    if verdict.word != "undecided":
        return
    assert verdict.decide is not None
    needed = int(verdict.decide.split()[0])
    assert needed > answered
    assert exact_interval(lost, needed, ALPHA)[1] <= MOST_LOST
    assert exact_interval(lost, needed - 1, ALPHA)[1] > MOST_LOST
    assert judge_cache(found(0.001, 0.001, 0.002, needed, lost=lost)).word == "safe"


def test_a_model_that_answers_nothing_decides_nothing() -> None:
    verdict = judge_cache(found(0.001, 0.001, 0.002, answered=0))
    assert verdict.word == "undecided"
    assert verdict.decide == "a model that answers them: 29 answers would show it"


@given(
    nats=st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)),
    lost=st.integers(0, 40),
    gained=st.integers(0, 40),
)
def test_more_damage_never_has_a_better_word(
    nats: tuple[float, float], lost: int, gained: int
) -> None:
    order = {"safe": 0, "undecided": 1, "risky": 2, "unsafe": 3}
    less, more = sorted(nats)
    words = [
        judge_cache(found(nat, nat * 0.9, nat * 1.1, lost=lost, gained=gained)).word
        for nat in (less, more)
    ]
    assert order[words[0]] <= order[words[1]]
    worse = judge_cache(found(less, less * 0.9, less * 1.1, lost=lost + 1, gained=gained)).word
    assert order[words[0]] <= order[worse]


def test_safe_is_below_unsafe() -> None:
    assert 0 < SAFE_DIVERGENCE < UNSAFE_DIVERGENCE
