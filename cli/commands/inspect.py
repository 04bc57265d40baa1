"""`ggufrope inspect`: what a file says about RoPE, and what llama.cpp will do with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import HeaderArgument, JsonOption, WholeOption, token_option

if TYPE_CHECKING:
    from rich.text import Text

    from ggufrope.patching.inspection import Inspection
    from ggufrope.rope.effective import LayerGroup

_SOURCE_STYLES = {
    "file": "green",
    "override": "magenta",
    "ignored": "bold yellow",
    "default": "dim",
}


def command(
    file: HeaderArgument,
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context length to predict for, in tokens (default: the file's)."),
    ] = None,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Show what a file says about RoPE, and what llama.cpp does with it.

    Exit code 1: a finding is an error.
    """
    from ggufrope.patching.inspection import inspect

    from ..errors import CHECK_FAILED
    from ..output import emit_json
    from ..values import model_place

    with model_place(file, whole=whole) as place:
        inspection = inspect(place, context_tokens=ctx)
    if json:
        emit_json(payload(inspection), place)
    else:
        show(inspection)
    if not inspection.passed:
        raise typer.Exit(CHECK_FAILED)


def payload(inspection: Inspection) -> dict[str, Any]:
    """Return the JSON object of `inspect`."""
    from ggufrope.rope.architectures import current_table
    from ggufrope.rope.trained import trained_context

    described = current_table()
    metadata = inspection.model.metadata
    effective = inspection.effective
    return {
        "file": str(inspection.model.place),
        "architecture": metadata.architecture,
        "declared": inspection.model.declared,
        "trained_context": trained_context(metadata),
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
        "table": {
            "source": described.source,
            "file": described.path,
            "reason": described.reason,
            "has_architecture": metadata.architecture in described.entries,
        },
    }


def show(inspection: Inspection) -> None:
    """Print what the file is, the findings, then declared and effective settings."""
    from ..output import console
    from ..tables import finding_lines, heading, print_table, row, shown, table

    out = console()
    out.print(_title(inspection))
    out.print(_conclusion(inspection))
    if inspection.findings:
        out.print(heading("findings"))
    for line in finding_lines(inspection.findings):
        out.print(line)
    declared = table("declared key", "value")
    for key, value in inspection.model.declared.items():
        row(declared, key, value)
    print_table(declared)
    if inspection.effective is None:
        out.print(heading("llama.cpp would not load this file"))
        out.print(shown(inspection.refusal))
    else:
        _show_effective(inspection)


def _conclusion(inspection: Inspection) -> str:
    """Return how far the file reaches, and by what."""
    from ggufrope.rope.trained import TRAINED_CONTEXT, scaling_in_words, trained_context

    from ..tables import shown

    metadata = inspection.model.metadata
    trained, context = trained_context(metadata), metadata.context_length
    parts = [
        "no context length" if context is None else f"{context} tokens",
        scaling_in_words(metadata) or "not scaled",
    ]
    if trained is not None and trained.tokens != context:
        ours = trained.source.startswith(TRAINED_CONTEXT)
        parts.append(f"trained for {trained.tokens}" + ("" if ours else f" ({trained.source})"))
    if not inspection.findings:
        parts.append("no findings")
    return shown(" · ".join(parts))


def _title(inspection: Inspection) -> Text:
    from rich.text import Text

    from ggufrope._format import byte_size

    from ..output import one_line

    header, files = inspection.model.header, inspection.model.files
    count = len(files.shards)
    shards = f" in {count} files" if count > 1 else ""
    size = sum(shard.header.file_size for shard in files.shards)
    name = header.get("general.name")
    return Text.assemble(
        (one_line(name if isinstance(name, str) else inspection.model.place.name), "bold"),
        f"  {one_line(inspection.model.metadata.architecture, 30)}"
        f" · {len(files.tensors)} tensors{shards} · {byte_size(size)} · GGUF v{header.version}",
    )


def _show_effective(inspection: Inspection) -> None:
    from rich.text import Text

    from ggufrope._format import ranges

    from ..output import console
    from ..tables import heading, print_table, row, shown, table

    effective = inspection.effective
    if effective is None:
        return
    out = console()
    out.print(heading(f"what llama.cpp does in a context of {effective.context_tokens} tokens"))
    values = table("setting", "value", "source", "why", numeric=["value"])
    prefix = f"{inspection.model.metadata.architecture}.rope."
    for name, value in effective.values.items():
        source = Text(value.source, style=_SOURCE_STYLES[value.source])
        # Without the prefix that all keys above have, their names fit in the column.
        row(values, name, value.value, source, value.reason.replace(prefix, "rope."))
    print_table(values)
    columns = ["layers", "rotation", "pairs", "rad/token", "longest wave", "att. factor"]
    legend = (
        "pairs: pairs of dimensions that turn, fastest to slowest; att. factor (attention factor): "
        "what rotated queries and keys are multiplied by"
    )
    scaled = any(group.attention_scale is not None for group in effective.groups)
    if scaled:
        columns.append("att. scale")
        legend += "; att. scale (attention scale): what all attention scores are multiplied by"
    groups = table(*columns)
    for group in effective.groups:
        last = (group.attention_scale,) if scaled else ()
        row(groups, ranges(group.layers), *_rotation(group), *last)
    print_table(groups)
    out.print(legend, style="dim")
    if effective.caveat:
        out.print(shown(effective.caveat))


def _rotation(group: LayerGroup) -> tuple[object, ...]:
    if not group.inverse_frequencies:
        return group.name, 0, None, None, group.magnitude
    fastest, slowest = group.inverse_frequencies[0], group.inverse_frequencies[-1]
    turns = f"{2 * math.pi / slowest:,.0f} tokens" if slowest > 0 else "never turns"
    spread = f"{fastest:.4g} … {slowest:.4g}"
    return group.name, len(group.inverse_frequencies), spread, turns, group.magnitude
