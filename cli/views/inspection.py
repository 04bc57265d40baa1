"""How `inspect` answers, as JSON and on a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ggufrope._format import byte_size

from ..output import console
from ..text import one_line
from .parts import finding_lines, heading, ranges, row, shown, table

if TYPE_CHECKING:
    from rich.text import Text

    from ggufrope.patching.inspection import Inspection
    from ggufrope.rope.effective import EffectiveRope, LayerGroup

_SOURCE_STYLES = {
    "file": "green",
    "override": "magenta",
    "ignored": "bold yellow",
    "default": "dim",
}


def payload(inspection: Inspection) -> dict[str, Any]:
    """The JSON contract of `inspect`."""
    metadata = inspection.model.metadata
    effective = inspection.effective
    return {
        "file": str(inspection.model.path),
        "architecture": metadata.architecture,
        "declared": inspection.model.declared,
        "effective": None
        if effective is None
        else {
            "context_tokens": effective.context_tokens,
            "rope_type": effective.rope_type,
            "groups": effective.groups,
            "values": effective.values,
            "caveat": effective.caveat,
        },
        "refusal": inspection.refusal,
        "findings": inspection.findings,
    }


def show(inspection: Inspection) -> None:
    """Declared and effective settings side by side, then the findings."""
    out = console()
    out.print(_title(inspection))
    declared = table("declared key", "value")
    for key, value in inspection.model.declared.items():
        row(declared, key, value)
    out.print(declared)
    if inspection.effective is None:
        out.print(heading("llama.cpp would not load this file"))
        out.print(shown(inspection.refusal))
    else:
        _show_effective(inspection.effective)
    if inspection.findings:
        out.print(heading("findings"))
        for line in finding_lines(inspection.findings):
            out.print(line)
    else:
        out.print(heading("no findings"))


def _title(inspection: Inspection) -> Text:
    from rich.text import Text

    header = inspection.model.header
    name = header.get("general.name")
    return Text.assemble(
        (one_line(name if isinstance(name, str) else inspection.model.path.name), "bold"),
        f"  {one_line(inspection.model.metadata.architecture, 30)}"
        f" · {len(header.tensors)} tensors · {byte_size(header.file_size)} · GGUF "
        f"v{header.version}",
    )


def _show_effective(effective: EffectiveRope) -> None:
    from rich.text import Text

    out = console()
    out.print(heading(f"what llama.cpp does in a context of {effective.context_tokens} tokens"))
    values = table("setting", "value", "source", "why", numeric=["value"])
    for name, value in effective.values.items():
        source = Text(value.source, style=_SOURCE_STYLES[value.source])
        row(values, name, value.value, source, value.reason)
    out.print(values)
    groups = table("layers", "rotation", "pairs", "rad/token", "longest wave", "magnitude")
    for group in effective.groups:
        row(groups, ranges(group.layers), *_rotation(group))
    out.print(groups)
    if effective.caveat:
        out.print(shown(effective.caveat))


def _rotation(group: LayerGroup) -> tuple[object, ...]:
    if not len(group.inverse_frequencies):
        return group.name, 0, None, None, group.magnitude
    fastest, slowest = group.inverse_frequencies[0], group.inverse_frequencies[-1]
    turns = f"{2 * math.pi / slowest:,.0f} tokens" if slowest > 0 else "never turns"
    spread = f"{fastest:.4g} … {slowest:.4g}"
    return group.name, len(group.inverse_frequencies), spread, turns, group.magnitude
