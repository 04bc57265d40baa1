"""`ggufrope advise`: which scaling to try for a target context, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import HeaderArgument, JsonOption, WholeOption, token_option
from ..values import byte_count

if TYPE_CHECKING:
    from ggufrope.advice.advise import Advice, Option
    from ggufrope.advice.memory import MemoryNeed

_RISKS = {"none": "green", "low": "green", "moderate": "yellow", "high": "red"}


def command(
    file: HeaderArgument,
    target_ctx: Annotated[
        int, token_option("--target-ctx", "Context length to reach, in tokens: 16384 or 16k.")
    ],
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of the device, as 24GiB; says what fits it.",
            parser=byte_count("--memory"),
        ),
    ] = None,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Rank the ways to a longer context, with the commands to run next."""
    from ggufrope.advice.advise import advise
    from ggufrope.patching.inspection import naming, read_model
    from ggufrope.runtime.attention import known_slow_pairs

    from ..output import console, emit_json
    from ..tables import show_download
    from ..values import model_place

    with model_place(file, whole=whole) as place, naming(place):
        model = read_model(place)
        advice = advise(
            model.header,
            model.metadata,
            target_context=target_ctx,
            memory_bytes=memory,
            slow_pairs=known_slow_pairs(model.metadata),
            file=file if isinstance(place, Path) else place.name_here,
        )
    if json:
        emit_json(payload(advice), place)
    else:
        show(advice)
        show_download(place, console())


def payload(advice: Advice) -> dict[str, Any]:
    """Return the JSON object of `advise`; each memory need has its total too."""
    from dataclasses import asdict

    return {
        "target_context": advice.target_context,
        "original_context": advice.original_context,
        "ratio": advice.ratio,
        "trained_context": advice.trained,
        "comparison": advice.comparison,
        "options": advice.options,
        "memory": [asdict(need) | {"total_bytes": need.total_bytes} for need in advice.memory],
        "warnings": advice.warnings,
    }


def show(advice: Advice) -> None:
    """Print warnings, then the options best first, then memory by cache type.

    The whole way is shown for the best; what follows the first command is alike for the others.
    """
    from rich.text import Text

    from ..output import console
    from ..tables import shown

    out = console()
    times = f"{advice.ratio:.3g} times" if advice.ratio > 1 else "within"
    out.print(
        f"{advice.original_context} → {advice.target_context} tokens, {times} the trained context "
        f"({shown(advice.trained.source)})"
    )
    for warning in advice.warnings:
        out.print(shown(warning), style="yellow")
    if advice.comparison is not None:
        out.print("\nTo measure the schemes first, without writing anything:")
        out.print(Text(f"   $ {shown(advice.comparison)}", style="cyan"), soft_wrap=True)
    for number, option in enumerate(advice.options, start=1):
        _show_option(number, option)
    if advice.memory:
        _show_memory(advice.memory)


def _show_option(number: int, option: Option) -> None:
    from textwrap import wrap

    from rich.text import Text

    from ..output import console
    from ..tables import heading, shown

    out = console()
    risk = option.short_context_risk
    out.print(heading(f"{number}. {option.method}"), end="")
    out.print(Text(f"   risk in short prompts: {risk}", style=_RISKS.get(risk, "dim")))
    for reason in option.reasons:
        line = f"   · {shown(reason)}"
        out.print("\n".join(wrap(line, out.width, subsequent_indent="     ")), soft_wrap=True)
    for command_ in option.commands if number == 1 else option.commands[:1]:
        out.print(Text(f"   $ {shown(command_)}", style="cyan"), soft_wrap=True)


def _show_memory(needs: tuple[MemoryNeed, ...]) -> None:
    from ggufrope._format import byte_column

    from ..output import console
    from ..tables import heading, row, table

    unit, size = byte_column(need.total_bytes for need in needs)
    console().print(heading(f"memory at the target, {unit}"))
    columns = ("weights", "cache", "compute", "total")
    rows = table("KV", *columns, "risk of loss", numeric=columns)
    notes: dict[str, list[str]] = {}
    for need in needs:
        kv = need.k_type if need.k_type == need.v_type else f"{need.k_type}/{need.v_type}"
        parts = (need.weight_bytes, need.kv_bytes, need.compute_bytes, need.total_bytes)
        row(rows, kv, *map(size, parts), need.risk or "unknown")
        for note in need.notes:
            notes.setdefault(note, []).append(kv)
    console().print(rows)
    for note, kinds in notes.items():
        console().print(f"{', '.join(kinds)}: {note}", style="dim")
