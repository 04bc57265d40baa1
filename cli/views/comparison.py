"""How `report --against` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..output import console
from .parts import heading, row, shown, table

if TYPE_CHECKING:
    from ggufrope.report.comparison import Comparison


def show(found: Comparison) -> None:
    """What changed from the earlier run to this one."""
    out = console()
    for difference in found.differences:
        before, after = shown(difference.before), shown(difference.after)
        out.print(f"{shown(difference.name)}: {before} → {after}")
    columns = ("setting", "metric", "context", "before", "after", "")
    made = table(*columns, numeric=columns[2:5])
    for change in found.changes:
        setting = f"{change.scaling} · {change.kv} · {change.part or change.task}"
        word = "" if not change.significant else "WORSE" if change.worse else "better"
        style = {"WORSE": "bold red", "better": "green"}.get(word)
        numbers = (change.context_tokens, f"{change.before:.4g}", f"{change.after:.4g}")
        row(made, setting, change.metric, *numbers, word, style=style)
    out.print(made)
    if found.only_before or found.only_after:
        counts = f"{found.only_before} cells only before, {found.only_after} only now"
        out.print(f"not compared: {counts}")
    count = len(found.regressions)
    out.print(heading(f"{count} regressions" if count else "no regression"))
