"""The recall of one length, with an interval that holds for whole prompts, and when to stop asking.

A spliced needle is cheap and may be biased: a model that is about to fail can be more lenient to
it than to the same needle in a whole prompt. So whole prompts are asked too, on cells drawn at
random, a few at a time, until the recall of whole prompts is shown to reach the minimum, or to
miss it. That recall is the share of whole prompts answered among all needles that the task could
make at these depths, not only among those it made.

*Direct bounds* count whole prompts alone, by a test that stakes bets on each (`stats.shows`).
*Two-phase bounds* use every spliced cell: the spliced recall from all cells, and how often a whole
prompt follows its spliced twin from the drawn ones (two-phase sampling, Särndal et al. 1992,
chapter 9; prediction-powered inference, Angelopoulos et al. 2023, with exact bounds in the place
of normal ones). They assume nothing about the splice either. The better of the two stands.
The value is the difference estimator: the spliced recall, plus the mean of whole minus spliced over
the drawn cells.

Each bound errs in at most 5 % of runs, however often it is read and whenever a run stops, so the
interval needs no plan of looks, and any minimum may be compared with it. docs/verdicts.md has the
rates; `python -m benchmarks.verdict_simulation` makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import Literal

from ggufrope._bisect import largest
from ggufrope.evals.stats import ALPHA, Proportion, lower_bound, proportion, shows

Outcome = Literal["pass", "fail", "undecided"]

SHARE_ERROR = ALPHA / 2
"""The error of the bounds of a control and of a recall whose ratio is estimated: either may err."""

_DIRECT = 0.9
"""The part of a bound's error that the direct bound uses; the two-phase bound has the rest."""

_TILT = 0.3
"""The bets on a recall above a minimum favor those near 1: 35 successes of 35 show 90 %."""

_FEWEST = 2
"""The first whole prompts drawn; if both fail, a recall of 90 % is excluded."""

_BATCH = 20
"""At most so many whole prompts are drawn before the outcome is read again."""

_MOST = 1_000_000
"""No more whole prompts than this are ever proposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCell:
    """One cell of a length: whether the spliced needle, and the same needle in a whole prompt, was
    answered exactly. None: not asked, or without a score."""

    spliced: bool | None
    whole: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallEstimate:
    """The recall of whole prompts at one length; `value` is None where nothing has a score.

    `low` and `high` each err in at most 5 % of runs. `agree` of `pairs` cells were
    answered alike spliced and whole.
    """

    value: float | None
    low: float
    high: float
    spliced: Proportion
    whole: Proportion
    agree: int
    pairs: int

    @property
    def evidence(self) -> str:
        """What the estimate stands on, in one line.

        Both ends are cut to two decimals, so that they compare with a minimum in whole percent as
        the exact ones do.
        """
        parts = []
        if self.spliced.value is not None:
            parts.append(f"{self.spliced.n} spliced {self.spliced.value:.2f}")
        if self.whole.value is not None:
            parts.append(f"{self.whole.n} whole {self.whole.value:.2f}")
        if self.pairs:
            parts.append(f"{self.agree} of {self.pairs} agree")
        return f"{', '.join(parts) or 'no score'}: {_cut(self.low)} to {_cut(self.high)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEstimate:
    """The recall at one length as a share of the control's.

    `low` and `high` each err in at most 5 % of runs. `value` is None where a score is missing,
    `high` where the control's recall may be 0.
    """

    value: float | None
    low: float
    high: float | None
    recall: RecallEstimate
    control: RecallEstimate


def estimate(cells: Iterable[RecallCell], *, error: float = ALPHA) -> RecallEstimate:
    """Return the recall of whole prompts at one length; `error` is that of each bound."""
    return _estimate(_tally(cells), error)


def share(cells: Iterable[RecallCell], control: RecallEstimate) -> ShareEstimate:
    """Return the recall at one length as a share of the control's.

    The control must be estimated with `error=SHARE_ERROR`. Its own recall matters, not whether it
    reaches a minimum, so draw its whole prompts to the limit.
    """
    return _share(_tally(cells), control)


def outcome(found: RecallEstimate | ShareEstimate, minimum: float) -> Outcome:
    """Return "pass" where the interval lies at or above the minimum, "fail" where it lies below."""
    if found.low >= minimum:
        return "pass"
    return "fail" if found.high is not None and found.high < minimum else "undecided"


def next_look(
    cells: Iterable[RecallCell],
    minimum: float,
    limit: int,
    *,
    control: RecallEstimate | None = None,
) -> int:
    """Return how many further whole prompts to draw before the outcome is read again.

    With a control, `minimum` is a share of its recall. At most `limit` are drawn at a length, and
    never more than there are cells. Return 0 where it is decided, where the limit is reached, and
    where no further draws within the limit would decide it: not even if all of them succeeded, nor
    if as few did as the lower bound allows. Else the draws about double, in steps of 20 at most, up
    to the number that would show the minimum: a clear failure takes few, and batches are few.
    """
    cells = tuple(cells)
    counts, end = _tally(cells), min(limit, len(cells))
    found = _estimate(counts, ALPHA) if control is None else _share(counts, control)
    n = counts.whole
    if n >= end or outcome(found, minimum) != "undecided":
        return 0
    look = would_decide(found, minimum)
    if look is None or look > end:
        look = end
        recall, least, error = _aim(found, minimum)
        failures = end - counts.whole_successes - floor(recall.low * (end - n))
        if not shows(failures, end, 1 - least, error * _DIRECT):
            return 0
    while look // 2 > n and look // 2 >= _FEWEST:
        look //= 2
    return min(look - n, _BATCH)


def would_decide(found: RecallEstimate | ShareEstimate, minimum: float) -> int | None:
    """Return the whole prompts, those asked included, that would show the minimum if all further
    ones succeeded; None where it is decided already, or where no number would."""
    if outcome(found, minimum) != "undecided":
        return None
    recall, least, error = _aim(found, minimum)
    n = recall.whole.n
    needed = max(n + 1, _needed(n - recall.whole.successes, least, error))
    return needed if needed <= _MOST else None


@cache
def _needed(failures: int, least: float, error: float) -> int:
    """The fewest whole prompts that show a recall of `least` with so many failures."""
    return 1 + largest(
        lambda n: not shows(n - failures, n, least, error * _DIRECT, _TILT), failures, _MOST
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """The cells of one length, counted.

    `both`, `spliced_only`, `whole_only` and `neither` count cells with two scores by which of them
    are successes. `unpaired` counts whole prompts without a spliced score.
    """

    spliced: int = 0
    spliced_successes: int = 0
    both: int = 0
    spliced_only: int = 0
    whole_only: int = 0
    neither: int = 0
    unpaired: int = 0
    unpaired_successes: int = 0

    @property
    def pairs(self) -> int:
        return self.both + self.spliced_only + self.whole_only + self.neither

    @property
    def whole(self) -> int:
        return self.pairs + self.unpaired

    @property
    def whole_successes(self) -> int:
        return self.both + self.whole_only + self.unpaired_successes

    def mirrored(self) -> _Counts:
        """The counts with successes and failures exchanged."""
        return _Counts(
            spliced=self.spliced,
            spliced_successes=self.spliced - self.spliced_successes,
            both=self.neither,
            spliced_only=self.whole_only,
            whole_only=self.spliced_only,
            neither=self.both,
            unpaired=self.unpaired,
            unpaired_successes=self.unpaired - self.unpaired_successes,
        )


def _tally(cells: Iterable[RecallCell]) -> _Counts:
    """Return the counts of the cells of one length."""
    found = Counter((cell.spliced, cell.whole) for cell in cells)
    return _Counts(
        spliced=sum(n for (spliced, _), n in found.items() if spliced is not None),
        spliced_successes=sum(n for (spliced, _), n in found.items() if spliced),
        both=found[True, True],
        spliced_only=found[True, False],
        whole_only=found[False, True],
        neither=found[False, False],
        unpaired=found[None, True] + found[None, False],
        unpaired_successes=found[None, True],
    )


@cache
def _estimate(counts: _Counts, error: float) -> RecallEstimate:
    spliced = proportion(counts.spliced_successes, counts.spliced)
    whole = proportion(counts.whole_successes, counts.whole)
    low, high = _low(counts, error, _TILT), 1 - _low(counts.mirrored(), error, 1.0)
    value = spliced.value if whole.value is None else whole.value
    if spliced.value is not None and counts.pairs and not counts.unpaired:
        value = spliced.value + (counts.whole_only - counts.spliced_only) / counts.pairs
    return RecallEstimate(
        value=None if value is None else min(max(value, low), high),
        low=low,
        high=high,
        spliced=spliced,
        whole=whole,
        agree=counts.both + counts.neither,
        pairs=counts.pairs,
    )


def _low(counts: _Counts, error: float, tilt: float) -> float:
    """The better of the two lower bounds of the share of successes among whole prompts.

    It is at least the chance that both needles of a cell succeed: the share of spliced successes
    times the share of these that whole prompts follow. Each of the two is known from a sample;
    three quarters of the error go to the second, whose sample is smaller, and which is near 1 where
    the splice is good.
    """
    direct = lower_bound(counts.whole_successes, counts.whole, error * _DIRECT, tilt)
    if counts.unpaired or not counts.both:
        return direct
    rest = error * (1 - _DIRECT)
    spliced = lower_bound(counts.spliced_successes, counts.spliced, rest / 4, tilt)
    followed = lower_bound(counts.both, counts.both + counts.spliced_only, rest * 3 / 4, _TILT)
    return max(direct, spliced * followed)


def _share(counts: _Counts, control: RecallEstimate) -> ShareEstimate:
    recall = _estimate(counts, SHARE_ERROR)
    value = None
    if recall.value is not None and control.value:
        value = recall.value / control.value
    return ShareEstimate(
        value=value,
        low=recall.low / control.high,
        high=recall.high / control.low if control.low else None,
        recall=recall,
        control=control,
    )


def _aim(
    found: RecallEstimate | ShareEstimate, minimum: float
) -> tuple[RecallEstimate, float, float]:
    """The recall to go on with, what it has to reach, and the error of its bounds."""
    if isinstance(found, RecallEstimate):
        return found, minimum, ALPHA
    return found.recall, min(1.0, minimum * found.control.high), SHARE_ERROR


def _cut(share: float) -> str:
    return f"{floor(share * 100 + 1e-9) / 100:.2f}"
