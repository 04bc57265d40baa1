"""The recall of one length, with an interval that holds for whole prompts, and when to stop asking.

A spliced needle is cheap and may be biased: a model that is about to fail can be more lenient to
it than to the same needle in a whole prompt. So whole prompts are asked too, on cells drawn at
random, a few at a time, until the recall of whole prompts is shown to reach the minimum, or to
miss it. That recall is the share of whole prompts answered among all needles that the task could
make at these depths, not only among those it made.

*Direct bounds* count whole prompts alone: Clopper and Pearson (1934), exact at every n.
*Two-phase bounds* use every spliced cell: the spliced recall from all cells, and how often a whole
prompt follows its spliced twin from the drawn ones (two-phase sampling, Särndal et al. 1992,
chapter 9; prediction-powered inference, Angelopoulos et al. 2023, with exact bounds in the place
of normal ones). They assume nothing about the splice either. The better of the two stands.
The value is the difference estimator: the spliced recall, plus the mean of whole minus spliced over
the drawn cells.

The numbers of whole prompts at which the interval is read, the *looks*, follow from the minimum
alone. Each bound may err in 5 % of runs. That error is divided over its looks (alpha spending, Lan
and DeMets 1983; by a union bound, so that it holds wherever one stops) and over the two kinds of
bounds. docs/verdicts.md has the rates; `python -m benchmarks.verdict_simulation` makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import floor
from typing import Literal

from ggufrope._bisect import largest
from ggufrope.evals.stats import (
    ALPHA,
    Proportion,
    at_most,
    lower_bound,
    proportion,
    upper_bound,
)

Outcome = Literal["pass", "fail", "undecided"]

SHARE_ERROR = ALPHA / 2
"""The error of the bounds of a control and of a recall whose ratio is estimated: either may err."""

_TWO_PHASE = 0.1
"""The part of a bound's error that the two-phase bounds use."""

_FIRST_PASS = 0.56
"""The part of the error of passing that the first look to allow a pass uses: so much that 35
successes of 35 show 90 %. Each later look uses half of what is left."""

_FEWEST = 4
"""No look comes before so many whole prompts."""

_MOST = 1_000_000
"""No look comes after so many whole prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCell:
    """One cell of a length: whether the spliced needle, and the same needle in a whole prompt, was
    answered exactly. None: not asked, or without a score."""

    spliced: bool | None
    whole: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallEstimate:
    """The recall of whole prompts at one length; `value` is None where nothing has a score.

    `low` and `high` each err in at most 5 % of runs, over all looks. `agree` of `pairs` cells were
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


def tally(cells: Iterable[RecallCell]) -> Counts:
    """Return the counts of the cells of one length."""
    found = Counter((cell.spliced, cell.whole) for cell in cells)
    return Counts(
        spliced=sum(n for (spliced, _), n in found.items() if spliced is not None),
        spliced_successes=sum(n for (spliced, _), n in found.items() if spliced),
        both=found[True, True],
        spliced_only=found[True, False],
        whole_only=found[False, True],
        neither=found[False, False],
        unpaired=found[None, True] + found[None, False],
        unpaired_successes=found[None, True],
    )


def estimate(
    cells: Iterable[RecallCell], minimum: float | None, *, error: float = ALPHA
) -> RecallEstimate:
    """Return the recall of whole prompts at one length.

    `minimum` is the recall to be shown, from which the looks follow; without one the interval is
    that of a single look. `error` is that of each bound, over all looks.
    """
    return of_counts(tally(cells), minimum, error=error)


@cache
def of_counts(counts: Counts, minimum: float | None, *, error: float = ALPHA) -> RecallEstimate:
    """Return the recall of whole prompts from counted cells; see `estimate`."""
    spliced = proportion(counts.spliced_successes, counts.spliced)
    whole = proportion(counts.whole_successes, counts.whole)
    below, above = (
        (error / 2, error / 2)
        if minimum is None
        else _Looks(minimum=minimum, error=error).errors(counts.whole)
    )
    low, high = _low(counts, below), _high(counts, above)
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


def share(cells: Iterable[RecallCell], control: RecallEstimate, minimum: float) -> ShareEstimate:
    """Return the recall at one length as a share of the control's.

    `minimum` is the share to be shown. The control must be estimated with `error=SHARE_ERROR`.
    """
    return _share(tally(cells), control, minimum)


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
    if as few did as the lower bound allows.
    """
    cells = tuple(cells)
    counts, end = tally(cells), min(limit, len(cells))
    found = of_counts(counts, minimum) if control is None else _share(counts, control, minimum)
    if counts.whole >= end or outcome(found, minimum) != "undecided":
        return 0
    looks = _looks(found, minimum)
    needed = would_decide(found, minimum)
    if needed is None or needed > end:
        recall = found.recall if isinstance(found, ShareEstimate) else found
        successes = counts.whole_successes + floor(recall.low * (end - counts.whole))
        if upper_bound(successes, end, _direct(looks.errors(end)[1])) >= looks.minimum:
            return 0
    following = next(look for look in looks if look > counts.whole)
    return min(following, end) - counts.whole


def would_decide(found: RecallEstimate | ShareEstimate, minimum: float) -> int | None:
    """Return the whole prompts, those asked included, that would show the minimum if all further
    ones succeeded; None where it is decided already, or where no number would."""
    if outcome(found, minimum) != "undecided":
        return None
    looks = _looks(found, minimum)
    whole = (found.recall if isinstance(found, ShareEstimate) else found).whole
    for failures in count(whole.n - whole.successes):
        look = looks.passing(failures)
        if look is None or look > whole.n:
            return look
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looks:
    """The looks of one minimum. They are counted from the first that allows a pass, look 0, at
    which no whole prompt may have failed. At each later one, one more may have. Earlier ones, each
    at half the whole prompts of the next, can only fail."""

    minimum: float
    error: float

    def __iter__(self) -> Iterator[int]:
        """Yield the whole prompts of each look, in ascending order, without end."""
        yield from reversed(self._early())
        for failures in count():
            yield self.passing(failures) or _MOST

    def passing(self, failures: int) -> int | None:
        """Return the fewest whole prompts that pass with so many failures; None: more than
        `_MOST`."""
        found = _passing(self.minimum, self.error, failures)
        return found if found <= _MOST else None

    def errors(self, n: int) -> tuple[float, float]:
        """Return the error of the lower and of the upper bound at `n` whole prompts.

        The upper bound's halves with each look before and after look 0.
        """
        early = self._early()
        index = -sum(n <= look for look in early)
        while index >= 0 and n > (self.passing(index) or _MOST) and n < _MOST:
            index += 1
        below = _FIRST_PASS if index <= 0 else (1 - _FIRST_PASS) / 2**index
        return self.error * below, self.error / 3 / 2 ** abs(index)

    def _early(self) -> tuple[int, ...]:
        """The looks before look 0, in descending order."""
        found = []
        n = (self.passing(0) or _MOST) // 2
        while n >= _FEWEST:
            found.append(n)
            n //= 2
        return tuple(found)


@cache
def _passing(minimum: float, error: float, failures: int) -> int:
    share = _FIRST_PASS if failures == 0 else (1 - _FIRST_PASS) / 2**failures
    level = _direct(error * share)
    before = _passing(minimum, error, failures - 1) if failures else 0
    if before > _MOST:
        return before
    return 1 + largest(lambda n: at_most(failures, n, 1 - minimum) > level, before, _MOST)


def _looks(found: RecallEstimate | ShareEstimate, minimum: float) -> _Looks:
    if isinstance(found, RecallEstimate):
        return _Looks(minimum=minimum, error=ALPHA)
    return _Looks(minimum=min(1.0, minimum * found.control.high), error=SHARE_ERROR)


def _share(counts: Counts, control: RecallEstimate, minimum: float) -> ShareEstimate:
    recall = of_counts(counts, min(1.0, minimum * control.high), error=SHARE_ERROR)
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


def _direct(error: float) -> float:
    return error * (1 - _TWO_PHASE)


def _low(counts: Counts, error: float) -> float:
    """The better of the two lower bounds of the recall of whole prompts.

    The recall is at least the chance that both are answered: the spliced recall times the share of
    spliced successes that whole prompts follow. Each is known from a sample, and three quarters of
    the error go to the second, from the smaller one.
    """
    direct = lower_bound(counts.whole_successes, counts.whole, _direct(error))
    if counts.unpaired:
        return direct
    error *= _TWO_PHASE
    spliced = lower_bound(counts.spliced_successes, counts.spliced, error / 4)
    followed = lower_bound(counts.both, counts.both + counts.spliced_only, error * 3 / 4)
    return max(direct, spliced * followed)


def _high(counts: Counts, error: float) -> float:
    """The better of the two upper bounds: one minus the lower bound of the failures."""
    failures = Counts(
        spliced=counts.spliced,
        spliced_successes=counts.spliced - counts.spliced_successes,
        both=counts.neither,
        spliced_only=counts.whole_only,
        whole_only=counts.spliced_only,
        neither=counts.both,
        unpaired=counts.unpaired,
        unpaired_successes=counts.unpaired - counts.unpaired_successes,
    )
    return 1 - _low(failures, error)


def _cut(share: float) -> str:
    return f"{floor(share * 100 + 1e-9) / 100:.2f}"
