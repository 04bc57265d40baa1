"""Carry out the plan of an edit: in the file itself, or as a new file.

An edit in the file goes: journal, insertion, patches, verification, commit. A new file is shared or
copied, verified, made durable, and then renamed to its place. `execute_together` does that for
several files of a split model: all journals are written before the first file changes, and all
files are as planned before the first journal is committed, which commits the edit.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufrope._files import storage
from ggufrope.container.filesystem import (
    LOCAL,
    UNSUPPORTED,
    FileLayer,
    RefusedError,
    lock,
    open_to_edit,
    same_file,
    write_all,
)
from ggufrope.container.history import (
    adopt,
    bound,
    forget,
    next_number,
    set_aside_stale,
    undo_steps,
)
from ggufrope.container.journal import (
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
from ggufrope.container.pieces import place_pieces
from ggufrope.container.planning import (
    StorePlan,
    identity_of,
    name_is_taken,
    next_plan,
    plan_store,
    require_no_journal,
    require_room_for,
)
from ggufrope.container.record import Group
from ggufrope.container.restore import Edited, restore, set_time
from ggufrope.container.shards import shard_paths
from ggufrope.container.strategies import (
    IN_PLACE,
    Rejection,
    Strategy,
)
from ggufrope.container.types import Header, Span
from ggufrope.errors import RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ggufrope.container.newfile import Partial
    from ggufrope.container.pieces import Piece
    from ggufrope.container.record import Record

    Progress = Callable[[int, int], None]


__all__ = ["StorePlan", "StoreReceipt", "execute", "execute_together", "plan_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReceipt:
    """What was done; `header` is read back from the result.

    `undo_steps` counts the edits of the model that can be undone now, 0 for a new file. The oldest
    `undone_at_once` of them are one step, and of `undo_lost` before them no record was kept.
    """

    path: Path
    strategy: Strategy
    bytes_written: int
    undoable: bool
    rejected: tuple[Rejection, ...]
    header: Header
    undo_steps: int
    undone_at_once: int
    undo_lost: int


def execute(
    plan: StorePlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    verify_all: bool = False,
    committing: Callable[[], None] | None = None,
    files: FileLayer = LOCAL,
) -> StoreReceipt:
    """Do what `plan` says; a failure leaves the old file as it was and nothing beside it.

    Every edit is read back and compared: header and new bytes in full, copied tensor data by
    samples or with `verify_all` byte by byte. `progress` is called with (bytes done, bytes in all).
    Where the system refuses the plan's strategy after all, the next one is taken, and the receipt
    names it. `committing` is called, perhaps twice, when all is done but the renames that make it
    so: until then an interrupt undoes the edit.
    """
    return execute_together(
        (plan,), progress=progress, verify_all=verify_all, committing=committing, files=files
    )[0]


def execute_together(
    plans: Sequence[StorePlan],
    *,
    progress: Callable[[int, int], None] | None = None,
    verify_all: bool = False,
    committing: Callable[[], None] | None = None,
    files: FileLayer = LOCAL,
) -> tuple[StoreReceipt, ...]:
    """Do what `plans`, those of one model's files, say: all of it or, in place, nothing.

    See `execute`. New files get their names when all of them are written and verified. Raises
    RequestError where several files would be edited in place and one of them could not be restored.
    """
    active = [plan for plan in plans if not _is_done(plan)]
    for plan in active:
        if len(active) > 1 and plan.in_place and not plan.undoable:
            raise RequestError(
                f"{plan.source} is one of several files to edit, and too much of it would change "
                "to be undone; write a copy (`output`) instead"
            )
    plans = tuple(plans)
    while True:  # with the next strategy for each one whose own is refused
        require_room_for(plans, files)
        attempt = _Attempt(
            files=files, progress=progress, verify_all=verify_all, committing=committing
        )
        try:
            headers = attempt.run(plans)
            break
        except _RefusedPlanError as refusal:
            at = plans.index(refusal.plan)
            plans = (*plans[:at], next_plan(plans[at], str(refusal), files), *plans[at + 1 :])
    steps = undo_steps(_model_files(plans[0].target)) if plans[0].in_place else ()
    return tuple(
        StoreReceipt(
            path=plan.target,
            strategy=plan.strategy,
            bytes_written=plan.bytes_written,
            undoable=plan.undoable,
            rejected=plan.rejected,
            header=header,
            undo_steps=sum(step.edits for step in steps),
            undone_at_once=steps[0].edits if steps else 0,
            undo_lost=max(steps[0].first - 1, 0) if steps else 0,
        )
        for plan, header in zip(plans, headers, strict=True)
    )


class _RefusedPlanError(Exception):
    """The system refused the strategy of `plan`, and nothing has changed."""

    def __init__(self, plan: StorePlan, reason: str) -> None:
        super().__init__(reason)
        self.plan = plan


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
    committing: Callable[[], None] | None

    def run(self, plans: Sequence[StorePlan]) -> tuple[Header, ...]:
        """Return the headers of the results. Raises _RefusedPlanError with nothing changed."""
        with ExitStack() as stack:
            sources = [self._open(plan, stack) for plan in plans]
            number = 0
            if plans[0].in_place:
                set_aside_stale(self.files, _model_files(plans[0].target))
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
            for plan in plans:  # copying takes long, and others need not respect a lock
                _require_unchanged(plan)
            if plans[0].in_place:
                # The leader, the file with the metadata, is last in plans, and first in a journal.
                headers = self._change(list(reversed(edits.values())))
            else:
                headers = self._place_copies(list(edits.values()))
        if plans[0].in_place:
            # The edit is done: what cannot be merged now is tried again after the next one.
            with suppress(StorageError):
                bound(self.files, _model_files(plans[0].target))
        return tuple(headers.get(plan.target, plan.edit.rewrite.source) for plan in plans)

    def _open(self, plan: StorePlan, stack: ExitStack) -> BinaryIO:
        files = self.files
        with storage("open", plan.source):
            inside = plan.strategy in IN_PLACE
            opened = open_to_edit(files, plan.source) if inside else files.open(plan.source, "rb")
            source = stack.enter_context(opened)
        copy = not plan.in_place
        lock(source, plan.source, shared=copy, optional=copy, files=files)
        _require_unchanged(plan)
        if plan.in_place:
            require_no_journal(plan.source)
            adopt(files, source, plan.source)
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
            if len(journaled) < len(edits):  # no way leads back from what follows
                self._announce_commit()
            for edit in edits:
                if edit.partial is None:
                    headers[edit.path] = self._write(edit)
                else:
                    headers[edit.path] = self._put_in_place(edit, edit.partial)
            self._announce_commit()
            for edit in journaled:
                if edit.record is not None:
                    commit(files, edit.path, edit.record)
        except BaseException:
            with suppress(OSError, StorageError):
                self._take_back(journaled)
            raise
        return headers

    def _place_copies(self, edits: Sequence[_OpenEdit]) -> dict[Path, Header]:
        """Give new files their names; those of them that replace nothing go where one fails."""
        headers: dict[Path, Header] = {}
        self._announce_commit()
        try:
            for edit in edits:
                if edit.partial is not None:
                    headers[edit.path] = self._put_in_place(edit, edit.partial)
        except BaseException as error:
            placed = [edit for edit in edits if edit.path in headers or _has_name(edit)]
            for edit in placed:
                if not edit.plan.edit.replaces:
                    with suppress(OSError):
                        self.files.remove(edit.path)
            if edits[0].plan.edit.replaces and 0 < len(placed) < len(edits):
                names = ", ".join(edit.path.name for edit in placed)
                raise StorageError(
                    f"{error or 'interrupted'}; of the new files only {names} took the place of "
                    "old ones, so the model is mixed: write it again"
                ) from error
            raise
        return headers

    def _announce_commit(self) -> None:
        if self.committing is not None:
            self.committing()

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
        files.release(partial.file, *([edit.file] if plan.in_place else []))
        with storage("put in place", target):
            if plan.edit.replaces:
                files.replace(partial.path, target)
            else:
                try:
                    files.place(partial.path, target)
                except FileExistsError as error:
                    raise name_is_taken(target) from error
        with storage("sync", target.parent):
            try:
                files.sync_directory(target.parent)
            except OSError:
                if not plan.edit.replaces:  # a failure leaves no output
                    files.remove(target)
                raise
            if plan.in_place and not plan.undoable:
                forget(files, _model_files(target))  # they lead back from what was just replaced
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


def _has_name(edit: _OpenEdit) -> bool:
    """Return whether the new file of an edit has its name already."""
    with suppress(OSError, ValueError):  # on Windows the file is closed by then
        return edit.partial is not None and same_file(edit.partial.file, edit.path)
    return False


def _require_unchanged(plan: StorePlan) -> None:
    """Raise StorageError where the source is not the file that was planned for."""
    if identity_of(plan.source) != plan.edit.identity:
        raise StorageError(f"{plan.source} has changed since the edit was planned; try again")


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
