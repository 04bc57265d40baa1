"""Moved to `output`."""

from .output import one_line, safe

__all__ = ["one_line", "safe"]
