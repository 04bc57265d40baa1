"""Chooses how a Rewrite is stored, and carries it out."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.filesystem import (
    LOCAL,
    UNSUPPORTED,
    FileLayer,
    RefusedError,
    journal_path,
    lock,
    partial_path,
    require_room,
    undo_path,
    write_all,
)
from ggufrope.container.guards import check_guards, check_names
from ggufrope.container.journal import commit, draw_up, holds, write_journal
from ggufrope.container.newfile import built, keep_attributes, prove_header, prove_pieces
from ggufrope.container.pieces import Rewrite, copied, settle
from ggufrope.container.recovery import roll_back
from ggufrope.container.strategies import (
    CARRY_LIMIT,
    INSIDE,
    Rejection,
    Strategy,
    Way,
    ways_beside,
    ways_inside,
)
from ggufrope.container.types import Header, Span
from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ggufrope.container.journal import Record
    from ggufrope.container.pieces import Piece


# Carries out an edit inside the file: journal, insertion, patches, proof, commit.


def overwrite(
    files: FileLayer,
    file: BinaryIO,
    path: Path,
    rewrite: Rewrite,
    way: Way,
    progress: Callable[[int, int], None] | None,
) -> Header:
    """Turns the open, locked file into what `way` leads to and returns its new header.

    Whatever goes wrong after the first change is taken back at once; where even that fails,
    `recover` finds the journal. Raises RefusedError where another strategy must be used.
    """
    kept, patches = settle(way.composition.pieces, way.insertion)
    if not patches and way.composition.size == rewrite.source.file_size:
        return rewrite.source
    with storage("read", path):
        record = draw_up(
            files,
            file,
            kind="patched",
            header=rewrite.source,
            composition=way.composition,
            kept=kept,
            patches=patches,
            insertion=way.insertion,
        )
        contents = [(patch.offset, _content(files, file, patch.piece)) for patch in patches]
    write_journal(files, path, record)
    try:
        with storage("write", path):
            _apply(files, file, contents, record, progress)
        if not (holds(record.new_seal, files, file) and holds(record.samples, files, file)):
            raise StorageError(f"proof failed, {path} was not as planned and was taken back")
        header = prove_header(file, rewrite, way.composition, path)
    except BaseException:
        with suppress(OSError, StorageError):
            roll_back(files, file, path, record)
        raise
    commit(files, path)
    return header


def _content(files: FileLayer, file: BinaryIO, piece: Piece) -> bytes:
    return files.read(file, piece.offset, piece.length) if isinstance(piece, Span) else piece


def _apply(
    files: FileLayer,
    file: BinaryIO,
    contents: Sequence[tuple[int, bytes]],
    record: Record,
    progress: Callable[[int, int], None] | None,
) -> None:
    """The insertion durably first: sizes then tell how far an interrupted edit has come."""
    if record.insertion is not None:
        try:
            files.insert_range(file, record.insertion.offset, record.insertion.length)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                raise RefusedError(error.strerror) from error
            raise
        files.sync(file)
    total = sum(len(content) for _, content in contents)
    done = 0
    for offset, content in contents:
        write_all(files, file, offset, content)
        done += len(content)
        if progress is not None:
            progress(done, total)
    if os.fstat(file.fileno()).st_size > record.new_size:
        files.resize(file, record.new_size)
    files.sync(file)


# Carries out an edit by a new file: shared or copied, proved, then renamed into its place.


def supplant(
    files: FileLayer,
    source: BinaryIO,
    target: Path,
    rewrite: Rewrite,
    way: Way,
    *,
    in_place: bool,
    journaled: bool,
    progress: Callable[[int, int], None] | None,
    whole_proof: bool,
) -> Header:
    """Writes `target` from the open, locked `source` and returns its header.

    The new file has its name only once it is whole, proved and durable. Raises
    RefusedError where blocks cannot be shared after all.
    """
    clone = way.strategy is Strategy.CLONE
    with built(files, source, target, way.composition, clone=clone, progress=progress) as file:
        prove_pieces(files, source, file, way.composition, target, whole=whole_proof)
        header = prove_header(file, rewrite, way.composition, target)
        with storage("write", target):
            keep_attributes(source, file, owner=in_place)
            files.sync(file)
        if journaled:
            record = draw_up(
                files,
                source,
                kind="replaced",
                header=rewrite.source,
                composition=way.composition,
                kept=copied(way.composition.pieces),
            )
            write_journal(files, target, record)
        try:
            with storage("put in place", target):
                files.replace(partial_path(target), target)
        except BaseException:
            if journaled:
                files.remove(journal_path(target))
            raise
        with storage("sync", target.parent):
            files.sync_directory(target.parent)
            if journaled:
                commit(files, target)
            elif in_place:
                # What could be undone is not what stands here any more.
                files.remove(undo_path(target))
    return header


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What will be written where: `target` is `source` for an edit in place.

    `bytes_written` counts the model's bytes, not those it shares with the old file;
    `bytes_journaled` what an edit in place first saves of the old file. `undoable` is False for a
    new file, where there is nothing to undo, and where too much would have to be saved.
    `identity` is the inode, size and time of change of the file that was planned for.
    """

    source: Path
    target: Path
    rewrite: Rewrite
    requested: Strategy | None
    identity: tuple[int, int, int]
    way: Way
    bytes_journaled: int
    undoable: bool
    rejected: tuple[Rejection, ...]

    @property
    def in_place(self) -> bool:
        return self.source == self.target

    @property
    def strategy(self) -> Strategy:
        return self.way.strategy

    @property
    def bytes_written(self) -> int:
        return self.way.bytes_written


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReceipt:
    """What was done; `header` is read back from the result."""

    path: Path
    strategy: Strategy
    bytes_written: int
    undoable: bool
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
    guards to override. Raises RequestError, GuardError or StorageError where it cannot be done.
    """
    source = Path(path).resolve()
    if output is None:
        target = source
        check_guards(path, force)
        _check_settled(source)
    else:
        target = Path(os.path.abspath(output))  # noqa: PTH100 - a link is replaced, not followed
        _check_output(source, target, force)
    identity = _identity(source)
    if identity[1] != rewrite.source.file_size:
        raise StorageError(f"{path} has changed since its header was read; try again")
    return _choose(source, target, rewrite, strategy, identity, files)


def carry_out(
    plan: StorePlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    whole_proof: bool = False,
    files: FileLayer = LOCAL,
) -> StoreReceipt:
    """Does what `plan` says; a failure leaves the old file as it was and nothing beside it.

    Every edit is read back and compared: header and new bytes in full, copied tensor data by
    samples or with `whole_proof` byte by byte. `progress` is called with (bytes done, in all).
    Where the system refuses the plan's strategy after all, the next one is taken, and the receipt
    says so.
    """
    while True:
        try:
            header = _attempt(plan, progress, whole_proof=whole_proof, files=files)
            break
        except RefusedError as refusal:
            plan = _next_plan(plan, str(refusal), files)
    return StoreReceipt(
        path=plan.target,
        strategy=plan.strategy,
        bytes_written=plan.bytes_written,
        undoable=plan.undoable,
        rejected=plan.rejected,
        header=header,
    )


def _choose(
    source: Path,
    target: Path,
    rewrite: Rewrite,
    requested: Strategy | None,
    identity: tuple[int, int, int],
    files: FileLayer,
    refused: tuple[Rejection, ...] = (),
) -> StorePlan:
    """The first way that applies, or the requested one; `refused` are known not to."""
    in_place = source == target
    rejected = list(refused)
    known = {rejection.strategy for rejection in refused}
    for way in _ways(rewrite, files, target, in_place=in_place):
        if way.strategy in known or (requested and way.strategy is not requested):
            continue
        if isinstance(way, Rejection):
            rejected.append(way)
            continue
        undoable = in_place and way.bytes_lost <= CARRY_LIMIT
        plan = StorePlan(
            source=source,
            target=target,
            rewrite=rewrite,
            requested=requested,
            identity=identity,
            way=way,
            bytes_journaled=way.bytes_lost if undoable else 0,
            undoable=undoable,
            rejected=tuple(rejected),
        )
        growth = way.composition.size - rewrite.source.file_size
        growth = max(growth, 0) if way.strategy in INSIDE else way.bytes_written
        require_room(files, target, growth + plan.bytes_journaled)
        return plan
    reasons = "; ".join(each.reason for each in rejected) or "only a copy makes a new file"
    wanted = "any strategy" if requested is None else f"strategy {requested.value!r}"
    raise RequestError(f"{wanted} cannot store this edit of {source}: {reasons}")


def _ways(
    rewrite: Rewrite, files: FileLayer, target: Path, *, in_place: bool
) -> Iterator[Way | Rejection]:
    if in_place:
        yield from ways_inside(rewrite, files, target)
    yield from ways_beside(rewrite, files, target)


def _attempt(
    plan: StorePlan,
    progress: Callable[[int, int], None] | None,
    *,
    whole_proof: bool,
    files: FileLayer,
) -> Header:
    inside = plan.strategy in INSIDE
    with storage("open", plan.source):
        source = files.open(plan.source, "r+b" if inside else "rb")
    with source:
        lock(source, plan.source, shared=not plan.in_place)
        if _identity(plan.source) != plan.identity:
            raise StorageError(f"{plan.source} has changed since the edit was planned; try again")
        if plan.in_place:
            _check_settled(plan.source)
        if inside:
            return overwrite(files, source, plan.source, plan.rewrite, plan.way, progress)
        return supplant(
            files,
            source,
            plan.target,
            plan.rewrite,
            plan.way,
            in_place=plan.in_place,
            journaled=plan.undoable,
            progress=progress,
            whole_proof=whole_proof,
        )


def _next_plan(plan: StorePlan, reason: str, files: FileLayer) -> StorePlan:
    if plan.requested is not None:
        raise StorageError(f"strategy {plan.strategy.value!r} was refused: {reason}")
    refused = Rejection(strategy=plan.strategy, reason=reason)
    return _choose(
        plan.source,
        plan.target,
        plan.rewrite,
        None,
        plan.identity,
        files,
        (*plan.rejected, refused),
    )


def _identity(path: Path) -> tuple[int, int, int]:
    with storage("read", path):
        status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_settled(path: Path) -> None:
    if journal_path(path).exists():
        raise StorageError(f"an edit of {path} was interrupted or is going on; recover it first")


def _check_output(source: Path, target: Path, force: Collection[str]) -> None:
    check_names(force)
    if target.is_dir():
        raise StorageError(f"{target} is a directory; name the file to write")
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is not a directory to write {target.name} into")
    if not target.exists():
        return
    if source.samefile(target):
        raise RequestError(f"{target} is the input itself; edit it in place instead")
    if "exists" not in force:
        raise GuardError(f"{target} exists already; force 'exists' to replace it", guard="exists")
