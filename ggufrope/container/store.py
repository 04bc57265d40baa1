"""Plan how a `Rewrite` is stored, and do it: in the file itself, or as a new file.

`plan_store` chooses the cheapest strategy that applies and writes nothing. `execute` carries the
plan out. An edit in the file goes: journal, insertion, patches, verification, commit. A new file is
shared or copied, verified, made durable, and then renamed to its place. `execute_together` does
that for several files of a split model: all journals are written before the first file changes, and
all files are as planned before the first journal is committed, which commits the edit.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.beside import journal_path
from ggufrope.container.filesystem import (
    LOCAL,
    UNSUPPORTED,
    FileLayer,
    RefusedError,
    lock,
    require_room,
    write_all,
)
from ggufrope.container.guards import check_guards, check_names
from ggufrope.container.history import adopt, bound, forget, next_number, undo_steps
from ggufrope.container.journal import (
    Group,
    Place,
    commit,
    make_record,
    matches,
    write_journal,
)
from ggufrope.container.newfile import (
    Build,
    building,
    keep_attributes,
    verify_header,
    verify_pieces,
)
from ggufrope.container.pieces import Rewrite, place_pieces
from ggufrope.container.restore import Edited, restore, set_time
from ggufrope.container.shards import shard_paths
from ggufrope.container.strategies import (
    CARRY_LIMIT,
    IN_PLACE,
    Option,
    Rejection,
    Strategy,
    options_in_place,
    options_new_file,
)
from ggufrope.container.types import FileIdentity, Header, Span
from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ggufrope.container.journal import Record
    from ggufrope.container.newfile import Partial
    from ggufrope.container.pieces import Piece

    Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdit:
    """One edit of one file, before a strategy is chosen: `target` is `source` for one in place.

    `requested` is the only strategy to consider, None for the cheapest. `identity` shows
    whether the file is still the one that was planned for. With `replaces`, a target that exists
    is replaced.
    """

    source: Path
    target: Path
    rewrite: Rewrite
    requested: Strategy | None
    identity: FileIdentity
    replaces: bool

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
    """What was done; `header` is read back from the result.

    `undo_steps` counts the edits of the model that can be undone now, 0 for a new file.
    """

    path: Path
    strategy: Strategy
    bytes_written: int
    undoable: bool
    rejected: tuple[Rejection, ...]
    header: Header
    undo_steps: int


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
    header = rewrite.source
    if identity != (header.identity or replace(identity, size=header.file_size)):
        raise StorageError(f"{path} has changed since its header was read; try again")
    edit = FileEdit(
        source=source,
        target=target,
        rewrite=rewrite,
        requested=strategy,
        identity=identity,
        replaces=output is None or "exists" in force,
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
    return execute_together((plan,), progress=progress, verify_all=verify_all, files=files)[0]


def execute_together(
    plans: Sequence[StorePlan],
    *,
    progress: Callable[[int, int], None] | None = None,
    verify_all: bool = False,
    files: FileLayer = LOCAL,
) -> tuple[StoreReceipt, ...]:
    """Do what `plans`, those of one model's files, say: all of it or, in place, nothing.

    See `execute`. New files are written one after the other. Raises RequestError where several
    files would be edited in place and one of them could not be restored.
    """
    if not all(plan.in_place for plan in plans):
        return tuple(
            receipt
            for plan in plans
            for receipt in _execute((plan,), progress, verify_all=verify_all, files=files)
        )
    if len(plans) > 1:
        for plan in plans:
            if not plan.undoable:
                raise RequestError(
                    f"{plan.source} is one of several files to edit, and too much of it would "
                    "change to be undone; write a copy (`output`) instead"
                )
    return _execute(tuple(plans), progress, verify_all=verify_all, files=files)


def _execute(
    plans: tuple[StorePlan, ...],
    progress: Progress | None,
    *,
    verify_all: bool,
    files: FileLayer,
) -> tuple[StoreReceipt, ...]:
    """Execute plans together, with the next strategy for each one whose own is refused."""
    while True:
        attempt = _Attempt(files=files, progress=progress, verify_all=verify_all)
        try:
            headers = attempt.run(plans)
            break
        except _RefusedPlanError as refusal:
            at = plans.index(refusal.plan)
            plans = (*plans[:at], _next_plan(plans[at], str(refusal), files), *plans[at + 1 :])
    steps = len(undo_steps(_model_files(plans[0].target))) if plans[0].in_place else 0
    return tuple(
        StoreReceipt(
            path=plan.target,
            strategy=plan.strategy,
            bytes_written=plan.bytes_written,
            undoable=plan.undoable,
            rejected=plan.rejected,
            header=header,
            undo_steps=steps,
        )
        for plan, header in zip(plans, headers, strict=True)
    )


class _RefusedPlanError(Exception):
    """The system refused the strategy of `plan`, and nothing has changed."""

    def __init__(self, plan: StorePlan, reason: str) -> None:
        super().__init__(reason)
        self.plan = plan


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
    """A plan that is being executed: its source is open as `file` and locked.

    `record` is the way back, None where there is none. `contents` are the (offset, bytes) to write
    into the file, or `partial` is the new file, with `header`, to put in its place.
    """

    plan: StorePlan
    file: BinaryIO
    record: Record | None
    contents: Sequence[tuple[int, bytes]] = ()
    partial: Partial | None = None
    header: Header | None = None

    @property
    def path(self) -> Path:
        return self.plan.target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One attempt to execute plans with the strategies that they name."""

    files: FileLayer
    progress: Progress | None
    verify_all: bool

    def run(self, plans: Sequence[StorePlan]) -> tuple[Header, ...]:
        """Return the headers of the results. Raises _RefusedPlanError with nothing changed."""
        with ExitStack() as stack:
            sources = [self._open(plan, stack) for plan in plans]
            number = 0
            if plans[0].in_place:
                number = next_number(_model_files(plans[0].target))
            active = [plan for plan in plans if not _is_done(plan)]
            id_ = os.urandom(8).hex()
            edits = {}
            for plan, source in zip(plans, sources, strict=True):
                if plan in active:
                    group = None
                    if len(active) > 1:
                        group = Group(id=id_, size=len(active), leader=plan is active[-1])
                    place = Place(number=number, group=group, inode=plan.edit.identity.inode)
                    edits[plan.target] = self._prepare(plan, source, place, stack)
            # The leader, the file with the metadata, comes last in plans, and first in a journal.
            headers = self._change(list(reversed(edits.values())))
        for edit in edits.values():
            if edit.record is not None:
                bound(self.files, edit.path)
        return tuple(headers.get(plan.target, plan.edit.rewrite.source) for plan in plans)

    def _open(self, plan: StorePlan, stack: ExitStack) -> BinaryIO:
        inside = plan.strategy in IN_PLACE
        with storage("open", plan.source):
            source = stack.enter_context(self.files.open(plan.source, "r+b" if inside else "rb"))
        copy = not plan.in_place
        lock(source, plan.source, shared=copy, optional=copy, files=self.files)
        if _identity(plan.source) != plan.edit.identity:
            raise StorageError(f"{plan.source} has changed since the edit was planned; try again")
        if plan.in_place:
            _require_no_journal(plan.source)
            adopt(self.files, source, plan.source)
        return source

    def _prepare(
        self, plan: StorePlan, source: BinaryIO, place: Place, stack: ExitStack
    ) -> _OpenEdit:
        """Read what is to be written, or write the new file; the old one stays as it is."""
        files, option, old = self.files, plan.option, plan.edit.rewrite.source
        if plan.strategy in IN_PLACE:
            _, patches = place_pieces(option.composition.pieces, option.insertion)
            with storage("read", plan.source):
                record = make_record(files, source, old, option, place)
                contents = [
                    (patch.offset, _content(files, source, patch.piece)) for patch in patches
                ]
            return _OpenEdit(plan=plan, file=source, record=record, contents=contents)
        build = Build(
            files=files,
            source=source,
            target=plan.target,
            composition=option.composition,
            progress=self.progress,
        )
        try:
            partial = stack.enter_context(building(build, clone=plan.strategy is Strategy.CLONE))
        except RefusedError as error:
            raise _RefusedPlanError(plan, str(error)) from error
        verify_pieces(build, partial.file, verify_all=self.verify_all)
        header = verify_header(partial.file, plan.edit.rewrite, option.composition, plan.target)
        made = None
        with storage("write", plan.target):
            keep_attributes(source, partial.file, in_place=plan.in_place)
            if plan.undoable:
                inode = os.fstat(partial.file.fileno()).st_ino
                made = make_record(files, source, old, option, replace(place, inode=inode))
                set_time(partial.file, made.new_mtime_ns)
            files.sync(partial.file)
        return _OpenEdit(plan=plan, file=source, record=made, partial=partial, header=header)

    def _change(self, edits: Sequence[_OpenEdit]) -> dict[Path, Header]:
        """Write the journals, then the files, then commit; the leader is first in `edits`.

        Whatever goes wrong after the first change is rolled back at once; where even that fails,
        `recover` finds the journals.
        """
        files = self.files
        headers: dict[Path, Header] = {}
        journaled: list[_OpenEdit] = []
        try:
            for edit in edits:
                if edit.record is not None:
                    journaled.append(edit)
                    write_journal(files, edit.path, edit.record)
            for edit in edits:
                if edit.partial is None:
                    headers[edit.path] = self._write(edit)
                else:
                    headers[edit.path] = self._put_in_place(edit, edit.partial)
            for edit in journaled:
                if edit.record is not None:
                    commit(files, edit.path, edit.record)
        except BaseException:
            with suppress(OSError, StorageError):
                self._take_back(journaled)
            raise
        return headers

    def _write(self, edit: _OpenEdit) -> Header:
        """Write into the open file, verify it and return its new header."""
        plan, files, file, record = edit.plan, self.files, edit.file, edit.record
        path = plan.source
        if record is None:
            raise StorageError(f"{path} has no journal; nothing was written")
        with storage("write", path):
            self._apply(edit, record)
        if not (matches(record.new_checksum, files, file) and matches(record.samples, files, file)):
            raise StorageError(
                f"verification failed: {path} was not as planned, and the edit was rolled back"
            )
        return verify_header(file, plan.edit.rewrite, plan.option.composition, path)

    def _apply(self, edit: _OpenEdit, record: Record) -> None:
        """Write the contents of the edit.

        The insertion comes first and is made durable: sizes then show how far an interrupted edit
        has come.
        """
        files, file = self.files, edit.file
        if record.insertion is not None:
            try:
                files.insert_range(file, record.insertion.offset, record.insertion.length)
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    raise _RefusedPlanError(edit.plan, error.strerror or "") from error
                raise
            files.sync(file)
        total = sum(len(content) for _, content in edit.contents)
        done = 0
        for offset, content in edit.contents:
            write_all(files, file, offset, content)
            done += len(content)
            if self.progress is not None:
                self.progress(done, total)
        if os.fstat(file.fileno()).st_size > record.new_size:
            files.resize(file, record.new_size)
        set_time(file, record.new_mtime_ns)
        files.sync(file)

    def _put_in_place(self, edit: _OpenEdit, partial: Partial) -> Header:
        """Give the new file, which is whole, verified and durable, its name."""
        plan, files, target = edit.plan, self.files, edit.path
        with storage("put in place", target):
            if plan.edit.replaces:
                files.replace(partial.path, target)
            else:
                try:
                    files.place(partial.path, target)
                except FileExistsError as error:
                    raise _exists(target) from error
        with storage("sync", target.parent):
            files.sync_directory(target.parent)
            if plan.in_place and not plan.undoable:
                forget(files, target)  # its records belong to the file that was just replaced
        if edit.header is None:
            raise StorageError(f"{target} was not verified")
        return edit.header

    def _take_back(self, edits: Sequence[_OpenEdit]) -> None:
        """Restore what was changed, as an undo does; the files are still locked."""
        with ExitStack() as stack:
            edited = []
            for edit in edits:
                file = edit.file
                if edit.partial is not None:  # the name may be that of the new file by now
                    file = stack.enter_context(self.files.open(edit.path, "rb"))
                if edit.record is not None:
                    edited.append(Edited(path=edit.path, file=file, record=edit.record))
            restore(self.files, edited)


def _is_done(plan: StorePlan) -> bool:
    """Return whether an edit in place changes nothing."""
    option = plan.option
    if plan.strategy not in IN_PLACE:
        return False
    _, patches = place_pieces(option.composition.pieces, option.insertion)
    return not patches and option.composition.size == plan.edit.rewrite.source.file_size


def _model_files(path: Path) -> tuple[Path, ...]:
    return tuple(shard.resolve() for shard in shard_paths(path))


def _content(files: FileLayer, file: BinaryIO, piece: Piece) -> bytes:
    return files.read(file, piece.offset, piece.length) if isinstance(piece, Span) else piece


def _identity(path: Path) -> FileIdentity:
    with storage("read", path):
        return FileIdentity.of(path.stat())


def _require_no_journal(path: Path) -> None:
    if journal_path(path).exists():
        raise StorageError(
            f"{path} has an unfinished edit; wait for it, or run `ggufrope inspect {path}` to "
            "repair it"
        )


def _check_output(source: Path, target: Path, force: Collection[str]) -> None:
    """Raise where `target` cannot be a new file made from `source`."""
    check_names(force)
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is not a directory to write {target.name} into")
    try:
        status = target.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    if target.is_dir():
        raise StorageError(f"{target} is a directory; name the file to write")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise StorageError(f"{target} is a device, pipe or socket; name a file to write")
    if target.exists() and source.samefile(target):
        raise RequestError(f"{target} is the input itself; edit it in place instead")
    if "exists" not in force:
        raise _exists(target)


def _exists(target: Path) -> GuardError:
    return GuardError(
        f"{target} exists already; pass `force` 'exists' to replace it", guard="exists"
    )
