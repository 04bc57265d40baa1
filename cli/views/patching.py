"""How `patch` answers: the plan, key by key, then what was done."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ggufrope._format import byte_size

from ..output import console
from .parts import finding_lines, heading, row, shown, table

if TYPE_CHECKING:
    from ggufrope.patching.plan import PatchPlan, PatchReceipt


def payload(plan: PatchPlan, receipt: PatchReceipt | None) -> dict[str, Any]:
    """The JSON contract of `patch`; a dry run has the same words, and `written` false."""
    return {
        "file": str(plan.model.path),
        "output": str(plan.output),
        "written": receipt is not None,
        "edits": plan.edits,
        "strategy": (receipt or plan).strategy.value,
        "rejected": plan.rejected,
        "bytes_written": (receipt or plan).bytes_written,
        "weights_sha256": None if receipt is None else receipt.weights_sha256,
        "ignored": plan.ignored,
        "flags": plan.flags,
        "notes": plan.notes,
        "findings": plan.findings,
    }


def show_plan(plan: PatchPlan) -> None:
    """Every edit, what of the request would be ignored, and what the runtime will do."""
    out = console()
    edits = table("change", "old", "new")
    for edit in plan.edits:
        row(edits, edit.key, edit.old, edit.new)
    out.print(edits)
    for ignored in plan.ignored:
        out.print(
            f"ignored by llama.cpp for {shown(plan.model.metadata.architecture)}: "
            f"{ignored.parameter} {shown(ignored.value)} ({ignored.reason}); {ignored.instead}",
            style="yellow",
        )
    for note in plan.notes:
        out.print(shown(note))
    if plan.flags:
        out.print(f"run-time flags for the rest: {shlex.join(plan.flags)}")
    for group in plan.effective.groups:
        if len(group.inverse_frequencies):
            out.print(
                f"takes effect on layers {group.layers[0]}-{group.layers[-1]} ({group.name}): "
                f"slowest pair {group.inverse_frequencies[-1]:.4g} rad/token, "
                f"magnitude {group.magnitude:.6g}"
            )
    if plan.findings:
        out.print(heading("findings on the result"))
        for line in finding_lines(plan.findings):
            out.print(line)


def show_dry_run(plan: PatchPlan) -> None:
    """How it would be stored."""
    console().print(
        f"\ndry run: would write {byte_size(plan.bytes_written)} to {shown(plan.output)} "
        f"({plan.strategy.value}); nothing written"
    )
    _show_rejected(plan.rejected)


def show_receipt(receipt: PatchReceipt) -> None:
    """How it was stored, and how to take it back."""
    console().print(
        f"\nwrote {byte_size(receipt.bytes_written)} to {shown(receipt.path)} "
        f"({receipt.strategy.value}), read back and compared"
    )
    _show_rejected(receipt.rejected)


def _show_rejected(rejected: Any) -> None:
    for rejection in rejected:
        console().print(f"not {rejection.strategy.value}: {shown(rejection.reason)}", style="dim")
