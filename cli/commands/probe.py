"""`ggufrope probe`: the rotation that the installed llama.cpp really applies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufrope._format import ranges

from ..options import FileArgument, JsonOption, LlamaLibOption, token_option

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.runtime.probe import Agreement, Probe, ProbeLayer

_LEGEND = "pair: two dimensions that rotate together, {}; lowest frequency in radians per token"
_PAIRS = {"norm": "here adjacent ones (norm)", "neox": "here one from each half (neox)"}


def command(
    file: FileArgument,
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context length to measure for; default: that of the file."),
    ] = None,
    llama_lib: LlamaLibOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the rotation that llama.cpp applies in every layer.

    Exit code 1: it is not as predicted.
    """
    from ggufrope.patching.inspection import inspect
    from ggufrope.runtime import probe
    from ggufrope.runtime.model import Model

    from ..errors import CHECK_FAILED, outlive_aborts
    from ..output import emit_json
    from ..start import take_llama
    from ..values import model_path

    outlive_aborts()
    take_llama(llama_lib)
    path = model_path(file)
    predicted = inspect(path, context_tokens=ctx)
    with Model.open(path, gpu_layers=0) as model:
        measured = probe.probe(model, context_tokens=ctx)
    agreement = None
    if predicted.effective is not None:
        agreement = probe.compare(measured, predicted.effective)
    if json:
        emit_json(payload(path, measured, agreement))
    else:
        show(measured, predicted.effective, agreement)
    if agreement is None or not agreement.agrees:
        raise typer.Exit(CHECK_FAILED)


def payload(path: Path, measured: Probe, agreement: Agreement | None) -> dict[str, Any]:
    """Return the JSON object of `probe`."""
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
    """Print one row for each run of layers with the same rotation, measured and predicted."""
    from ..output import console
    from ..tables import heading, row, shown, table

    out = console()
    out.print(
        f"measured in {len(measured.layers)} layers, for a context of "
        f"{measured.context_tokens} tokens"
    )
    columns = (
        "layers",
        "pairs",
        "lowest frequency",
        "predicted",
        "attention factor",
        "predicted",
    )
    made = table(*columns, numeric=columns[1:])
    for layers in _alike(measured.layers):
        first = layers[0]
        numbers = [layer.layer for layer in layers]
        group = None if predicted is None else predicted.group(numbers[0])
        row(
            made,
            ranges(numbers),
            len(first.inverse_frequencies),
            _lowest(first.inverse_frequencies),
            None if group is None else _lowest(group.inverse_frequencies),
            first.magnitude,
            None if group is None else group.magnitude,
        )
    out.print(made)
    out.print(_LEGEND.format(_PAIRS[measured.pairs]), style="dim")
    for note in measured.notes:
        out.print(shown(note), style="dim")
    if agreement is None:
        out.print("Not compared: the effective RoPE of this file cannot be predicted.")
        return
    word, style = ("agrees", "bold green") if agreement.agrees else ("DIFFERS", "bold red")
    out.print(heading(""), end="")
    out.print(f"{word}: largest relative error {agreement.largest_relative_error:.2g}", style=style)


def _lowest(inverse_frequencies: Any) -> float | None:
    return float(inverse_frequencies[-1]) if len(inverse_frequencies) else None


def _alike(layers: tuple[ProbeLayer, ...]) -> Iterator[list[ProbeLayer]]:
    """Yield neighboring layers with the same lowest frequency and attention factor (3 digits)."""

    def key(layer: ProbeLayer) -> tuple[object, ...]:
        lowest = _lowest(layer.inverse_frequencies)
        rounded = None if not lowest else round(math.log(lowest), 3)
        magnitude = None if layer.magnitude is None else round(layer.magnitude, 3)
        return len(layer.inverse_frequencies), rounded, magnitude

    for _, run in groupby(layers, key):
        yield list(run)
