"""`ggufrope undo`: restore a model to its state before the last in-place edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..options import FileArgument, ForceOption, JsonOption, LlamaLibOption
from ..proof import ProveOption, prepare_proof, proof_payload, require_passed, show_proof

if TYPE_CHECKING:
    from ggufrope.container.recovery import UndoReceipt


def command(
    file: FileArgument,
    everything: Annotated[
        bool, typer.Option("--all", help="Undo every in-place edit on record, newest first.")
    ] = False,
    force: ForceOption = None,
    prove: ProveOption = False,
    llama_lib: LlamaLibOption = None,
    json: JsonOption = False,
) -> None:
    """Undo in-place edits of a model, bit for bit."""
    from ggufrope.container.recovery import undo

    from ..errors import stoppable
    from ..output import emit_json
    from ..progress import bytes_bar
    from ..values import forced, model_path

    prepare_proof(prove, llama_lib)
    with stoppable(), bytes_bar("restoring") as progress:
        receipt = undo(
            model_path(file),
            everything=everything,
            force=forced(force),
            progress=progress,
        )
    proof = None
    if prove:
        from ggufrope.proof import prove as prove_model

        proof = prove_model(receipt.path)
    if json:
        emit_json(
            {
                "file": receipt.path,
                "file_size": receipt.header.file_size,
                "files": receipt.files,
                "undone": receipt.undone,
                "left": receipt.left,
                "lost": receipt.lost,
                "proof": proof_payload(proof),
            }
        )
    else:
        show(receipt)
        if proof is not None:
            show_proof(proof)
    require_passed(proof)


def show(receipt: UndoReceipt) -> None:
    """Print what was restored, and what else can be undone."""
    from ..output import console
    from ..tables import lost_edits, shown, shown_path

    last = "the last in-place edit"
    if receipt.undone > 1:
        last = f"the last {receipt.undone} in-place edits"
    print_ = console().print
    print_(f"Restored {shown_path(receipt.path)} to its state before {last}.", soft_wrap=True)
    others = sorted(path.name for path in receipt.files if path != receipt.path)
    if others:
        names = ", ".join(shown(name) for name in others)
        print_(f"Restored with it, as files of the same model: {names}.", soft_wrap=True)
    if receipt.lost and not receipt.left:
        print_(lost_edits(receipt.lost), soft_wrap=True)
    if receipt.left:
        more = "1 earlier edit" if receipt.left == 1 else f"{receipt.left} earlier edits"
        print_(f"{more} can still be undone: run undo again, or with --all.", soft_wrap=True)
