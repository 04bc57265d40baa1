"""Estimates from scores: every proportion and mean comes with its n and its uncertainty.

Intervals are 95 %, tests are at the 5 % level, and both hold at small n: Student's t for means,
Wilson's score interval for shares, an exact test for paired shares. A bound of a share that is read
again after every trial holds at all readings together. Quantiles and probabilities come from
scipy, which is imported when something is judged, and not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import fsum, inf, log, log1p, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ggufrope._bisect import largest
from ggufrope.errors import MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ALPHA = 0.05
"""The level of every test and of what an interval leaves out."""

_STEPS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share of successes with its 95 % Wilson score interval; all None where n is 0."""

    successes: int
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """An arithmetic mean; `value` is None where n is 0, `standard_error` where n is below 2."""

    n: int
    value: float | None
    standard_error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by Student's t with n - 1 degrees of freedom, None below 2 values."""
        return self.interval_at(ALPHA)

    def interval_at(self, error: float) -> tuple[float, float] | None:
        """The interval that leaves out `error`, half of it on either side."""
        if self.value is None or self.standard_error is None:
            return None
        half = t_quantile(self.n - 1, error) * self.standard_error
        return self.value - half, self.value + half

    @property
    def differs(self) -> bool:
        """Whether it is different from 0 at the 5 % level."""
        found = self.interval
        return found is not None and not found[0] <= 0 <= found[1]


def proportion(successes: int, n: int) -> Proportion:
    """Return a share with its Wilson score interval (Wilson, 1927), which stays inside [0, 1]."""
    if n == 0:
        return Proportion(successes=0, n=0, value=None, low=None, high=None)
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    share = successes / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return Proportion(successes=successes, n=n, value=share, low=low, high=high)


def mean(values: Iterable[float]) -> Mean:
    """Return the mean and its standard error, from the sample variance."""
    kept = tuple(values)
    n = len(kept)
    if n == 0:
        return Mean(n=0, value=None, standard_error=None)
    middle = fsum(kept) / n
    if n == 1:
        return Mean(n=1, value=middle, standard_error=None)
    variance = fsum((value - middle) ** 2 for value in kept) / (n - 1)
    return Mean(n=n, value=middle, standard_error=sqrt(variance / n))


def percentiles(values: ArrayLike, points: Sequence[float]) -> tuple[float, ...]:
    """Return percentiles (0 to 100) by linear interpolation; NaN where there are no values."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return (float("nan"),) * len(points)
    return tuple(float(value) for value in np.percentile(array, points))


def t_quantile(degrees: int, error: float = ALPHA) -> float:
    """Return the quantile of Student's t that half of `error` lies above; infinite for no degree of
    freedom."""
    if degrees < 1:
        return inf
    return float(_special().stdtrit(degrees, 1 - error / 2))


def sign_test(lost: int, gained: int) -> float:
    """Return the exact two-sided p-value of a split of changed pairs at least as uneven as this, if
    each were equally likely to change either way (McNemar, 1947); 1 where no pair changed."""
    n = lost + gained
    return min(1.0, 2 * float(_special().bdtr(min(lost, gained), n, 0.5))) if n else 1.0


def shows(successes: int, n: int, least: float, error: float, tilt: float = 1.0) -> bool:
    """Return whether so many successes of `n` show that the true share is at least `least`.

    The evidence is the likelihood of the shares above `least`, averaged with weights proportional
    to (1 - share)^(tilt - 1), over that of `least`. If the true share is smaller, it ever reaches
    1 / `error`, at any n, with a probability of at most `error` (Ville, 1939; Robbins, 1970; a test
    by betting, Waudby-Smith and Ramdas, 2024). So it may be read again after every trial. A tilt
    below 1 bets on shares near 1.
    """
    special, failures = _special(), n - successes
    above = special.betaincc(successes + 1, failures + tilt, least)
    if least >= 1 or above == 0:
        return False
    likelihood = special.xlogy(successes, least) + special.xlog1py(failures, -least)
    weights = tilt * log1p(-least) - log(tilt)
    evidence = log(above) + special.betaln(successes + 1, failures + tilt) - weights - likelihood
    return bool(evidence >= -log(error))


@cache
def lower_bound(successes: int, n: int, error: float, tilt: float = 1.0) -> float:
    """Return the largest share that is shown (`shows`), in steps of 1e-9: in at most `error` of all
    sequences of trials does it ever lie above the true share; 0 without a success."""
    if successes == 0:
        return 0.0

    def is_shown(step: int) -> bool:
        return shows(successes, n, step / _STEPS, error, tilt)

    return largest(is_shown, 0, successes * _STEPS // n) / _STEPS


def exact_interval(successes: float, n: int, error: float) -> tuple[float, float]:
    """Return the bounds of a share after `n` trials that were planned, each of which errs in at
    most `error` of all samples (Clopper and Pearson, 1934).

    `successes` may be a sum of scores from 0 to 1, which vary less than successes and failures.
    """
    special, failures = _special(), n - successes
    low = special.betaincinv(successes, failures + 1, error) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - error) if failures > 0 else 1.0
    return float(low), float(high)


def require() -> None:
    """Raise MissingDependencyError where scipy is not installed."""
    _special()


def _special() -> Any:
    try:
        from scipy import special
    except ImportError as error:
        raise MissingDependencyError(
            "intervals and tests need scipy: pip install 'ggufrope[report]'"
        ) from error
    return special
