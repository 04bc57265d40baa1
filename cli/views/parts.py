"""Moved to `cli/tables.py`."""

from ..tables import SEVERITY_STYLES, finding_lines, heading, ranges, row, shown, table

__all__ = ["SEVERITY_STYLES", "finding_lines", "heading", "ranges", "row", "shown", "table"]
