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
from itertools import chain, count, islice
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


def estimate(
    cells: Iterable[RecallCell], minimum: float | None, *, error: float = ALPHA
) -> RecallEstimate:
    """Return the recall of whole prompts at one length.

    `minimum` is the recall to be shown, from which the looks follow; without one the interval is
    that of a single look. `error` is that of each bound, over all looks.
    """
    return _estimate(_tally(cells), minimum, error=error)


def share(cells: Iterable[RecallCell], control: RecallEstimate, minimum: float) -> ShareEstimate:
    """Return the recall at one length as a share of the control's.

    `minimum` is the share to be shown. The control must be estimated with `error=SHARE_ERROR`.
    """
    return _share(_tally(cells), control, minimum)


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
    counts, end = _tally(cells), min(limit, len(cells))
    found = _estimate(counts, minimum) if control is None else _share(counts, control, minimum)
    if counts.whole >= end or outcome(found, minimum) != "undecided":
        return 0
    looks = _looks(found, minimum)
    needed = would_decide(found, minimum)
    if needed is None or needed > end:
        low = found.recall.low if isinstance(found, ShareEstimate) else found.low
        successes = counts.whole_successes + floor(low * (end - counts.whole))
        if upper_bound(successes, end, _direct(looks.errors(end)[1])) >= looks.minimum:
            return 0
    following = next(look for _, look in looks.numbered() if look > counts.whole)
    return min(following, end) - counts.whole


def would_decide(found: RecallEstimate | ShareEstimate, minimum: float) -> int | None:
    """Return the whole prompts, those asked included, that would show the minimum if all further
    ones succeeded; None where it is decided already, or where no number would."""
    if outcome(found, minimum) != "undecided":
        return None
    whole = (found.recall if isinstance(found, ShareEstimate) else found).whole
    looks = islice(_looks(found, minimum).passing(), whole.n - whole.successes, None)
    needed = next(look for look in looks if look > whole.n)
    return needed if needed < _MOST else None


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
def _estimate(counts: _Counts, minimum: float | None, *, error: float = ALPHA) -> RecallEstimate:
    """Return the recall of whole prompts from counted cells; see `estimate`."""
    spliced = proportion(counts.spliced_successes, counts.spliced)
    whole = proportion(counts.whole_successes, counts.whole)
    below = above = error / 2
    if minimum is not None:
        below, above = _Looks(minimum=minimum, error=error).errors(counts.whole)
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


def _share(counts: _Counts, control: RecallEstimate, minimum: float) -> ShareEstimate:
    recall = _estimate(counts, min(1.0, minimum * control.high), error=SHARE_ERROR)
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


def _looks(found: RecallEstimate | ShareEstimate, minimum: float) -> _Looks:
    if isinstance(found, RecallEstimate):
        return _Looks(minimum=minimum, error=ALPHA)
    return _Looks(minimum=min(1.0, minimum * found.control.high), error=SHARE_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looks:
    """The looks of one minimum, numbered from the first that can pass: look 0.

    At look k a pass allows k failures. Those before look 0 can only fail; each has half the whole
    prompts of the next.
    """

    minimum: float
    error: float

    def passing(self) -> Iterator[int]:
        """Yield the whole prompts of look 0 and later, in ascending order; those that would be
        above `_MOST` are `_MOST`, again and again."""
        look = 0
        for failures in count():
            level = _direct(self._pass_error(failures))

            def is_short(n: int, failures: int = failures, level: float = level) -> bool:
                return at_most(failures, n, 1 - self.minimum) > level

            look = min(largest(is_short, look, _MOST) + 1, _MOST)
            yield look

    def numbered(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the whole prompts of every look, in ascending order."""
        later = self.passing()
        looks = [next(later)]
        while looks[0] // 2 >= _FEWEST:
            looks.insert(0, looks[0] // 2)
        return enumerate(chain(looks, later), start=1 - len(looks))

    def errors(self, n: int) -> tuple[float, float]:
        """Return the error of the lower and of the upper bound at `n` whole prompts.

        Between two looks they are those of the later one. The upper bound's is largest at look 0
        and halves with each look before and after it.
        """
        number = next(number for number, look in self.numbered() if look >= min(n, _MOST))
        return self._pass_error(max(number, 0)), self.error / 3 * 0.5 ** abs(number)

    def _pass_error(self, number: int) -> float:
        part = _FIRST_PASS if number == 0 else (1 - _FIRST_PASS) * 0.5**number
        return self.error * part


def _direct(error: float) -> float:
    return error * (1 - _TWO_PHASE)


def _low(counts: _Counts, error: float) -> float:
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


def _high(counts: _Counts, error: float) -> float:
    """The better of the two upper bounds: one minus the lower bound of the failures."""
    failures = _Counts(
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
