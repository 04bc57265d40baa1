"""Whether a KV cache is safe: the evidence on one pair of cache types, compared with f16.

Two things are judged, and the worse counts: how far the next tokens are from those with an f16
cache under the same scaling, and how many answers are lost that f16 gives. docs/kv-cache.md has the
limits and where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, hypot
from typing import Literal, TypeAlias

from ggufrope._bisect import largest
from ggufrope.evals.results import NOT_FINITE, Metric
from ggufrope.evals.stats import ALPHA, exact_interval, sign_test

Safety: TypeAlias = Literal["safe", "risky", "unsafe", "undecided", "unsupported"]

SAFE_DIVERGENCE = 0.01
"""Nat per token: less than q5_K_M weights cost Llama 3 8B (0.0108, llama.cpp's own table)."""
UNSAFE_DIVERGENCE = 0.03
"""Nat per token: as much as q4_K_M weights cost it (0.0313)."""
MOST_LOST = 0.1
"""Share of the answers with f16 that a safe cache may lose."""
_MOST_ANSWERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvidence:
    """What was measured of one pair of cache types at one length.

    `divergence` is from f16, nat per token, and `rounding` what of it rounding alone does, None
    where that was not measured. Of the questions that both were asked, f16 answers
    `answered` exactly; this pair loses `lost` of them, and answers `gained` others. `unscored` says
    why something has no score, `unsupported` why the pair does not run.
    """

    divergence: Metric | None = None
    rounding: Metric | None = None
    asked: int = 0
    answered: int = 0
    lost: int = 0
    gained: int = 0
    unscored: str | None = None
    unsupported: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheVerdict:
    """A word, why, and what would decide it where it is undecided."""

    word: Safety
    reason: str
    decide: str | None = None


def judge_cache(found: CacheEvidence) -> CacheVerdict:
    """Return whether a pair of cache types is safe to use in the place of f16."""
    if found.unsupported is not None:
        return CacheVerdict(word="unsupported", reason=found.unsupported)
    if found.unscored == NOT_FINITE:
        return CacheVerdict(word="unsafe", reason=NOT_FINITE)
    if found.unscored is not None:
        return CacheVerdict(word="undecided", reason=found.unscored)
    nat = found.divergence
    if nat is None or nat.value is None:
        return CacheVerdict(word="undecided", reason="no divergence was measured")
    cost, low, high = _beyond(nat.value, nat, found.rounding)
    loses = found.lost > found.gained and sign_test(found.lost, found.gained) < ALPHA
    net = (found.lost - found.gained) / found.answered if found.answered else 0.0
    strays = f"{nat.value:.3g} nat from f16"
    if found.rounding is not None:
        strays += f", {cost:.3g} beyond rounding"
    answers = f"loses {found.lost} of {found.answered} answers and gains {found.gained}"
    if low > UNSAFE_DIVERGENCE:
        return CacheVerdict(word="unsafe", reason=f"{strays} (unsafe: above {UNSAFE_DIVERGENCE:g})")
    if loses and net > MOST_LOST:
        return CacheVerdict(word="unsafe", reason=f"{answers} (unsafe: more than {MOST_LOST:.0%})")
    if low > SAFE_DIVERGENCE:
        return CacheVerdict(word="risky", reason=f"{strays} (safe: at most {SAFE_DIVERGENCE:g})")
    if loses:
        return CacheVerdict(word="risky", reason=f"{answers}, more than chance would")
    if high > SAFE_DIVERGENCE:
        return CacheVerdict(
            word="undecided",
            reason=f"{strays}, {max(low, 0.0):.3g} to {high:.3g} "
            f"(safe: at most {SAFE_DIVERGENCE:g})",
            decide="more `chunks` of a longer `text`",
        )
    if not found.asked:
        return CacheVerdict(word="undecided", reason=f"{strays}; no question was asked of both")
    _, lost_at_most = exact_interval(found.lost, found.answered, ALPHA)
    if lost_at_most > MOST_LOST:
        return CacheVerdict(
            word="undecided",
            reason=f"{strays}, but f16 answers only {found.answered} of {found.asked} questions, "
            f"and up to {lost_at_most:.0%} of such answers may be lost (safe: at most "
            f"{MOST_LOST:.0%})",
            decide=_more_questions(found),
        )
    return CacheVerdict(
        word="safe", reason=f"{strays}; {answers}: at most {lost_at_most:.0%} of such are lost"
    )


def _beyond(value: float, nat: Metric, rounding: Metric | None) -> tuple[float, float, float]:
    """Return what a divergence is beyond that of rounding, and the bounds of it.

    Independent changes of the logits add up in a divergence, which is quadratic in them. So do the
    squares of the half widths.
    """
    if rounding is None or rounding.value is None:
        rounding = Metric(name="rounding", value=0.0)
    cost = max(0.0, value - (rounding.value or 0.0))
    half = hypot(_half_width(nat), _half_width(rounding))
    return cost, cost - half, cost + half


def _half_width(metric: Metric) -> float:
    return 0.0 if metric.low is None or metric.high is None else (metric.high - metric.low) / 2


def _more_questions(found: CacheEvidence) -> str:
    """Return how many answers with f16 would show that few are lost, if none more were."""

    def is_too_few(answered: int) -> bool:
        return exact_interval(found.lost, answered, ALPHA)[1] > MOST_LOST

    needed = 1 + largest(is_too_few, max(found.lost, 1), _MOST_ANSWERS)
    if not found.answered:
        return f"a model that answers them: {needed} answers would show it"
    times = ceil(needed / found.answered)
    return f"{needed} answers would show it, if no more are lost: {times} times the `samples`"
