"""The value that every check of a file yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or has no effect.

    An error keeps llama.cpp from loading the file or makes the result nonsense. A warning changes
    quality or is not what it seems. An info is harmless.
    """

    code: str
    severity: Severity
    key: str
    message: str


def error(code: str, key: str, message: str) -> Finding:
    """Return a finding that keeps the file from working."""
    return Finding(code=code, severity="error", key=key, message=message)


def warning(code: str, key: str, message: str) -> Finding:
    """Return a finding that changes quality, or is not what it seems."""
    return Finding(code=code, severity="warning", key=key, message=message)


def info(code: str, key: str, message: str) -> Finding:
    """Return a finding that is harmless."""
    return Finding(code=code, severity="info", key=key, message=message)
