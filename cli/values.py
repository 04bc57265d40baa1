"""Words of the command line as values of the library: numbers, sizes, times, and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.container.strategies import Strategy


_MOST_DIGITS = 18
"""Of a whole number in an option: it fits in 64 bits."""


def model_path(name: str) -> Path:
    """Return the file of the model called `name`; finish or roll back an interrupted edit of it."""
    from ggufrope.container.location import locate
    from ggufrope.container.shards import needs_recovery

    path = locate(name)
    if not needs_recovery(path):
        return path
    from ggufrope.container.recovery import recover

    repaired = recover(path)
    if repaired is not None:
        from ggufrope._format import safe

        from .output import stderr_console

        stderr_console().print(safe(repaired.message), style="yellow")
    return path


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet."""
    from ggufrope._files import storage
    from ggufrope.errors import StorageError

    if path.exists():
        raise StorageError(f"{path} exists already: name a new file")
    with storage("write", path), path.open("xb") as file:
        file.write(data)


def strategy_named(word: str | None) -> Strategy | None:
    """Return the store strategy called `word`; OptionError where there is none."""
    from ggufrope.container.strategies import Strategy

    if word is None:
        return None
    try:
        return Strategy(word)
    except ValueError:
        known = ", ".join(strategy.value for strategy in Strategy)
        raise OptionError(f"--strategy {word}: expected one of {known}") from None


def tokens(option: str) -> Callable[[str], int]:
    """Return the parser of `option`, a number of tokens: `4096`, or `4k` for 4 times 1024.

    The parser raises OptionError where the text is none.
    """

    def parse(text: str) -> int:
        digits, scale = text.strip().lower(), 1
        if digits.endswith("k"):
            digits, scale = digits[:-1], 1024
        if not digits.isdecimal() or len(digits) > _MOST_DIGITS or int(digits) == 0:
            raise OptionError(f"{option} {text.strip()}: expected tokens such as 16384 or 16k")
        return int(digits) * scale

    return parse


def token_counts(text: str, option: str) -> tuple[int, ...]:
    """Return `4096,8k,16k` as numbers of tokens; OptionError names the word that is none."""
    return tuple(map(tokens(option), text.split(",")))


def byte_count(text: str, option: str) -> int:
    """Return `24GiB`, `512 MiB`, `8GB` or a plain number as bytes; OptionError where it is none."""
    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    word = text.strip().lower()
    digits = word.rstrip("kmgtib ")
    try:
        count = float(digits) * units[word[len(digits) :].strip()]
    except (ValueError, KeyError):
        raise OptionError(f"{option} {text}: expected a size such as 24GiB or 512MiB") from None
    if not 0 < count < 2**63:
        raise OptionError(f"{option} {text}: expected a size above zero")
    return int(count)


def seconds(text: str, option: str) -> float:
    """Return `90s`, `45m`, `3h` or a plain number as seconds; OptionError where it is none."""
    word = text.strip().lower()
    scale = {"s": 1, "m": 60, "h": 3600}.get(word[-1:], 0)
    try:
        count = float(word[:-1]) * scale if scale else float(word)
    except ValueError:
        count = 0.0
    if not 0 < count < 1e9:
        raise OptionError(f"{option} {text}: expected a time such as 90s, 45m or 3h")
    return count


def layers(text: str) -> int | Literal["all", "auto"]:
    """Return `all`, `auto` (as many as fit) or a number of layers; OptionError for others."""
    if text in ("all", "auto"):
        return cast("Literal['all', 'auto']", text)
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise OptionError(f"--gpu-layers {text}: expected all, auto or a number")
    return int(text)
