"""Chooses how a Rewrite is stored, and carries it out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.container.build import keep_attributes, partial_file, partial_path, write_pieces
from ggufrope.container.files import LOCAL, FileLayer, storage
from ggufrope.container.layout import Composition, Rewrite, compose, fitting
from ggufrope.container.proof import prove_header, prove_pieces
from ggufrope.errors import GuardError, StorageError, WishError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ggufrope.container.types import Header


class Strategy(str, Enum):
    """How an edit reaches the disk, cheapest first."""

    OVERWRITE = "overwrite"
    RESERVE = "reserve"
    GROW = "grow"
    CLONE = "clone"
    STREAM = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A strategy that was not taken, and why."""

    strategy: Strategy
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What will be written where. `bytes_written` counts the model, not journal or attributes."""

    source: Path
    target: Path
    strategy: Strategy
    bytes_written: int
    rejected: tuple[Rejection, ...]
    rewrite: Rewrite
    composition: Composition

    @property
    def in_place(self) -> bool:
        return self.source == self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReceipt:
    """What was done; `header` is read back from the result."""

    path: Path
    strategy: Strategy
    bytes_written: int
    rejected: tuple[Rejection, ...]
    header: Header


def plan_store(
    path: str | os.PathLike[str],
    rewrite: Rewrite,
    *,
    output: str | os.PathLike[str] | None = None,
    strategy: Strategy | None = None,
    force: Collection[str] = (),
    files: FileLayer = LOCAL,
) -> StorePlan:
    """How `rewrite` of the file at `path` is stored: as `output`, or in place where that is None.

    Without `strategy` the cheapest that applies is taken. Nothing is written. `force` names the
    guards to override. Raises WishError, GuardError or StorageError where it cannot be done.
    """
    source = Path(path)
    target = source if output is None else Path(output)
    if output is not None:
        _check_output(source, target, force)
    if strategy not in (None, Strategy.STREAM):
        raise WishError(f"strategy {strategy} does not apply here")
    composition = _streamed(rewrite)
    plan = StorePlan(
        source=source,
        target=target,
        strategy=Strategy.STREAM,
        bytes_written=composition.size,
        rejected=(),
        rewrite=rewrite,
        composition=composition,
    )
    _check_space(plan)
    return plan


def carry_out(
    plan: StorePlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    whole_proof: bool = False,
    files: FileLayer = LOCAL,
) -> StoreReceipt:
    """Does what `plan` says; a failure leaves the old file as it was and nothing beside it.

    `progress` is called with (bytes done, bytes in all). Of copied tensor data the proof compares
    samples, with `whole_proof` every byte.
    """
    partial = partial_path(plan.target)
    with storage("read", plan.source), files.open(plan.source, "rb") as source:
        with partial_file(files, plan.target) as file:
            write_pieces(files, source, file, plan.composition, progress=progress)
            prove_pieces(files, source, file, plan.composition, plan.target, whole=whole_proof)
            header = prove_header(file, plan.rewrite, plan.composition, plan.target)
            keep_attributes(source, file, owner=plan.in_place)
            files.sync(file)
            files.replace(partial, plan.target)
        files.sync_directory(plan.target.parent)
    return StoreReceipt(
        path=plan.target,
        strategy=plan.strategy,
        bytes_written=plan.bytes_written,
        rejected=plan.rejected,
        header=header,
    )


def _streamed(rewrite: Rewrite) -> Composition:
    """Data where it was if the reserved space allows, else right behind the header."""
    if rewrite.reserve is None and rewrite.padding is not None:
        kept = fitting(rewrite, rewrite.source.data_offset)
        return kept or compose(rewrite, padding=rewrite.standing_padding)
    return compose(rewrite, padding=rewrite.reserve or None)


def _check_output(source: Path, target: Path, force: Collection[str]) -> None:
    if target.is_dir():
        raise StorageError(f"{target} is a directory; name the file to write")
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is not a directory to write {target.name} into")
    if not target.exists():
        return
    if source.samefile(target):
        raise WishError(f"{target} is the input itself; edit it in place instead")
    if "exists" not in force:
        raise GuardError(f"{target} exists already; force 'exists' to replace it", guard="exists")


def _check_space(plan: StorePlan) -> None:
    if not hasattr(os, "statvfs"):
        return
    with storage("write to", plan.target.parent):
        status = os.statvfs(plan.target.parent)
    free = status.f_bavail * status.f_frsize
    if free < plan.bytes_written:
        raise StorageError(
            f"{plan.target.parent} has {free} bytes free, the edit needs {plan.bytes_written}"
        )
