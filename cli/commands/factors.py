"""`ggufrope factors`: the factor tensors of a file, shown or written to a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import HeaderArgument, JsonOption, WholeOption
from ..values import output_path

if TYPE_CHECKING:
    from ggufrope.rope.factors import FactorSet
    from ggufrope.rope.metadata import FactorTensor


def command(
    file: HeaderArgument,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the factors to this new .json, .csv or .npy.",
            parser=output_path("--export"),
        ),
    ] = None,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Show the RoPE factor tensors of a file, or export them."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.patching.request import factor_format
    from ggufrope.rope.factors import format_factors

    from ..output import console, emit_json
    from ..tables import shown_path
    from ..values import model_place, write_new

    with model_place(file, whole=whole) as place:
        tensors = read_model(place).metadata.factor_tensors
    if export is not None:
        write_new(export, format_factors(factor_set(tensors), form=factor_format(export)))
    if json:
        emit_json(payload(tensors, export), place)
    else:
        show(tensors)
        if export is not None:
            console().print(f"Wrote the factors to {shown_path(export)}.", soft_wrap=True)


def factor_set(tensors: tuple[FactorTensor, ...]) -> FactorSet:
    """Return the arrays of a file as a set; RequestError where the file has none."""
    from ggufrope.errors import RequestError
    from ggufrope.rope.factors import FactorSet
    from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS

    arrays = {t.name: t.values for t in tensors if t.values is not None}
    if not arrays:
        raise RequestError("the file has no factor tensors to export")
    return FactorSet(
        factors=arrays.get(ROPE_FREQS),
        long=arrays.get(ROPE_FACTORS_LONG),
        short=arrays.get(ROPE_FACTORS_SHORT),
    )


def payload(tensors: tuple[FactorTensor, ...], export: Path | None) -> dict[str, Any]:
    """Return the JSON object of `factors`."""
    return {"tensors": {tensor.name: tensor.values for tensor in tensors}, "exported": export}


def show(tensors: tuple[FactorTensor, ...]) -> None:
    """Print one row per rotary pair and one column per tensor."""
    from ..output import console
    from ..tables import row, table

    if not tensors:
        console().print("no factor tensors")
        return
    rows = table("pair", *(tensor.name for tensor in tensors), numeric=["pair"])
    for pair in range(max(tensor.length for tensor in tensors)):
        row(rows, pair, *(_value(tensor, pair) for tensor in tensors))
    console().print(rows)


def _value(tensor: FactorTensor, pair: int) -> float | None:
    if tensor.values is None or pair >= len(tensor.values):
        return None
    return float(tensor.values[pair])
