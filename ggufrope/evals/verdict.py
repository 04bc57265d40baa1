"""Is it good enough? Thresholds in, a verdict with the reason for every check out.

What is judged is what was measured: each length on the way to the target, not the target alone,
for a pass at 32k says nothing of 64k. A threshold of None is not applied; a measurement that was
asked for and gave no score fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from ggufrope.errors import RequestError
from ggufrope.evals.stats import Mean, Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where a check passes. Shares lie between 0 and 1, differences are in nat per token.

    Raises RequestError for a number out of range.
    """

    recall: float | None = field(
        default=0.9, metadata={"help": "least share of needles answered exactly, at each length"}
    )
    top_ranked: float | None = field(
        default=None, metadata={"help": "least share of needles no distractor beat, at each length"}
    )
    ruler_share: float | None = field(
        default=0.85,
        metadata={"help": "least RULER-style mean, as a share of the shortest length's"},
    )
    short_context_nll: float | None = field(
        default=0.5,
        metadata={"help": "most nat per token lost to the original within its own context"},
    )
    long_context_nll: float | None = field(
        default=1.0, metadata={"help": "most nat per token lost at a length to the base at its own"}
    )
    divergence: float | None = field(
        default=None, metadata={"help": "most mean divergence from the base, nat per token"}
    )

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            share = name in ("recall", "top_ranked", "ruler_share")
            if value is not None and not 0 <= value <= (1 if share else float("inf")):
                span = "between 0 and 1" if share else "0 or more"
                raise RequestError(f"the threshold {name} must be {span}, got {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured; mappings are by context length in tokens, and lack what was not asked.

    `ruler` is a mean over tasks. `nll` is the mean negative log-probability of a text, of which the
    shortest length is what the others are held against.
    `short_context_nll` is the paired difference to the base within its context, `short_recall` the
    base's recall there and the variant's. None inside a mapping is asked for, and without a score.
    """

    recall: Mapping[int, Proportion] = field(default_factory=dict)
    top_ranked: Mapping[int, Proportion] = field(default_factory=dict)
    ruler: Mapping[int, float | None] = field(default_factory=dict)
    nll: Mapping[int, float | None] = field(default_factory=dict)
    divergence: Mapping[int, float | None] = field(default_factory=dict)
    short_context_nll: Mean | None = None
    short_recall: tuple[Proportion, Proportion] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison. `reason` says it in words, passed or not."""

    name: str
    context_tokens: int | None
    measured: float | None
    threshold: float | None
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Every check; it passes where all do and there is at least one."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed, empty where it passed."""
        if not self.checks:
            return ("nothing was measured that a threshold applies to",)
        return tuple(check.reason for check in self.checks if not check.passed)


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Every threshold held against everything measured."""
    return Verdict(checks=tuple(_checks(evidence, thresholds)))


def _checks(evidence: Evidence, at: Thresholds) -> Iterator[Check]:
    yield from _at_least("recall", _shares(evidence.recall), at.recall)
    yield from _at_least("top_ranked", _shares(evidence.top_ranked), at.top_ranked)
    yield from _ruler(evidence.ruler, at.ruler_share)
    yield from _long_nll(evidence, at.long_context_nll)
    yield from _at_most("divergence", evidence.divergence, at.divergence, unit=" nat")
    if evidence.short_context_nll is not None:
        yield from _at_most(
            "short_context_nll",
            {0: evidence.short_context_nll.value},
            at.short_context_nll,
            unit=" nat",
        )
    if evidence.short_recall is not None:
        yield _short_recall(*evidence.short_recall)


def _shares(measured: Mapping[int, Proportion]) -> dict[int, float | None]:
    return {length: found.value for length, found in measured.items()}


def _ruler(measured: Mapping[int, float | None], share: float | None) -> Iterator[Check]:
    """Each length's mean as a share of the shortest's, which itself must be above 0."""
    if share is None or not measured:
        return
    shortest = min(measured)
    own = measured[shortest]
    shares = {
        length: None if not own or score is None else score / own
        for length, score in measured.items()
        if length != shortest or not own
    }
    yield from _at_least("ruler_share", shares, share)


def _long_nll(evidence: Evidence, most: float | None) -> Iterator[Check]:
    if not evidence.nll:
        return
    shortest = min(evidence.nll)
    base = evidence.nll[shortest]
    losses = {
        length: None if base is None or nll is None else nll - base
        for length, nll in evidence.nll.items()
        if length != shortest or base is None
    }
    yield from _at_most("long_context_nll", losses, most, unit=" nat")


def _short_recall(base: Proportion, variant: Proportion) -> Check:
    """A regression counts where the two 95 % intervals do not even touch."""
    measured, known = variant.value, base.value
    passed = measured is not None and (base.low is None or (variant.high or 0) >= base.low)
    if measured is None:
        reason = "short_context_recall: nothing was scored"
    else:
        told = f"{known:.1%}" if known is not None else "not known"
        word = "is not" if passed else "is"
        reason = f"short_context_recall: {measured:.1%}, the original's {told}: {word} worse"
    return Check(
        name="short_context_recall",
        context_tokens=None,
        measured=measured,
        threshold=base.low,
        passed=passed,
        reason=reason,
    )


def _at_least(
    name: str, measured: Mapping[int, float | None], least: float | None
) -> Iterator[Check]:
    if least is not None:
        for length in sorted(measured):
            value = measured[length]
            passed = value is not None and value >= least
            told = "" if value is None else f"{value:.1%}, at least {least:.1%} is asked for"
            yield _check(name, length, value, least, passed, told)


def _at_most(
    name: str, measured: Mapping[int, float | None], most: float | None, *, unit: str
) -> Iterator[Check]:
    if most is not None:
        for length in sorted(measured):
            value = measured[length]
            passed = value is not None and value <= most
            told = "" if value is None else f"{value:.3g}{unit}, at most {most:g} is allowed"
            yield _check(name, length, value, most, passed, told)


def _check(
    name: str, length: int, value: float | None, threshold: float, passed: bool, told: str
) -> Check:
    place = f" at {length} tokens" if length else ""
    return Check(
        name=name,
        context_tokens=length or None,
        measured=value,
        threshold=threshold,
        passed=passed,
        reason=f"{name}{place}: {told or 'nothing was scored'}",
    )
