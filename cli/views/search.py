"""How `search` answers: how the winner stands, its curve, and what to run next."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ggufrope._format import duration

from ..output import console, talk
from ..searching import sparkline
from .parts import heading, row, shown, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ggufrope.search.holdout import Comparison
    from ggufrope.search.result import SearchResult


def payload(result: SearchResult) -> dict[str, Any]:
    """The JSON contract of `search`."""
    return asdict(result)


@contextmanager
def interruption(folder: Path) -> Iterator[None]:
    """Say what is there and how to go on where the search is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        talk().print(f"the best so far is in {shown(folder)}; the same command goes on from there")
        raise


def show(result: SearchResult, folder: Path) -> None:
    """Holdout, gate, curves, the conclusion and the commands."""
    out = console()
    for comparison in result.holdout:
        out.print(heading(f"holdout · {comparison.fitness} at {result.rotation.target_context}"))
        _show_comparison(comparison)
    for comparison in result.gate:
        out.print(heading(f"short contexts · {comparison.fitness}"))
        _show_comparison(comparison)
    out.print(heading("what each pair of dimensions is divided by"))
    curves = table("scheme", "pairs, fast to slow", "first", "last", "magnitude")
    for curve in result.curves:
        line = sparkline(list(curve.factors))
        row(curves, curve.name, line, curve.factors[0], curve.factors[-1], curve.magnitude)
    out.print(curves)
    screened = [step.loss for step in result.history if step.stage == "screening"]
    out.print(f"{len(screened)} candidates screened in {duration(result.seconds)}, all told:")
    out.print(f"  {sparkline(_thinned(screened))}")
    out.print(heading("conclusion"))
    out.print(shown(result.conclusion), style="bold green" if result.won else "bold yellow")
    if not result.gate_passed:
        out.print("Short contexts suffer: see above.", style="bold yellow")
    out.print(f"\nEvery candidate is in {shown(folder)}. To use the winner:")
    out.print(f"  {shown(result.patch_command)}", soft_wrap=True)
    if result.flags:
        out.print(f"  or at run time: {' '.join(result.flags)}", soft_wrap=True)


def _show_comparison(comparison: Comparison) -> None:
    made = table("scheme", "recall", "loss, nat/token", "± standard error")
    for standing in comparison.standings:
        recall = "—"
        found = standing.recall
        if found is not None and None not in (found.value, found.low, found.high):
            recall = f"{found.value:.1%} ({found.low:.1%}-{found.high:.1%})"
        row(made, standing.name, recall, standing.loss.value, standing.loss.standard_error)
    console().print(made)
    first, difference = comparison.standings[0].name, comparison.difference
    console().print(
        f"{first} against {comparison.against}: {difference.value:+.4f} nat per token "
        f"(95 %: {difference.low:+.4f} to {difference.high:+.4f}): {difference.verdict}"
    )


def _thinned(values: list[float], width: int = 60) -> list[float]:
    """At most `width` of the values, evenly."""
    step = max(1, -(-len(values) // width))
    return values[::step]
