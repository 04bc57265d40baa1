"""The proof of a model as the commands show it: who read it, and what is not as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufrope.proof import Proof

ProveOption = Annotated[
    bool,
    typer.Option(
        "--prove",
        help="Let the gguf package read the result and llama.cpp load it, without its weights.",
    ),
]


def prepare_proof(prove: bool, llama_lib: str | None) -> None:
    """Make sure that a proof is possible, before anything is read or written.

    Raises OptionError for a library that no proof would load, MissingDependencyError.
    """
    if prove:
        from ggufrope.proof import witnesses
        from ggufrope.runtime.engine import use_llama

        use_llama(llama_lib)
        witnesses()
    elif llama_lib is not None:
        from .errors import OptionError

        raise OptionError("--llama-lib names what --prove loads; add --prove")


def proof_payload(proof: Proof | None) -> dict[str, Any] | None:
    """Return the part of a JSON object that is about a proof, None where none was wanted."""
    if proof is None:
        return None
    return {
        "file": proof.path,
        "passed": proof.passed,
        "witnesses": proof.witnesses,
        "findings": proof.findings,
    }


def show_proof(proof: Proof) -> None:
    """Print who read the model, or what they found."""
    from .output import console
    from .tables import finding_lines, shown_path

    names = " and ".join(f"{one.name} {one.version}" for one in proof.witnesses)
    if proof.passed:
        console().print(f"Proved: {names} read {shown_path(proof.path)} alike.", soft_wrap=True)
        return
    console().print(f"Not proved: {shown_path(proof.path)}, by {names}.", style="bold red")
    for line in finding_lines(proof.findings):
        console().print(line, soft_wrap=True)


def require_passed(*proofs: Proof | None) -> None:
    """Leave with the code of a failed check where a proof failed; None is one not wanted."""
    from .errors import CHECK_FAILED

    if not all(proof is None or proof.passed for proof in proofs):
        raise typer.Exit(CHECK_FAILED)
