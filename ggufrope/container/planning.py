"""Plan how a `Rewrite` is stored: where, with which strategy, and what speaks against it.

`plan_store` chooses the cheapest strategy that applies and writes nothing; `store` carries out what
was planned.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._files import standard_stream, storage
from ggufrope.container.beside import journal_path
from ggufrope.container.filesystem import (
    LOCAL,
    FileLayer,
    require_room,
)
from ggufrope.container.guards import check_guards, check_names
from ggufrope.container.pieces import Rewrite
from ggufrope.container.recovery import clear_remains
from ggufrope.container.remote import FileName, Place, RemoteFile, local, place_of
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
from ggufrope.container.types import FileIdentity
from ggufrope.errors import GuardError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdit:
    """One edit of one file, before a strategy is chosen: `target` is `source` for one in place.

    `requested` is the only strategy to consider, None for the cheapest. `identity` shows
    whether the file is still the one that was planned for. With `replaces`, a target that exists is
    replaced.
    """

    source: Place
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
        """The file on disk. Raises StorageError where it is on a server."""
        return local(self.edit.source)

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

    @property
    def bytes_needed(self) -> int:
        """How many bytes must be free beside the target."""
        if self.strategy not in IN_PLACE:
            return self.bytes_written + self.bytes_journaled
        growth = self.option.composition.size - self.edit.rewrite.source.file_size
        return max(growth, 0) + self.bytes_journaled


def plan_store(
    name: FileName,
    rewrite: Rewrite,
    *,
    output: str | os.PathLike[str] | None = None,
    strategy: Strategy | None = None,
    force: Collection[str] = (),
    files: FileLayer = LOCAL,
) -> StorePlan:
    """Plan to store `rewrite` of the file `name`: as `output`, or in place where that is None.

    Without `strategy` the cheapest that applies is taken. Nothing is written; what a crash left of
    an earlier copy to `output` is removed, and its room is free. `force` names the
    guards to override. Raises RequestError, GuardError or StorageError where it cannot be done.
    """
    place, header = place_of(name), rewrite.source
    source = place if isinstance(place, RemoteFile) else place.resolve()
    if output is None:
        target = local(source)
        check_guards(local(place), force)
        require_no_journal(local(place))
    else:
        target = Path(os.path.abspath(output))  # noqa: PTH100 - a link is replaced, not followed
        _check_output(source, target, force)
        clear_remains(files, (target,))
    refused: tuple[Rejection, ...] = ()
    if isinstance(source, RemoteFile):
        identity = FileIdentity(device=0, inode=0, size=header.file_size, mtime_ns=0)
        refused = (Rejection(strategy=Strategy.CLONE, reason="the file is not on this disk"),)
    else:
        identity = identity_of(source)
        if identity != (header.identity or replace(identity, size=header.file_size)):
            raise StorageError(f"{place} has changed since its header was read; try again")
    edit = FileEdit(
        source=source,
        target=target,
        rewrite=rewrite,
        requested=strategy,
        identity=identity,
        replaces=output is None or "exists" in force,
    )
    return _choose(edit, files, refused)


def _choose(edit: FileEdit, files: FileLayer, refused: tuple[Rejection, ...] = ()) -> StorePlan:
    """Plan with the first option that applies; those in `refused` are known not to."""
    rejected = list(refused)
    known = {rejection.strategy for rejection in refused}
    others = []
    for option in _options(edit, files):
        if option.strategy in known:
            continue
        if edit.requested and option.strategy is not edit.requested:
            others += [option.strategy.value] if isinstance(option, Option) else []
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
        require_room_for((plan,), files)
        return plan
    where = "in place" if edit.in_place else "as a new file"
    reasons = "; ".join(each.reason for each in rejected if edit.requested in (None, each.strategy))
    reasons = reasons or f"{where}, {' or '.join(others)} can"
    wanted = "no strategy" if edit.requested is None else f"strategy {edit.requested.value!r}"
    verb = "can" if edit.requested is None else "cannot"
    raise RequestError(f"{wanted} {verb} store this edit of {edit.source}: {reasons}")


def _options(edit: FileEdit, files: FileLayer) -> Iterator[Option | Rejection]:
    if edit.in_place:
        yield from options_in_place(edit.rewrite, files, edit.target)
    yield from options_new_file(edit.rewrite, files, edit.target)


def next_plan(plan: StorePlan, reason: str, files: FileLayer) -> StorePlan:
    """Plan with the next strategy, the plan's own having been refused."""
    if plan.edit.requested is not None:
        raise StorageError(f"strategy {plan.strategy.value!r} was refused: {reason}")
    refused = Rejection(strategy=plan.strategy, reason=reason)
    return _choose(plan.edit, files, (*plan.rejected, refused))


def require_room_for(plans: Sequence[StorePlan], files: FileLayer = LOCAL) -> None:
    """Raise StorageError where there is no room for what `plans`, of one model's files, write."""
    require_room(files, plans[0].target, sum(plan.bytes_needed for plan in plans))


def identity_of(path: Path) -> FileIdentity:
    """Return the identity of the file that is at `path` now. Raises StorageError."""
    with storage("read", path):
        return FileIdentity.of(path.stat())


def require_no_journal(path: Path) -> None:
    """Raise StorageError where a file of the model that `path` is a file of has a journal."""
    for shard in shard_paths(path):
        if journal_path(shard.resolve()).exists():
            raise StorageError(
                f"{shard} has an unfinished edit; wait for it, or run `ggufrope inspect {path}` to "
                "repair it"
            )


def _check_output(source: Place, target: Path, force: Collection[str]) -> None:
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
    with suppress(OSError):  # a link that leads nowhere is replaced, as one to a file is
        status = target.stat()
    if stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{target} is a directory; name the file to write")
    regular = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
    if not regular or standard_stream(status) is not None:
        raise StorageError(f"{target} is a device, pipe or socket; name a file to write")
    if isinstance(source, Path) and target.exists() and source.samefile(target):
        raise RequestError(f"{target} is the input itself; edit it in place instead")
    if "exists" not in force:
        raise name_is_taken(target)


def name_is_taken(target: Path) -> GuardError:
    """Return the error for an output that exists already."""
    return GuardError(
        f"{target} exists already; pass `force` 'exists' to replace it", guard="exists"
    )
