"""`ggufrope diff`: how the metadata and tensors of two files differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import HeaderArgument, JsonOption, OtherFileArgument, WholeOption

if TYPE_CHECKING:
    from ggufrope.container.compare import Difference, KeyDifference
    from ggufrope.container.types import KeyValue, TensorInfo


def command(
    file: HeaderArgument,
    other: OtherFileArgument,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Show how two files differ in metadata and tensors.

    Tensors are compared by name, shape and type; `verify` compares their bytes.
    """
    from ggufrope.container.compare import diff

    from ..output import emit_json
    from ..values import model_place

    with model_place(file, whole=whole) as first, model_place(other, whole=whole) as second:
        difference = diff(first, second)
    if json:
        emit_json(payload(difference), first, second)
    else:
        show(difference)


def payload(difference: Difference) -> dict[str, Any]:
    """Return the JSON object of `diff`."""
    return {
        "same": not (difference.keys or difference.tensors),
        "keys": [
            {
                "key": item.key,
                "old": _value(item.old),
                "new": _value(item.new),
                "old_type": _type(item.old),
                "new_type": _type(item.new),
                "at": item.at,
                "old_item": item.items[0],
                "new_item": item.items[1],
            }
            for item in difference.keys
        ],
        "tensors": [
            {"name": item.name, "old": _tensor(item.old), "new": _tensor(item.new)}
            for item in difference.tensors
        ],
    }


def show(difference: Difference) -> None:
    """Print one row per difference."""
    from ..output import console
    from ..tables import row, table

    if not (difference.keys or difference.tensors):
        console().print("same metadata, same tensors by name, shape and type")
        return
    rows = table("difference", "first", "second")
    for key in difference.keys:
        row(rows, key.key, *_cells(key))
    for tensor in difference.tensors:
        row(rows, tensor.name, _tensor(tensor.old), _tensor(tensor.new))
    console().print(rows)


def _value(record: KeyValue | None) -> object:
    """A scalar as it is; an array in words, unless it is short and decoded."""
    from ggufrope.container.types import ArrayValue

    if record is None or not isinstance(record.value, ArrayValue):
        return None if record is None else record.value
    array = record.value
    if array.items is not None and len(array.items) <= 8:
        return list(array.items)
    return f"{array.count} {array.item_type.name.lower()}"


def _cells(item: KeyDifference) -> tuple[object, object]:
    """Return both values, with what tells them apart where they would look the same."""
    from ..tables import shown

    old, new = _value(item.old), _value(item.new)
    if shown(old) != shown(new):
        return old, new
    if _type(item.old) != _type(item.new):
        return f"{shown(old)} ({_type(item.old)})", f"{shown(new)} ({_type(item.new)})"
    if item.at is None:  # numbers that are shown rounded
        return repr(old), repr(new)
    values = [None if record is None else record.value for record in (item.old, item.new)]
    if isinstance(values[0], str):
        start = max(item.at - 20, 0)
        first, second = (f"from character {start}: {str(value)[start:]}" for value in values)
        return first, second
    first, second = (shown(each) for each in item.items)
    return f"{shown(old)}, item {item.at}: {first}", f"{shown(new)}, item {item.at}: {second}"


def _type(record: KeyValue | None) -> str | None:
    from ggufrope.container.types import ArrayValue

    if record is None:
        return None
    if isinstance(record.value, ArrayValue):
        return f"array of {record.value.item_type.name.lower()}"
    return record.type.name.lower()


def _tensor(tensor: TensorInfo | None) -> str | None:
    if tensor is None:
        return None
    from ggufrope.container.ggml import type_name

    return f"{'×'.join(map(str, tensor.shape))} of type {type_name(tensor.type)}"
