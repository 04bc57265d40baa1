"""How many units of a haystack fill a length."""

from __future__ import annotations

from collections.abc import Callable


def largest_fitting(
    tokens: Callable[[int], int], room: int, *, least: int, most: int | None = None
) -> int | None:
    """The most units, from `least` to `most`, whose `tokens` do not exceed `room`.

    None where not even `least` fit. `tokens` should grow with the units; where it is nearly a
    straight line, as it is for text, a handful of evaluations will do. What is returned fits.
    """
    low, low_tokens = least, tokens(least)
    if low_tokens > room:
        return None
    step = 1
    while True:
        high = low + step if most is None else min(low + step, most)
        if high == low:
            return low
        high_tokens = tokens(high)
        if high_tokens > room:
            break
        per_unit = max((high_tokens - low_tokens) / (high - low), 1e-9)
        low, low_tokens = high, high_tokens
        # Where the line through the last two would leave the room, and a little beyond.
        step = max(1, min(8 * step, round((room - low_tokens) / per_unit * 1.02) + 1))
    while high - low > 1:
        share = (room - low_tokens) / (high_tokens - low_tokens)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        middle_tokens = tokens(middle)
        if middle_tokens <= room:
            low, low_tokens = middle, middle_tokens
        else:
            high, high_tokens = middle, middle_tokens
    return low
