"""Plans as TOML files, and the JSON Schema that lets an editor complete them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ..errors import StorageError, WishError
from . import records
from .plan import RunPlan

if TYPE_CHECKING:
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_plan(path: Path) -> RunPlan:
    """The plan in a TOML file.

    Raises StorageError where the file cannot be read, WishError where it is not TOML (with line
    and column) or not a plan (with every problem, and the nearest known key for an unknown one).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot read the plan: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WishError(f"{path}: a plan is TOML in UTF-8; byte {error.start} is not") from error
    return parse_plan(text, where=str(path))


def parse_plan(text: str, *, where: str = "plan") -> RunPlan:
    """The plan in TOML `text`; `where` is what messages call it. Raises WishError."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WishError(f"{where}: not TOML: {error}") from error
    return records.decode(RunPlan, plain, where=where)


def format_plan(plan: RunPlan) -> str:
    """TOML that `parse_plan` reads back to an equal plan."""
    plain = records.encode(plan)
    tables = {name: value for name, value in plain.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def plan_schema() -> dict[str, records.Plain]:
    """The JSON Schema of a plan file; `plan.schema.json` in this package holds it for editors."""
    return records.json_schema(RunPlan, title="A ggufrope run plan")


def _toml(value: records.Plain) -> str:
    """A value on one line. JSON's strings, numbers and lists are TOML's, but for U+007F."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
