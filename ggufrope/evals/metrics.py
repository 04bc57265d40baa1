"""Scores into estimates: every proportion and mean comes with its n and its uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, sqrt

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""


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


def proportion(successes: int, n: int, *, z: float = Z_95) -> Proportion:
    """The Wilson score interval (Wilson, 1927), which stays inside [0, 1]."""
    if n == 0:
        return Proportion(successes=0, n=0, value=None, low=None, high=None)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Proportion(successes=successes, n=n, value=share, low=low, high=high)


def mean(values: Iterable[float]) -> Mean:
    """Mean and its standard error, from the sample variance."""
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
    """Percentiles (0 to 100) by linear interpolation; NaN for each where there are no values."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return (float("nan"),) * len(points)
    return tuple(float(value) for value in np.percentile(array, points))
