"""`ggufrope check --server`: what a running server really serves."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.backends.settings import RuntimeSettings
    from ggufrope.server.served import Served


def check_server(
    settings: RuntimeSettings, model: str | None, asked: int | None, *, json: bool
) -> None:
    """Measure what a server serves, and show it. Leaves with 1 where that is less than asked."""
    import typer

    from ggufrope.backends.served import open_server
    from ggufrope.server.served import measure_server

    from .errors import CHECK_FAILED
    from .output import emit_json
    from .progress import plain_lines

    state = ["short prompts"]
    with (
        closing(open_server(settings, model)) as opened,
        plain_lines(lambda: f"measuring the server: {state[0]}"),
    ):
        found = measure_server(opened, asked, progress=lambda words: state.__setitem__(0, words))
    if json:
        emit_json({"served": found, "passed": found.passed})
    else:
        show(found)
    if not found.passed:
        raise typer.Exit(CHECK_FAILED)


def show(found: Served) -> None:
    """Print the answer in a sentence, then what was measured and reported."""
    from rich.text import Text

    from .output import console
    from .tables import shown

    out = console()
    info = found.info
    name = " · ".join(filter(None, (f"{info.dialect} {info.build or ''}".strip(), info.model)))
    out.print(Text.assemble((shown(found.address), "bold"), f" · {shown(name)}"), soft_wrap=True)
    mark, style = ("✓", "green") if found.passed else ("✗", "bold red")
    out.print(Text(f"{mark} {shown(conclusion(found))}", style=style))
    for title, value in _facts(found):
        out.print(Text.assemble((f"  {title:<22}", "dim"), shown(value)))
    for remark in found.remarks:
        out.print(Text(f"  {shown(remark)}", style="yellow"))
    lacks = "; ".join(found.lacks)
    if lacks:
        out.print(Text(f"  not given by {info.dialect}: {shown(lacks)}", style="dim"))


def conclusion(found: Served) -> str:
    """Return what the server does with a context of the length asked, in a sentence."""
    from ggufrope._format import byte_size

    asked, about = f"asked {found.asked}", "" if found.exact else "about "
    if found.passed:
        return f"{asked}, serves it: {about}{found.longest_prompt} tokens of a prompt are taken"
    if found.serves is None:
        return f"{asked}, serves less: how much cannot be measured"
    words = f"{asked}, serves {about}{found.serves}: "
    if found.behavior == "refused":
        return words + "a longer prompt is refused"
    if found.behavior == "unanswered":
        return words + (
            "longer prompts are counted whole, and the model does not know their start: they are "
            "cut, or it reaches no further"
        )
    lost = byte_size(found.dropped_bytes or 0)
    parts = {"start": f"the first {lost}", "end": f"the last {lost}", "middle": f"{lost} within"}
    part = parts.get(found.dropped or "", lost)
    return words + f"{part} of your prompt are dropped without a word"


def _facts(found: Served) -> Iterator[tuple[str, str]]:
    info, unit = found.info, "tokens"
    about = "" if found.exact else "about "
    longest = found.longest_prompt
    if longest is not None:
        yield "longest prompt", f"{about}{longest} {unit}, measured"
    if info.context_tokens is not None:
        yield "context reported", f"{info.context_tokens} {unit}"
    if info.trained_tokens is not None:
        yield "model's context", f"{info.trained_tokens} {unit}, as the server says"
    if info.slots > 1:
        yield "slots", str(info.slots)
    if found.refusal is not None:
        yield "a longer prompt", found.refusal
    if found.dropped_tokens and found.behavior == "cut":
        yield "dropped", f"{about}{found.dropped_tokens} {unit}, the {found.dropped or '?'}"
    if found.knows_start is not None:
        known = "known to the model" if found.knows_start else "not known to the model"
        yield "start of that prompt", known
    if found.at_the_end is not None:
        ends = {"stops": "the answer stops", "shifts": "the oldest tokens are dropped to go on"}
        yield "end of the context", ends[found.at_the_end]
    if found.file is not None:
        context = "" if found.file_context is None else f", context {found.file_context}"
        yield "file", found.file
        yield "scaling in the file", f"{found.file_scaling}{context}"
    yield from info.settings
    yield "cost", f"{found.prompts} prompts, {found.tokens_sent:,} {unit} in all"
