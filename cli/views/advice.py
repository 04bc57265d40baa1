"""How `advise` answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ggufrope._format import byte_size

from ..output import console
from .parts import heading, row, shown, table

if TYPE_CHECKING:
    from ggufrope.advice.advise import Advice

_RISKS = {"none": "green", "low": "green", "moderate": "yellow", "high": "red"}


def payload(advice: Advice) -> dict[str, Any]:
    """The JSON of `advise`; a memory need has its total spelled out."""
    return {
        "target_context": advice.target_context,
        "original_context": advice.original_context,
        "ratio": advice.ratio,
        "options": advice.options,
        "memory": [asdict(need) | {"total_bytes": need.total_bytes} for need in advice.memory],
        "warnings": advice.warnings,
    }


def show(advice: Advice) -> None:
    """Warnings, then the options best first, then memory by cache type."""
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    out.print(
        f"{advice.original_context} → {advice.target_context} tokens, {advice.ratio:.3g} times"
    )
    for warning in advice.warnings:
        out.print(shown(warning), style="yellow")
    for number, option in enumerate(advice.options, start=1):
        risk = option.short_context_risk
        out.print(heading(f"{number}. {option.method}"), end="")
        out.print(Text(f"   risk in short prompts: {risk}", style=_RISKS.get(risk, "dim")))
        for reason in option.reasons:
            out.print(Padding(f"· {shown(reason)}", (0, 0, 0, 3)))
        for command in option.commands:
            out.print(Text(f"   $ {shown(command)}", style="cyan"), soft_wrap=True)
    out.print(heading("memory at the target"))
    made = table(
        "KV",
        "weights",
        "cache",
        "compute",
        "total",
        numeric=["weights", "cache", "compute", "total"],
    )
    for need in advice.memory:
        kv = need.k_type if need.k_type == need.v_type else f"{need.k_type}/{need.v_type}"
        parts = (need.weight_bytes, need.kv_bytes, need.compute_bytes, need.total_bytes)
        row(made, kv, *map(byte_size, parts))
    out.print(made)
