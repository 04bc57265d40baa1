"""`ggufrope verify`: whether two models hold the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ..options import FileArgument, JsonOption, LlamaLibOption, OtherFileArgument
from ..proof import ProveOption, prepare_proof, proof_payload, require_passed, show_proof

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.container.compare import Verification
    from ggufrope.proof import Proof


def command(
    file: FileArgument,
    other: OtherFileArgument,
    prove: ProveOption = False,
    llama_lib: LlamaLibOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether two models hold the same weights, by hash, shape and type.

    Exit code 1: a shared tensor differs, or none is shared.
    """
    from ggufrope.container.compare import verify

    from ..errors import CHECK_FAILED
    from ..output import emit_json
    from ..progress import bytes_bar
    from ..values import model_path

    prepare_proof(prove, llama_lib)
    paths = model_path(file), model_path(other)
    proofs = []
    if prove:
        from ggufrope.proof import prove as prove_model

        proofs = [prove_model(path) for path in paths]
    with bytes_bar("hashing") as progress:
        verification = verify(*paths, progress=progress)
    if json:
        emit_json(payload(verification, proofs))
    else:
        show(verification)
        for proof in proofs:
            show_proof(proof)
    require_passed(*proofs)
    if verification.differing or not verification.old:
        raise typer.Exit(CHECK_FAILED)


def payload(verification: Verification, proofs: Sequence[Proof] = ()) -> dict[str, Any]:
    """Return the JSON object of `verify`."""
    return {
        "same": bool(verification.old) and not verification.differing,
        "shared": len(verification.old),
        "differing": verification.differing,
        "other_form": verification.other_form,
        "only_first": verification.only_old,
        "only_second": verification.only_new,
        "proofs": [proof_payload(proof) for proof in proofs],
    }


def show(verification: Verification) -> None:
    """Print the names of tensors that differ, and the conclusion."""
    from ..output import console
    from ..tables import shown

    out = console()
    for name in verification.differing:
        how = " (in shape, type or byte order)" if name in verification.other_form else ""
        out.print(f"differs: {shown(name)}{how}", style="bold red")
    sides = (("first", verification.only_old), ("second", verification.only_new))
    for which, names in sides:
        if names:
            out.print(f"only in the {which}: {shown(', '.join(names))}")
    count, differing = len(verification.old), len(verification.differing)
    if not count:
        out.print("the files share no tensor", style="bold red")
    elif differing:
        out.print(f"{differing} of {count} shared tensors differ", style="bold red")
    else:
        out.print(f"all {count} shared tensors have the same bytes", style="bold green")
