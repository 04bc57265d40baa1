"""How `probe` answers: measured against predicted, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output import console
from .parts import heading, ranges, row, shown, table

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.runtime.probe import Agreement, Probe, ProbeLayer


def payload(path: Path, measured: Probe, agreement: Agreement | None) -> dict[str, Any]:
    """The JSON contract of `probe`."""
    return {
        "file": path,
        "context_tokens": measured.context_tokens,
        "pairs": measured.pairs,
        "layers": measured.layers,
        "agrees": agreement is not None and agreement.agrees,
        "largest_relative_error": None if agreement is None else agreement.largest_relative_error,
        "notes": measured.notes,
    }


def show(measured: Probe, predicted: EffectiveRope | None, agreement: Agreement | None) -> None:
    """One row for each run of layers measured alike."""
    out = console()
    out.print(
        f"measured in {len(measured.layers)} layers, for a context of "
        f"{measured.context_tokens} tokens; pairs are {measured.pairs}"
    )
    columns = ("layers", "pairs", "slowest pair", "predicted", "magnitude", "predicted")
    made = table(*columns, numeric=columns[1:])
    for layers in _alike(measured.layers):
        found = layers[0]
        numbers = [layer.layer for layer in layers]
        group = None if predicted is None else predicted.group(numbers[0])
        row(
            made,
            ranges(numbers),
            len(found.inverse_frequencies),
            _slowest(found.inverse_frequencies),
            None if group is None else _slowest(group.inverse_frequencies),
            found.magnitude,
            None if group is None else group.magnitude,
        )
    out.print(made)
    for note in measured.notes:
        out.print(shown(note), style="dim")
    if agreement is None:
        out.print("nothing to compare with: the file's effective RoPE cannot be predicted")
        return
    word, style = ("agrees", "bold green") if agreement.agrees else ("DIFFERS", "bold red")
    out.print(heading(""), end="")
    out.print(f"{word}: largest relative error {agreement.largest_relative_error:.2g}", style=style)


def _slowest(inverse_frequencies: Any) -> float | None:
    return float(inverse_frequencies[-1]) if len(inverse_frequencies) else None


def _alike(layers: tuple[ProbeLayer, ...]) -> Iterator[list[ProbeLayer]]:
    """Neighboring layers whose slowest pair and magnitude are the same to three digits."""

    def key(layer: ProbeLayer) -> tuple[object, ...]:
        slowest = _slowest(layer.inverse_frequencies)
        rounded = None if not slowest else round(math.log(slowest), 3)
        magnitude = None if layer.magnitude is None else round(layer.magnitude, 3)
        return len(layer.inverse_frequencies), rounded, magnitude

    for _, run in groupby(layers, key):
        yield list(run)
