"""Text that is safe to show: a file's strings must not move the cursor or pose as ours."""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def safe(text: str) -> str:
    r"""`text` with control, format and undecodable characters written as escapes (`\x1b`)."""
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in _HIDDEN
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def one_line(text: str, limit: int = 60) -> str:
    """`safe` text on one line, cut at `limit` characters."""
    line = safe(text).replace("\n", "\\n")
    return line if len(line) <= limit else line[: limit - 1] + "…"
