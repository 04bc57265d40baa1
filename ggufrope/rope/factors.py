"""Factor arrays as bytes in and out: JSON, CSV, NumPy's npy, or inside a config.json.

Only npy needs NumPy, which is imported when such a file is read or written.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.rope.scaling import check_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

FactorFormat: TypeAlias = Literal["json", "csv", "npy"]

LONG_NAMES = ("long_factor", "long_factors", "rope_factors_long.weight", "long")
SHORT_NAMES = ("short_factor", "short_factors", "rope_factors_short.weight", "short")
PLAIN_NAMES = ("factors", "rope_freqs.weight", "rope_freqs")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorSet:
    """The arrays of one file: `factors` for all contexts, `long` and `short`, or one of these."""

    factors: tuple[float, ...] | None = None
    long: tuple[float, ...] | None = None
    short: tuple[float, ...] | None = None


def parse_factors(data: bytes, *, form: FactorFormat, name: str) -> FactorSet:
    """Read factor arrays from the bytes of a file called `name`.

    json: a list, or an object with factors, long_factor and short_factor in any of their
    spellings, also inside rope_scaling or rope_parameters. csv: one number per line, or two or more
    columns with a header (pair, long, short). npy: a vector, or two rows, long and short. Raises
    RequestError where the bytes are none of these or a value is not a finite number above 0.
    """
    readers = {"json": _from_json, "csv": _from_csv, "npy": _from_npy}
    found = readers[form](data, name)
    for label in ("factors", "long", "short"):
        values = getattr(found, label)
        if values is not None:
            check_factors(f"{name}: {label}", values)
    if found == FactorSet():
        raise RequestError(f"{name} has no factors: expected factors, long_factor or short_factor")
    return found


def format_factors(factors: FactorSet, *, form: FactorFormat) -> bytes:
    """Write `factors` so that `parse_factors` reads the same float32 values."""
    columns = {
        "factors": factors.factors,
        "long_factor": factors.long,
        "short_factor": factors.short,
    }
    present = {name: values for name, values in columns.items() if values is not None}
    if form == "json":
        return (json.dumps(present, indent=1) + "\n").encode()
    if form == "csv":
        lines = [",".join(["pair", *present])]
        rows = zip(*present.values(), strict=True)
        lines += [",".join([str(j), *map(repr, row)]) for j, row in enumerate(rows)]
        return ("\n".join(lines) + "\n").encode()
    if factors.factors is None and (factors.long is None or factors.short is None):
        raise RequestError("npy holds one array, or long and short together: write json or csv")
    import numpy as np

    stream = io.BytesIO()
    array = np.array(list(present.values()) if factors.factors is None else factors.factors)
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def first_descent(factors: Sequence[float]) -> int | None:
    """Return the first index whose factor is below the one before, or None.

    Factors should not decrease from fast to slow pairs (LongRoPE, section 3.2).
    """
    return next((i for i in range(1, len(factors)) if factors[i] < factors[i - 1]), None)


def _from_json(data: bytes, name: str) -> FactorSet:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name} is not JSON: {error}") from error
    if isinstance(content, list):
        return FactorSet(factors=_numbers(content, name))
    if not isinstance(content, Mapping):
        raise RequestError(
            f"{name} is a JSON {type(content).__name__}: expected a list or an object"
        )
    for inner in ("rope_parameters", "rope_scaling"):
        if isinstance(content.get(inner), Mapping):
            content = content[inner]
            break
    return _named(content, name)


def _named(content: Mapping[str, Any], name: str) -> FactorSet:
    def pick(names: tuple[str, ...]) -> tuple[float, ...] | None:
        found = next((key for key in names if content.get(key) is not None), None)
        return None if found is None else _numbers(content[found], f"{name}: {found}")

    return FactorSet(factors=pick(PLAIN_NAMES), long=pick(LONG_NAMES), short=pick(SHORT_NAMES))


def _from_csv(data: bytes, name: str) -> FactorSet:
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not text: {error}") from error
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    if not rows:
        raise RequestError(f"{name} is empty: expected one number per line")
    header, body = _header(rows)
    width = len(header)
    for number, row in enumerate(body, start=len(rows) - len(body) + 1):
        if len(row) != width:
            raise RequestError(f"{name} line {number} has {len(row)} cells: expected {width}")
    columns = {label: [row[i] for row in body] for i, label in enumerate(header)}
    return _named(columns, name)


def _header(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    if _is_number(rows[0][0]):
        return (["factors"] if len(rows[0]) == 1 else ["pair", "factors"]), rows
    return rows[0], rows[1:]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_npy(data: bytes, name: str) -> FactorSet:
    import numpy as np

    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        values = np.asarray(array, dtype=np.float64)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise RequestError(f"{name} is not an npy array of numbers: {error}") from error
    if values.ndim == 1:
        return FactorSet(factors=tuple(values.tolist()))
    if values.ndim == 2 and len(values) == 2:
        return FactorSet(long=tuple(values[0].tolist()), short=tuple(values[1].tolist()))
    raise RequestError(
        f"{name} has shape {values.shape}: expected a vector, or two rows long and short"
    )


def _numbers(values: object, where: str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise RequestError(
            f"{where} is of type {type(values).__name__}: expected a list of numbers"
        )
    numbers = []
    for index, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isnan(number):
            raise RequestError(f"{where}[{index}] is {value!r}: expected a number")
        numbers.append(number)
    return tuple(numbers)
