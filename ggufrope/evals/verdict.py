"""Judge measurements against thresholds: a verdict with the reason for every check.

Every measured length is judged, not only the longest: a pass at 32k says nothing about 64k. A
threshold of None is not applied. A measurement that was requested and has no score fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from ggufrope.errors import RequestError
from ggufrope.evals.stats import Mean, Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Limits of the checks. Shares lie between 0 and 1, differences are in nat per token.

    Raises RequestError for a number out of range.
    """

    recall: float | None = field(
        default=0.9, metadata={"help": "minimum share of needles answered exactly, at each length"}
    )
    top_ranked: float | None = field(
        default=None,
        metadata={"help": "minimum share of needles ranked above every distractor, at each length"},
    )
    ruler_share: float | None = field(
        default=0.85,
        metadata={
            "help": "minimum RULER-style mean, as a share of the mean at the shortest length"
        },
    )
    short_context_nll: float | None = field(
        default=0.5,
        metadata={
            "help": "maximum increase of the negative log-likelihood within the original context, "
            "nat per token"
        },
    )
    long_context_nll: float | None = field(
        default=1.0,
        metadata={
            "help": "maximum increase of the negative log-likelihood from the shortest length to "
            "any other, nat per token"
        },
    )
    divergence: float | None = field(
        default=None,
        metadata={"help": "maximum mean KL divergence from the base model or cache, nat per token"},
    )

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            share = name in ("recall", "top_ranked", "ruler_share")
            if value is not None and not 0 <= value <= (1 if share else float("inf")):
                span = "between 0 and 1" if share else "0 or more"
                raise RequestError(f"the threshold `{name}` must be {span}, got {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Measurements to judge. Mappings are by context length in tokens and hold what was requested.

    `ruler` is a mean over tasks. `nll` is the mean negative log-likelihood of a text per token; the
    value at the shortest length is the base of the others. `short_context_nll` is the paired
    difference to the base within its context, `short_recall` the recall of the base there and that
    of the variant. None inside a mapping means requested, but without a score.
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
    """One measurement compared with one threshold; `reason` says it in words, passed or not."""

    name: str
    context_tokens: int | None
    measured: float | None
    threshold: float | None
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks. It passes if there is at least one and all of them pass."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of a failure; empty if it passed."""
        if not self.checks:
            return ("no threshold applies to what was measured",)
        return tuple(check.reason for check in self.checks if not check.passed)


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Compare everything measured with the thresholds that apply to it."""
    return Verdict(checks=tuple(_checks(evidence, thresholds)))


def _checks(evidence: Evidence, at: Thresholds) -> Iterator[Check]:
    yield from _at_least("recall", _shares(evidence.recall), at.recall)
    yield from _at_least("top_ranked", _shares(evidence.top_ranked), at.top_ranked)
    yield from _ruler(evidence.ruler, at.ruler_share)
    yield from _long_nll(evidence, at.long_context_nll)
    yield from _at_most("divergence", evidence.divergence, at.divergence)
    if evidence.short_context_nll is not None:
        yield from _at_most(
            "short_context_nll",
            {0: evidence.short_context_nll.value},
            at.short_context_nll,
        )
    if evidence.short_recall is not None:
        yield _short_recall(*evidence.short_recall)


def _shares(measured: Mapping[int, Proportion]) -> dict[int, float | None]:
    return {length: share.value for length, share in measured.items()}


def _ruler(measured: Mapping[int, float | None], minimum: float | None) -> Iterator[Check]:
    """Check the mean at each length as a share of that at the shortest, which must be above 0."""
    if minimum is None or not measured:
        return
    shortest = min(measured)
    own = measured[shortest]
    shares = {
        length: None if not own or score is None else score / own
        for length, score in measured.items()
        if length != shortest or not own
    }
    yield from _at_least("ruler_share", shares, minimum)


def _long_nll(evidence: Evidence, maximum: float | None) -> Iterator[Check]:
    if not evidence.nll:
        return
    shortest = min(evidence.nll)
    base = evidence.nll[shortest]
    losses = {
        length: None if base is None or nll is None else nll - base
        for length, nll in evidence.nll.items()
        if length != shortest or base is None
    }
    yield from _at_most("long_context_nll", losses, maximum)


def _short_recall(base: Proportion, variant: Proportion) -> Check:
    """Compare two recalls: the variant is worse if its 95 % interval lies below the base's."""
    measured, known = variant.value, base.value
    passed = measured is not None and (base.low is None or (variant.high or 0) >= base.low)
    if measured is None:
        reason = "short_context_recall: no score"
    elif known is None:
        reason = f"short_context_recall: {measured:.1%} (original: no score)"
    else:
        word = "within the error of" if passed else "worse than"
        reason = f"short_context_recall: {measured:.1%}, {word} the original's {known:.1%}"
    return Check(
        name="short_context_recall",
        context_tokens=None,
        measured=measured,
        threshold=base.low,
        passed=passed,
        reason=reason,
    )


def _at_least(
    name: str, measured: Mapping[int, float | None], minimum: float | None
) -> Iterator[Check]:
    if minimum is not None:
        for length in sorted(measured):
            value = measured[length]
            passed = value is not None and value >= minimum
            outcome = "" if value is None else f"{value:.1%} (required: at least {minimum:.1%})"
            yield _check(name, length, value, minimum, passed, outcome)


def _at_most(
    name: str, measured: Mapping[int, float | None], maximum: float | None
) -> Iterator[Check]:
    if maximum is not None:
        for length in sorted(measured):
            value = measured[length]
            passed = value is not None and value <= maximum
            outcome = "" if value is None else f"{value:.3g} nat (limit: {maximum:g})"
            yield _check(name, length, value, maximum, passed, outcome)


def _check(
    name: str, length: int, value: float | None, threshold: float, passed: bool, outcome: str
) -> Check:
    place = f" at {length} tokens" if length else ""
    return Check(
        name=name,
        context_tokens=length or None,
        measured=value,
        threshold=threshold,
        passed=passed,
        reason=f"{name}{place}: {outcome or 'no score'}",
    )
