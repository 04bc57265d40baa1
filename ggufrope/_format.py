"""What people read: sizes and durations, and strings of a file made harmless."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_KEPT = frozenset("\n")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def safe(text: str) -> str:
    r"""Return `text` with control, format and undecodable characters as escapes (`\x1b`)."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in _HIDDEN
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def without_home(path: str) -> str:
    """Return a path with `~` in place of the user's home folder: records are shared."""
    home = os.path.expanduser("~").rstrip(os.sep)  # noqa: PTH111 - Path.home() may raise
    return f"~{path[len(home) :]}" if home and path.startswith(home + os.sep) else path


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def html_text(value: object) -> str:
    """Return a value as text within HTML, where nothing of it is markup."""
    from html import escape

    return escape(safe(str(value)))


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in HTML, each row headed by its first value."""
    head = "".join(f'<th scope="col">{html_text(each)}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{html_text(first)}</th>'
        + "".join(f"<td>{html_text(each)}</td>" for each in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def ranges(numbers: Sequence[int]) -> str:
    """Return 0, 1, 2, 5 as "0-2, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def byte_size(count: int) -> str:
    """Return a number of bytes in the unit that suits it, as in "4.1 KiB"."""
    value, power = float(count), 0
    while abs(value) >= 1024 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.{min(power, 1)}f} {_UNITS[power]}"


def byte_column(counts: Iterable[float]) -> tuple[str, Callable[[float], str]]:
    """Return the unit that suits the largest of some numbers of bytes, and what writes each of them
    in that unit, for a column to compare."""
    largest, power = max((abs(count) for count in counts), default=0.0), 0
    while largest >= 1024 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    scale = 1024**power
    return _UNITS[power], lambda count: f"{count / scale:.{2 if power else 0}f}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units, as in "4.2 s", "11m 29s" or "2h 46m"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"
