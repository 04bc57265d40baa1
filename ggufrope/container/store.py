"""Plan how a `Rewrite` is stored, and do it: in the file itself, or as a new file.

`plan_store` chooses the cheapest strategy that applies and writes nothing. `execute` carries the
plan out. An edit in the file goes: journal, insertion, patches, verification, commit. A new file is
shared or copied, verified, made durable, and then renamed to its place.
"""

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
from ggufrope.container.journal import commit, make_record, matches, write_journal
from ggufrope.container.newfile import (
    Build,
    building,
    keep_attributes,
    verify_header,
    verify_pieces,
)
from ggufrope.container.pieces import Rewrite, place_pieces
from ggufrope.container.recovery import roll_back
from ggufrope.container.strategies import (
    CARRY_LIMIT,
    IN_PLACE,
    Option,
    Rejection,
    Strategy,
    options_in_place,
    options_new_file,
)
from ggufrope.container.types import Header, Span
from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ggufrope.container.journal import Record
    from ggufrope.container.pieces import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdit:
    """One edit of one file, before a strategy is chosen: `target` is `source` for one in place.

    `requested` is the only strategy to consider, None for the cheapest. `identity` is the inode,
    size and time of change of the file that was planned for.
    """

    source: Path
    target: Path
    rewrite: Rewrite
    requested: Strategy | None
    identity: tuple[int, int, int]

    @property
    def in_place(self) -> bool:
        return self.source == self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What will be written where, and how.

    `bytes_written` counts the bytes of the model, without those it shares with the old file;
    `bytes_journaled` what an edit in place first saves of the old file. `undoable` is False for a
    new file, where there is nothing to undo, and where too much would have to be saved.
    """

    edit: FileEdit
    option: Option
    bytes_journaled: int
    undoable: bool
    rejected: tuple[Rejection, ...]

    @property
    def source(self) -> Path:
        return self.edit.source

    @property
    def target(self) -> Path:
        return self.edit.target

    @property
    def in_place(self) -> bool:
        return self.edit.in_place

    @property
    def strategy(self) -> Strategy:
        return self.option.strategy

    @property
    def bytes_written(self) -> int:
        return self.option.bytes_written


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
    """Plan to store `rewrite` of the file at `path`: as `output`, or in place where that is None.

    Without `strategy` the cheapest that applies is taken. Nothing is written. `force` names the
    guards to override. Raises RequestError, GuardError or StorageError where it cannot be done.
    """
    source = Path(path).resolve()
    if output is None:
        target = source
        check_guards(path, force)
        _require_no_journal(source)
    else:
        target = Path(os.path.abspath(output))  # noqa: PTH100 - a link is replaced, not followed
        _check_output(source, target, force)
    identity = _identity(source)
    if identity[1] != rewrite.source.file_size:
        raise StorageError(f"{path} has changed since its header was read; try again")
    edit = FileEdit(
        source=source, target=target, rewrite=rewrite, requested=strategy, identity=identity
    )
    return _choose(edit, files)


def execute(
    plan: StorePlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    verify_all: bool = False,
    files: FileLayer = LOCAL,
) -> StoreReceipt:
    """Do what `plan` says; a failure leaves the old file as it was and nothing beside it.

    Every edit is read back and compared: header and new bytes in full, copied tensor data by
    samples or with `verify_all` byte by byte. `progress` is called with (bytes done, bytes in all).
    Where the system refuses the plan's strategy after all, the next one is taken, and the receipt
    names it.
    """
    while True:
        try:
            header = _attempt(plan, progress, verify_all=verify_all, files=files)
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


def _choose(edit: FileEdit, files: FileLayer, refused: tuple[Rejection, ...] = ()) -> StorePlan:
    """Plan with the first option that applies; those in `refused` are known not to."""
    rejected = list(refused)
    known = {rejection.strategy for rejection in refused}
    for option in _options(edit, files):
        if option.strategy in known or (edit.requested and option.strategy is not edit.requested):
            continue
        if isinstance(option, Rejection):
            rejected.append(option)
            continue
        undoable = edit.in_place and option.bytes_lost <= CARRY_LIMIT
        plan = StorePlan(
            edit=edit,
            option=option,
            bytes_journaled=option.bytes_lost if undoable else 0,
            undoable=undoable,
            rejected=tuple(rejected),
        )
        growth = option.composition.size - edit.rewrite.source.file_size
        growth = max(growth, 0) if option.strategy in IN_PLACE else option.bytes_written
        require_room(files, edit.target, growth + plan.bytes_journaled)
        return plan
    reasons = "; ".join(each.reason for each in rejected) or "only a copy makes a new file"
    wanted = "no strategy" if edit.requested is None else f"strategy {edit.requested.value!r}"
    verb = "can" if edit.requested is None else "cannot"
    raise RequestError(f"{wanted} {verb} store this edit of {edit.source}: {reasons}")


def _options(edit: FileEdit, files: FileLayer) -> Iterator[Option | Rejection]:
    if edit.in_place:
        yield from options_in_place(edit.rewrite, files, edit.target)
    yield from options_new_file(edit.rewrite, files, edit.target)


def _next_plan(plan: StorePlan, reason: str, files: FileLayer) -> StorePlan:
    """Plan with the next strategy, the plan's own having been refused."""
    if plan.edit.requested is not None:
        raise StorageError(f"strategy {plan.strategy.value!r} was refused: {reason}")
    refused = Rejection(strategy=plan.strategy, reason=reason)
    return _choose(plan.edit, files, (*plan.rejected, refused))


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenEdit:
    """A plan that is being executed: its source is open as `file` and locked."""

    plan: StorePlan
    file: BinaryIO
    files: FileLayer
    progress: Callable[[int, int], None] | None
    verify_all: bool


def _attempt(
    plan: StorePlan,
    progress: Callable[[int, int], None] | None,
    *,
    verify_all: bool,
    files: FileLayer,
) -> Header:
    """Execute the plan with its strategy. Raises RefusedError where another must be used."""
    inside = plan.strategy in IN_PLACE
    with storage("open", plan.source):
        source = files.open(plan.source, "r+b" if inside else "rb")
    with source:
        copy = not plan.in_place
        lock(source, plan.source, shared=copy, optional=copy, files=files)
        if _identity(plan.source) != plan.edit.identity:
            raise StorageError(f"{plan.source} has changed since the edit was planned; try again")
        if plan.in_place:
            _require_no_journal(plan.source)
        edit = _OpenEdit(
            plan=plan, file=source, files=files, progress=progress, verify_all=verify_all
        )
        return _edit_in_place(edit) if inside else _replace_file(edit)


def _edit_in_place(edit: _OpenEdit) -> Header:
    """Turn the open file into what the plan's option leads to and return its new header.

    Whatever goes wrong after the first change is rolled back at once; where even that fails,
    `recover` finds the journal.
    """
    plan, files, file = edit.plan, edit.files, edit.file
    path, rewrite, option = plan.source, plan.edit.rewrite, plan.option
    _, patches = place_pieces(option.composition.pieces, option.insertion)
    if not patches and option.composition.size == rewrite.source.file_size:
        return rewrite.source
    with storage("read", path):
        record = make_record(files, file, rewrite.source, option)
        contents = [(patch.offset, _content(files, file, patch.piece)) for patch in patches]
    write_journal(files, path, record)
    try:
        with storage("write", path):
            _apply(edit, contents, record)
        if not (matches(record.new_checksum, files, file) and matches(record.samples, files, file)):
            raise StorageError(
                f"verification failed: {path} was not as planned, and the edit was rolled back"
            )
        header = verify_header(file, rewrite, option.composition, path)
    except BaseException:
        with suppress(OSError, StorageError):
            roll_back(files, file, path, record)
        raise
    commit(files, path)
    return header


def _content(files: FileLayer, file: BinaryIO, piece: Piece) -> bytes:
    return files.read(file, piece.offset, piece.length) if isinstance(piece, Span) else piece


def _apply(edit: _OpenEdit, contents: Sequence[tuple[int, bytes]], record: Record) -> None:
    """Write the (offset, bytes) of `contents`.

    The insertion comes first and is made durable: sizes then show how far an interrupted edit has
    come.
    """
    files, file = edit.files, edit.file
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
        if edit.progress is not None:
            edit.progress(done, total)
    if os.fstat(file.fileno()).st_size > record.new_size:
        files.resize(file, record.new_size)
    files.sync(file)


def _replace_file(edit: _OpenEdit) -> Header:
    """Write the target as a new file from the open source and return its header.

    The new file gets its name only once it is whole, verified and durable.
    """
    plan, files, target = edit.plan, edit.files, edit.plan.target
    composition = plan.option.composition
    build = Build(
        files=files,
        source=edit.file,
        target=target,
        composition=composition,
        progress=edit.progress,
    )
    with building(build, clone=plan.strategy is Strategy.CLONE) as file:
        verify_pieces(build, file, verify_all=edit.verify_all)
        header = verify_header(file, plan.edit.rewrite, composition, target)
        with storage("write", target):
            keep_attributes(edit.file, file, owner=plan.in_place)
            files.sync(file)
        if plan.undoable:
            record = make_record(files, edit.file, plan.edit.rewrite.source, plan.option)
            write_journal(files, target, record)
        try:
            with storage("put in place", target):
                files.replace(partial_path(target), target)
        except BaseException:
            if plan.undoable:
                files.remove(journal_path(target))
            raise
        with storage("sync", target.parent):
            files.sync_directory(target.parent)
            if plan.undoable:
                commit(files, target)
            elif plan.in_place:
                # The undo record belongs to the file that was just replaced.
                files.remove(undo_path(target))
    return header


def _identity(path: Path) -> tuple[int, int, int]:
    with storage("read", path):
        status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _require_no_journal(path: Path) -> None:
    if journal_path(path).exists():
        raise StorageError(
            f"{path} has an unfinished edit; wait for it, or run `ggufrope inspect {path}` to "
            "repair it"
        )


def _check_output(source: Path, target: Path, force: Collection[str]) -> None:
    """Raise where `target` cannot be a new file made from `source`."""
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
        raise GuardError(
            f"{target} exists already; pass `force` 'exists' to replace it", guard="exists"
        )
