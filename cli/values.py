"""Words of the command line as values of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.container.strategies import Strategy


def strategy_named(word: str | None) -> Strategy | None:
    """The store strategy called `word`; RequestError where there is none."""
    from ggufrope.container.strategies import Strategy
    from ggufrope.errors import RequestError

    if word is None:
        return None
    try:
        return Strategy(word)
    except ValueError:
        known = ", ".join(strategy.value for strategy in Strategy)
        raise RequestError(f"--strategy {word}: expected one of {known}") from None


def tokens(option: str) -> Callable[[str], int]:
    """How `option` reads a number of tokens: `4096` or `4k`, k being 1024.

    What it returns raises OptionError where the text is none.
    """

    def parse(text: str) -> int:
        digits, scale = text.strip().lower(), 1
        if digits.endswith("k"):
            digits, scale = digits[:-1], 1024
        if not digits.isdecimal() or int(digits) == 0:
            raise OptionError(f"{option} {text.strip()}: expected tokens such as 16384 or 16k")
        return int(digits) * scale

    return parse


def token_counts(text: str, option: str) -> tuple[int, ...]:
    """`4096,8k,16k` as numbers of tokens. OptionError names the word that is none."""
    return tuple(map(tokens(option), text.split(",")))


def byte_count(text: str, option: str) -> int:
    """`24GiB`, `512 MiB`, `8GB` or a plain number as bytes. RequestError where it is none."""
    from ggufrope.errors import RequestError

    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    word = text.strip().lower()
    digits = word.rstrip("kmgtib ")
    try:
        count = float(digits) * units[word[len(digits) :].strip()]
    except (ValueError, KeyError):
        raise RequestError(f"{option} {text}: expected a size such as 24GiB or 512MiB") from None
    if not 0 < count < 2**63:
        raise RequestError(f"{option} {text}: expected a size above zero")
    return int(count)


def seconds(text: str, option: str) -> float:
    """`90s`, `45m`, `3h` or a plain number of seconds. RequestError where it is none."""
    from ggufrope.errors import RequestError

    word = text.strip().lower()
    scale = {"s": 1, "m": 60, "h": 3600}.get(word[-1:], 0)
    try:
        found = float(word[:-1]) * scale if scale else float(word)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise RequestError(f"{option} {text}: expected a time such as 90s, 45m or 3h")
    return found


def gpu_layers(text: str) -> int | Literal["all", "auto"]:
    """Return `all`, `auto` (as many as fit) or a number of layers. RequestError for others."""
    from ggufrope.errors import RequestError

    if text in ("all", "auto"):
        return cast("Literal['all', 'auto']", text)
    if not text.isdecimal():
        raise RequestError(f"--gpu-layers {text}: expected all, auto or a number")
    return int(text)


def layers(text: str) -> int | Literal["all"]:
    """`all` or a number of layers. RequestError where it is neither."""
    from ggufrope.errors import RequestError

    if text == "all":
        return "all"
    if not text.isdecimal():
        raise RequestError(f"--gpu-layers {text}: expected all or a number")
    return int(text)
