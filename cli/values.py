"""Words of the command line as values of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufrope.container import Strategy


def strategy_named(word: str | None) -> Strategy | None:
    """The store strategy called `word`; WishError where there is none."""
    from ggufrope.container import Strategy
    from ggufrope.errors import WishError

    if word is None:
        return None
    try:
        return Strategy(word)
    except ValueError:
        known = ", ".join(strategy.value for strategy in Strategy)
        raise WishError(f"--strategy {word}: expected one of {known}") from None


def numbers(text: str, option: str) -> tuple[int, ...]:
    """`4096,8k,16k` as integers; k is 1024. WishError names the word that is none."""
    from ggufrope.errors import WishError

    found = []
    for word in text.split(","):
        digits, scale = word.strip().lower(), 1
        if digits.endswith("k"):
            digits, scale = digits[:-1], 1024
        if not digits.isdecimal():
            raise WishError(f"{option} {text}: {word.strip()!r} is not a whole number")
        found.append(int(digits) * scale)
    return tuple(found)


def byte_count(text: str, option: str) -> int:
    """`24GiB`, `512 MiB`, `8GB` or a plain number as bytes. WishError where it is none."""
    from ggufrope.errors import WishError

    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    word = text.strip().lower()
    digits = word.rstrip("kmgtib ")
    try:
        count = float(digits) * units[word[len(digits) :].strip()]
    except (ValueError, KeyError):
        raise WishError(f"{option} {text}: expected a size such as 24GiB or 512MiB") from None
    if not 0 < count < 2**63:
        raise WishError(f"{option} {text}: expected a size above zero")
    return int(count)
