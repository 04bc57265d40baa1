"""The largest number that still fits, found by bisection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number from `low` to `high` for which `fits` is True.

    `low` is taken to fit without a call, and so is the answer where nothing above it fits.
    `fits` must be True up to some number and False above it.
    """
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
