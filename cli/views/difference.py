"""How `diff` and `verify` answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..output import console
from .parts import row, shown, table

if TYPE_CHECKING:
    from ggufrope.container.compare import Difference, Verification
    from ggufrope.container.types import KeyValue, TensorInfo


def payload(found: Difference) -> dict[str, Any]:
    """The JSON of `diff`."""
    return {
        "same": not (found.keys or found.tensors),
        "keys": [
            {"key": item.key, "old": _value(item.old), "new": _value(item.new)}
            for item in found.keys
        ],
        "tensors": [
            {"name": item.name, "old": _tensor(item.old), "new": _tensor(item.new)}
            for item in found.tensors
        ],
    }


def show(found: Difference) -> None:
    """One row a difference."""
    if not (found.keys or found.tensors):
        console().print("same metadata, same tensors by name, shape and type")
        return
    made = table("difference", "first", "second")
    for key in found.keys:
        row(made, key.key, _value(key.old), _value(key.new))
    for tensor in found.tensors:
        row(made, tensor.name, _tensor(tensor.old), _tensor(tensor.new))
    console().print(made)


def verification_payload(found: Verification) -> dict[str, Any]:
    """The JSON of `verify`."""
    return {
        "same": bool(found.old) and not found.differing,
        "shared": len(found.old),
        "differing": found.differing,
        "only_first": found.only_old,
        "only_second": found.only_new,
    }


def show_verification(found: Verification) -> None:
    """The verdict, and the names of what differs."""
    out = console()
    for name in found.differing:
        out.print(f"differs: {shown(name)}", style="bold red")
    for which, names in (("first", found.only_old), ("second", found.only_new)):
        if names:
            out.print(f"only in the {which}: {shown(', '.join(names))}")
    count = len(found.old)
    if not count:
        out.print("the files share no tensor", style="bold red")
    elif found.differing:
        out.print(f"{len(found.differing)} of {count} shared tensors differ", style="bold red")
    else:
        out.print(f"all {count} shared tensors have the same bytes", style="bold green")


def _value(record: KeyValue | None) -> object:
    """A scalar as it is; an array in words, unless it is short and decoded."""
    from ggufrope.container.types import ArrayValue

    if record is None or not isinstance(record.value, ArrayValue):
        return None if record is None else record.value
    array = record.value
    if array.items is not None and len(array.items) <= 8:
        return list(array.items)
    return f"{array.count} {array.item_type.name.lower()}"


def _tensor(tensor: TensorInfo | None) -> str | None:
    if tensor is None:
        return None
    from ggufrope.container.ggml import type_name

    return f"{'×'.join(map(str, tensor.shape))} of type {type_name(tensor.type)}"
