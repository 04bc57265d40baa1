"""How `factors` answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output import console
from .parts import row, table

if TYPE_CHECKING:
    from ggufrope.rope.factors import FactorSet
    from ggufrope.rope.metadata import FactorTensor


def factor_set(tensors: tuple[FactorTensor, ...]) -> FactorSet:
    """The arrays of a file as a set; RequestError where the file has none."""
    from ggufrope.errors import RequestError
    from ggufrope.rope.factors import FactorSet
    from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS

    arrays = {t.name: t.values for t in tensors if t.values is not None}
    if not arrays:
        raise RequestError("the file has no factor tensors to extract")
    return FactorSet(
        factors=arrays.get(ROPE_FREQS),
        long=arrays.get(ROPE_FACTORS_LONG),
        short=arrays.get(ROPE_FACTORS_SHORT),
    )


def payload(tensors: tuple[FactorTensor, ...], export: Path | None) -> dict[str, Any]:
    """The JSON of `factors`."""
    return {"tensors": {tensor.name: tensor.values for tensor in tensors}, "exported": export}


def show(tensors: tuple[FactorTensor, ...]) -> None:
    """One row a rotary pair, one column a tensor."""
    if not tensors:
        console().print("no factor tensors")
        return
    made = table("pair", *(tensor.name for tensor in tensors), numeric=["pair"])
    for pair in range(max(tensor.length for tensor in tensors)):
        row(made, pair, *(_value(tensor, pair) for tensor in tensors))
    console().print(made)


def _value(tensor: FactorTensor, pair: int) -> float | None:
    if tensor.values is None or pair >= len(tensor.values):
        return None
    return tensor.values[pair]
