"""Judge measurements against thresholds: pass, fail or undecided, with the reason for every check.

An interval decides: a check passes where the whole 95 % interval of what was measured is within the
threshold, fails where all of it is beyond, and is undecided where the threshold lies inside, as few
samples leave it. Every measured length is judged, not only the longest: a pass at 32k says nothing
about 64k. A threshold of None is not applied. A measurement that was requested and has no score
fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal, TypeAlias

from ggufrope.evals import recall
from ggufrope.evals.recall import Outcome, RecallCell, RecallEstimate, ShareEstimate
from ggufrope.evals.stats import Proportion
from ggufrope.evals.thresholds import SHARES, Thresholds

Cause: TypeAlias = Literal["model", "setting", "both"]
"""Why recall fails: the unscaled model recalls as little within its native context, or it recalls
enough there, or it recalls too little there and more than at this length."""
_CAUSES: dict[Cause, str] = {
    "model": "the model, not the {}",
    "setting": "the {}, not the model",
    "both": "the model, and the {} too",
}
NO_SCORE = "no score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A task at a context length in tokens."""

    task: str
    context_tokens: int

    def of(self, noun: str = "") -> str:
        """Return the place in words, of something measured there."""
        return f"{self.task}{noun and f' {noun}'} at {self.context_tokens} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Needles of the unscaled model within its native context. `words` say where, `change` what the
    setting that is judged changes: "scaling", "cache", None where the needles are its own."""

    words: str
    change: str | None
    cells: tuple[RecallCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """The needles of one task at one length, and those they are compared with.

    `is_control` is whether they are themselves what others are compared with: no share of their own
    recall is judged. `per_sample` is how many a further sample would add. `whole_prompts` is how
    many whole prompts are asked at most, None where each needle is one.
    """

    place: Place
    cells: tuple[RecallCell, ...]
    control: Control | None = None
    is_control: bool = False
    per_sample: int = 1
    whole_prompts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A number to compare with the limit of that name.

    `value` is None without a score, the 95 % interval `low` to `high` with a single value. `noun`
    is what it is, `relation` its unit and what it is compared with, `decide` what narrows the
    interval, `unscored` why there is no score where there is none.
    """

    limit: str
    place: Place
    value: float | None
    low: float | None
    high: float | None
    noun: str
    relation: str
    decide: str
    unscored: str = NO_SCORE


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortRecall:
    """Recall within the native context: that of the base of that name, and that of the setting."""

    place: Place
    base: str
    of_base: Proportion
    of_setting: Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Measurements of one setting to judge. `unscored` says of each place where cells were
    requested and have no score, how many and why."""

    needles: tuple[Needles, ...] = ()
    readings: tuple[Reading, ...] = ()
    short_recall: tuple[ShortRecall, ...] = ()
    unscored: Mapping[Place, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measurement compared with one threshold.

    `measured` has the interval `low` to `high`, and is None where there is no score. `reason` says
    the outcome in words, `decide` what would decide it where it is undecided.
    """

    name: str
    task: str
    context_tokens: int
    outcome: Outcome
    reason: str
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    cause: Cause | None = None
    decide: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks of one setting."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome | None:
        """The worst of the checks; None where no threshold applies to what was measured."""
        return worst(check.outcome for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of the checks that do not pass."""
        return tuple(check.reason for check in self.checks if check.outcome != "pass")


def worst(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    """Return "fail" if there is one, else "undecided", else "pass"; None where there is none."""
    found = set(outcomes)
    order: tuple[Outcome, ...] = ("fail", "undecided", "pass")
    return next((outcome for outcome in order if outcome in found), None)


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Compare everything measured with the thresholds that apply to it."""
    checks = tuple(_checks(evidence, thresholds))
    judged = {(check.task, check.context_tokens) for check in checks}
    others = (
        _check("measured", place, "fail", f"{place.of()}: {reason}")
        for place, reason in evidence.unscored.items()
        if (place.task, place.context_tokens) not in judged
    )
    return Verdict(checks=(*checks, *others))


def _checks(evidence: Evidence, at: Thresholds) -> Iterator[Check]:
    unscored = evidence.unscored
    for needles in evidence.needles:
        no_score = unscored.get(needles.place)
        if at.recall is not None:
            yield _recall(needles, at.recall, no_score)
        if at.recall_share is not None and not needles.is_control:
            yield _recall_share(needles, at.recall_share, no_score)
    for reading in evidence.readings:
        if (limit := getattr(at, reading.limit)) is not None:
            yield _compared(reading, limit, unscored.get(reading.place))
    yield from map(_short_recall, evidence.short_recall)


def _check(name: str, place: Place, outcome: Outcome, reason: str, **more: Any) -> Check:
    return Check(
        name=name,
        task=place.task,
        context_tokens=place.context_tokens,
        outcome=outcome,
        reason=reason,
        **more,
    )


def _recall(needles: Needles, minimum: float, no_score: str | None) -> Check:
    """Return the check of the recall, with what the unscaled model recalls beside it."""
    place, control = needles.place, needles.control
    words = place.of("recall")
    if no_score is not None:
        return _check("recall", place, "fail", f"{words}: {no_score}", threshold=minimum)
    found = recall.estimate(needles.cells)
    outcome = recall.outcome(found, minimum)
    words += f": {found.value:.1%} (required: at least {minimum:.1%}); {found.evidence}"
    cause = None
    if control is not None:
        known = recall.estimate(control.cells)
        words += f"; {known.value:.1%} {control.words}"
        if outcome == "fail" and control.change is not None:
            cause = _cause(found, known, minimum)
            words += f": {_CAUSES[cause].format(control.change)}" if cause else ""
    return _check(
        "recall",
        place,
        outcome,
        words,
        measured=found.value,
        low=found.low,
        high=found.high,
        threshold=minimum,
        cause=cause,
        decide=_more_needles(needles, found, minimum),
    )


def _cause(found: RecallEstimate, control: RecallEstimate, minimum: float) -> Cause | None:
    """Return why the recall fails; None where the control does not show it."""
    match recall.outcome(control, minimum):
        case "pass":
            return "setting"
        case "fail" if found.high < control.low:
            return "both"
        case "fail" if control.value is not None and control.value <= found.high:
            return "model"
    return None


def _more_needles(
    needles: Needles, found: RecallEstimate | ShareEstimate, minimum: float
) -> str | None:
    """Return how many whole prompts would show the minimum, and the settings for so many; None
    where none would, or the outcome is clear."""
    needed = recall.would_decide(found, minimum)
    if needed is None:
        return None
    whole = found.whole if isinstance(found, RecallEstimate) else found.recall.whole
    settings = []
    if needed > len(needles.cells):
        settings.append(f"`samples` {ceil(needed / needles.per_sample)}")
    if needles.whole_prompts is not None and needed > needles.whole_prompts:
        settings.append(f"`whole_prompts` {needed}")
    successes = needed - (whole.n - whole.successes)
    how = f": {', '.join(settings)}" if settings else ""
    return f"{successes} of {needed} whole prompts would show {minimum:.0%}{how}"


def _recall_share(needles: Needles, minimum: float, no_score: str | None) -> Check:
    """Return the check of the recall as a share of the unscaled model's."""
    place, control = needles.place, needles.control
    words = place.of("recall")
    if no_score is not None:
        return _check("recall_share", place, "fail", f"{words}: {no_score}", threshold=minimum)
    if control is None:
        reason = f"{words}: no needles of the unscaled model to compare it with"
        decide = "a run, or a share of it, that has the control"
        return _check("recall_share", place, "undecided", reason, threshold=minimum, decide=decide)
    known = recall.estimate(control.cells, error=recall.SHARE_ERROR)
    if known.value is None:
        reason = f"{words}: {control.words} the unscaled model has no score to compare it with"
        return _check("recall_share", place, "undecided", reason, threshold=minimum)
    found = recall.share(needles.cells, known)
    outcome = recall.outcome(found, minimum)
    share = "no share" if found.value is None else f"{found.value:.1%}"
    words += (
        f": {share} of the {known.value:.1%} {control.words} (required: at least "
        f"{minimum:.1%}); {found.recall.evidence}"
    )
    return _check(
        "recall_share",
        place,
        outcome,
        words,
        measured=found.value,
        low=found.low,
        high=found.high,
        threshold=minimum,
        decide=_more_needles(needles, found, minimum),
    )


def _compared(reading: Reading, limit: float, no_score: str | None) -> Check:
    """Return the check of a number: the limit decides where it lies outside the interval."""
    place, value, low, high = reading.place, reading.value, reading.low, reading.high
    words = place.of(reading.noun)
    if value is None or no_score is not None:
        reason = f"{words}: {no_score or reading.unscored}"
        return _check(reading.limit, place, "fail", reason, threshold=limit)
    is_share = reading.limit in SHARES
    form, required = (".1%", "required: at least") if is_share else (".3g", "limit:")
    words += f": {value:{form}} {reading.relation}".rstrip() + f" ({required} {limit:{form}})"
    if low is not None and high is not None:
        words += f"; {low:{form}} to {high:{form}}"
    if is_share:
        passes, fails = low is not None and low >= limit, high is not None and high < limit
    else:
        passes, fails = high is not None and high <= limit, low is not None and low > limit
    outcome: Outcome = "pass" if passes else "fail" if fails else "undecided"
    return _check(
        reading.limit,
        place,
        outcome,
        words,
        measured=value,
        low=low,
        high=high,
        threshold=limit,
        decide=reading.decide if outcome == "undecided" else None,
    )


def _short_recall(found: ShortRecall) -> Check:
    """Compare two recalls: the setting is worse if its 95 % interval lies below the base's."""
    known, measured = found.of_base, found.of_setting
    words = found.place.of("recall")
    if measured.value is None or known.value is None:
        return _check("short_context_recall", found.place, "fail", f"{words}: {NO_SCORE}")
    worse = known.low is not None and measured.high is not None and measured.high < known.low
    relation = "worse than" if worse else "within the error of"
    return _check(
        "short_context_recall",
        found.place,
        "fail" if worse else "pass",
        f"{words}: {measured.value:.1%}, {relation} the {known.value:.1%} of {found.base}",
        measured=measured.value,
        low=measured.low,
        high=measured.high,
        threshold=known.low,
    )
