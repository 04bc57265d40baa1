"""`ggufrope patch`: write RoPE scaling into a file, at the cost of what changes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufrope._format import ranges

from ..options import (
    ForceOption,
    HeaderArgument,
    JsonOption,
    LlamaLibOption,
    WholeOption,
    grouped,
)
from ..options_scaling import ScalingOptions
from ..proof import ProveOption, prepare_proof, proof_payload, require_passed, show_proof
from ..values import byte_count, completion, output_path, strategies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.container.strategies import Rejection
    from ggufrope.patching.plan import PatchPlan, PatchReceipt
    from ggufrope.proof import Proof
    from ggufrope.rope.effective import LayerGroup
    from ggufrope.rope.encode import Ignored


@grouped
def command(
    file: HeaderArgument,
    scaling: ScalingOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Write the result to this new file.",
            parser=output_path("-o"),
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Edit the file itself; `undo` restores it.")
    ] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How to write: overwrite, reserve, grow, clone or stream (default: the cheapest).",
            autocompletion=completion(strategies),
        ),
    ] = None,
    reserve: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            help="Leave this much header space for later edits, as 4KiB.",
            parser=byte_count("--reserve"),
        ),
    ] = None,
    force: ForceOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.")
    ] = False,
    hash_weights: Annotated[
        bool,
        typer.Option("--hash-weights", help="Print the SHA-256 of all tensor data of the result."),
    ] = False,
    prove: ProveOption = False,
    llama_lib: LlamaLibOption = None,
    whole: WholeOption = False,
    json: JsonOption = False,
) -> None:
    """Write RoPE scaling into a file: to a copy, or in place."""
    from ggufrope.container.remote import local
    from ggufrope.patching.inspection import naming
    from ggufrope.patching.plan import apply, plan_patch, with_digest

    from ..errors import OptionError, stoppable
    from ..output import console, emit_json
    from ..progress import bytes_bar
    from ..tables import show_download
    from ..values import forced, model_place, strategy_named

    if (output is None) is not in_place:
        raise OptionError("give either -o OUT, to write a copy, or --in-place")
    if dry_run and hash_weights:
        raise OptionError("--hash-weights: a dry run writes nothing to hash; leave out one of both")
    with model_place(file, whole=whole) as place, naming(place):
        if not dry_run:
            local(place)
        plan = plan_patch(
            place,
            scaling.request(),
            output=output,
            strategy=strategy_named(strategy),
            force=forced(force),
            reserve=reserve,
        )
    prepare_proof(prove, llama_lib)
    if not json:
        show_plan(plan)
    receipt = proof = None
    if not dry_run:
        with stoppable() as commit, bytes_bar("writing") as progress:
            receipt = apply(plan, verify_all=hash_weights, progress=progress, committing=commit)
        if not json:  # what comes now may be interrupted
            show_receipt(receipt, in_place=in_place)
        if hash_weights:
            receipt = with_digest(receipt)
        if prove:
            from ggufrope.proof import prove as prove_model

            proof = prove_model(receipt.path, plan.stores)
    if json:
        emit_json(payload(plan, receipt, proof), place)
    elif receipt is None:
        show_dry_run(plan)
        show_download(place, console())
    else:
        if receipt.weights_sha256 is not None:
            digest = receipt.weights_sha256
            console().print(f"SHA-256 of all tensor data: {digest}", soft_wrap=True)
        if proof is not None:
            show_proof(proof)
    require_passed(proof)


def payload(
    plan: PatchPlan, receipt: PatchReceipt | None, proof: Proof | None = None
) -> dict[str, Any]:
    """Return the JSON object of `patch`; a dry run has the same keys, and `written` false."""
    return {
        "file": str(plan.model.place),
        "output": str(plan.output),
        "written": receipt is not None,
        "edits": plan.edits,
        "trained_context": plan.trained,
        "strategy": (receipt or plan).strategy.value,
        "rejected": plan.rejected,
        "bytes_written": (receipt or plan).bytes_written,
        "weights_sha256": None if receipt is None else receipt.weights_sha256,
        "undo_steps": None if receipt is None else receipt.undo_steps,
        "undone_at_once": None if receipt is None else receipt.undone_at_once,
        "undo_lost": None if receipt is None else receipt.undo_lost,
        "proof": proof_payload(proof),
        "ignored": plan.ignored,
        "flags": plan.flags,
        "notes": plan.notes,
        "findings": plan.findings,
    }


def show_plan(plan: PatchPlan) -> None:
    """Print each edit, what of the request llama.cpp would ignore, and what it will do."""
    from ..output import console
    from ..tables import finding_lines, heading, row, shown, table

    out = console()
    edits = table("change", "old", "new")
    for edit in plan.edits:
        row(edits, edit.key, _brief(edit.old), _brief(edit.new))
    out.print(edits)
    if plan.trained is not None:
        out.print(shown(f"trained context: {plan.trained.tokens} tokens ({plan.trained.source})"))
    for ignored in plan.ignored:
        out.print(_warning(ignored), style="yellow")
    for note in plan.notes:
        out.print(shown(note))
    if plan.flags:
        out.print(f"To apply the rest at run time, add: {shlex.join(plan.flags)}", soft_wrap=True)
    for group in plan.effective.groups:
        if group.inverse_frequencies and not set(group.layers) <= set(plan.unchanged):
            out.print(_effect(group))
    if plan.unchanged:
        out.print(f"unchanged: the rotation of layers {ranges(sorted(plan.unchanged))}")
    if plan.findings:
        out.print(heading("findings on the result"))
        for line in finding_lines(plan.findings):
            out.print(line)


def _brief(value: object) -> object:
    """Return a value of a key, an array as its length: it would fill the screen."""
    if isinstance(value, str) and value.startswith("(") and value.count(",") > 8:
        return f"{value.count(',') + 1} numbers"
    return value


def _warning(ignored: Ignored) -> str:
    from ..tables import shown

    instead = ignored.instead[0].upper() + ignored.instead[1:]
    return (
        f"warning: {ignored.parameter} {shown(ignored.value)} has no effect: {ignored.reason}. "
        f"{instead}."
    )


def _effect(group: LayerGroup) -> str:
    return (
        f"effective on layers {ranges(group.layers)} ({_KINDS.get(group.name, group.name)}): "
        f"lowest frequency {group.inverse_frequencies[-1]:.4g} rad/token, attention factor "
        f"{group.magnitude:.6g}"
    )


_KINDS = {"global": "global attention", "sliding-window": "sliding-window attention"}


def show_dry_run(plan: PatchPlan) -> None:
    """Print how the result would be stored."""
    from ggufrope._format import byte_size

    from ..output import console
    from ..tables import shown_path

    console().print(
        f"\nDry run: would write {byte_size(plan.bytes_written)} to {shown_path(plan.output)} "
        f"(strategy: {plan.strategy.value}). Nothing written.",
        soft_wrap=True,
    )
    _show_rejected(plan.rejected)


def show_receipt(receipt: PatchReceipt, *, in_place: bool) -> None:
    """Print how the result was stored, and how to restore the file."""
    from ggufrope._format import byte_size

    from ..output import console
    from ..tables import shown_path

    out = console()
    size, where = byte_size(receipt.bytes_written), " in place" if in_place else ""
    out.print(
        f"\nWrote {size} to {shown_path(receipt.path)}{where} (strategy: "
        f"{receipt.strategy.value}) and verified it.",
        soft_wrap=True,
    )
    if in_place:
        out.print(_way_back(receipt), soft_wrap=True)


def _way_back(receipt: PatchReceipt) -> str:
    """Return what `undo` will do now."""
    from ..tables import lost_edits, shown_path

    undo = f"`ggufrope undo {shown_path(receipt.path)}`"
    if not receipt.undo_steps:
        return "This edit cannot be undone: too many bytes would have to be kept."
    if receipt.undo_steps == 1:
        return f"{undo} restores the file to its state before this edit."
    said = (
        f"{undo} undoes this edit only; {receipt.undo_steps} edits can be undone, one at a time or "
        "with --all."
    )
    if receipt.undone_at_once > 1:
        said += f" The oldest {receipt.undone_at_once} of them are one step by now."
    return f"{said} {lost_edits(receipt.undo_lost)}".rstrip()


def _show_rejected(rejected: Iterable[Rejection]) -> None:
    from ..output import console
    from ..tables import shown

    for rejection in rejected:
        reason = shown(rejection.reason)
        console().print(f"cannot {rejection.strategy.value}: {reason}", style="dim")
