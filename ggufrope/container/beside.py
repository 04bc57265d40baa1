"""The hidden files beside a model: their names, and which of them are there.

An edit keeps these files in the model's folder:

    .NAME.ggufrope-partial-TAG   a new file while it is written; worthless until it is renamed
    .NAME.ggufrope-record-TAG    a journal while it is written; likewise
    .NAME.ggufrope-journal       an edit in progress, or one that was interrupted
    .NAME.ggufrope-undo-NUMBER   a finished edit; the highest number is the newest. Where several
                                 were merged, -from-NUMBER follows, the number of the first

TAG is random, so that nobody can put a file there first; remains are found by listing the folder.
Where NAME is too long to be extended, its beginning and a digest stand for it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_LONGEST = 215
"""Bytes of a model's name that still leave room for what is added; file systems allow 255."""

_HIDDEN = re.compile(
    r"\.(?P<stem>.+)\.ggufrope-(?P<kind>partial|record|journal|undo)(?:-(?P<tag>[0-9a-f]{1,32}))?"
    r"(?:-from-(?P<first>[0-9]{6}))?",
    re.DOTALL,
)


_NUMBER = re.compile(r"(?:[0-9]{6})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenFile:
    """One hidden file: `stem` stands for the model's name, `tag` is empty where it has none."""

    path: Path
    stem: str
    kind: str
    tag: str
    merged_from: str

    @property
    def number(self) -> int:
        """The number of an undo record; 0 for that of an earlier version, which has none."""
        return int(self.tag or 0)

    @property
    def first(self) -> int:
        """The number of the first edit that an undo record undoes."""
        return int(self.merged_from) if self.merged_from else self.number


def stem_of(name: str) -> str:
    """Return what stands for a model's name in the names of its hidden files."""
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    import hashlib  # rarely needed, and slow to import

    return f"{raw[:120].decode('utf-8', 'ignore')}~{hashlib.sha256(raw).hexdigest()[:16]}"


def journal_path(path: Path) -> Path:
    """Return the name of the journal of an edit of `path` in progress, or interrupted."""
    return _beside(path, "journal")


def undo_path(path: Path, number: int, first: int | None = None) -> Path:
    """Return the name of the record of the finished edit of `path` with that number.

    With a lower `first`, the record undoes all edits from that number on.
    """
    merged = "" if first is None or first == number else f"-from-{first:06}"
    return _beside(path, (f"undo-{number:06}" if number else "undo") + merged)


def new_partial_path(path: Path) -> Path:
    """Return an unguessable name for the new file of `path` while it is written."""
    return _beside(path, f"partial-{os.urandom(8).hex()}")


def new_record_path(path: Path) -> Path:
    """Return an unguessable name for the journal of `path` while it is written."""
    return _beside(path, f"record-{os.urandom(8).hex()}")


def hidden_files(folder: Path) -> tuple[HiddenFile, ...]:
    """Return every hidden file in a folder, by name; none where the folder cannot be listed."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone, and fast
    except OSError:
        return ()
    found = ((name, _HIDDEN.fullmatch(name)) for name in names if ".ggufrope-" in name)
    return tuple(
        HiddenFile(
            path=folder / name,
            stem=match["stem"],
            kind=match["kind"],
            tag=match["tag"] or "",
            merged_from=match["first"] or "",
        )
        for name, match in found
        if match and (match["kind"] != "undo" or _NUMBER.fullmatch(match["tag"] or ""))
    )


def undo_records(path: Path) -> tuple[HiddenFile, ...]:
    """Return the undo records of the model file at `path`, oldest first.

    Those that were merged into another, and are still there, are not among them.
    """
    found = _undo_records(path)
    covered = {one for _, merged in _merges(found) for one in merged}
    return tuple(one for one in found if one not in covered)


def merged_records(path: Path) -> tuple[tuple[HiddenFile, tuple[HiddenFile, ...]], ...]:
    """Return the undo records of `path` that others were merged into, and these, where any are
    still there."""
    return tuple((one, covered) for one, covered in _merges(_undo_records(path)) if covered)


def _undo_records(path: Path) -> list[HiddenFile]:
    stem = stem_of(path.name)
    found = [one for one in hidden_files(path.parent) if one.stem == stem and one.kind == "undo"]
    return sorted(found, key=lambda one: one.number)


def _merges(found: Sequence[HiddenFile]) -> Iterator[tuple[HiddenFile, tuple[HiddenFile, ...]]]:
    """Yield each merged record and the records of the edits that it stands for."""
    for one in found:
        if one.merged_from:
            covered = (
                other
                for other in found
                if other is not one and one.first <= other.first and other.number <= one.number
            )
            yield one, tuple(covered)


def remains(path: Path) -> tuple[Path, ...]:
    """Return the half-written files beside `path`, which may still be being written."""
    stem = stem_of(path.name)
    return tuple(
        one.path
        for one in hidden_files(path.parent)
        if one.stem == stem and one.kind in ("partial", "record")
    )


def orphans(folder: Path) -> tuple[HiddenFile, ...]:
    """Return the journals and undo records in a folder whose model has another name now."""
    found = [one for one in hidden_files(folder) if one.kind in ("journal", "undo")]
    if not found:
        return ()
    present = {stem_of(name) for name in os.listdir(folder)}  # noqa: PTH208
    return tuple(one for one in found if one.stem not in present)


def is_unfinished(paths: Iterable[Path]) -> bool:
    """Return whether an unfinished edit left anything beside the files at `paths`.

    A look at names only. A journal whose model is not there counts: it may belong to one of these
    files, by another name.
    """
    stems: dict[Path, set[str]] = {}
    for path in paths:
        stems.setdefault(path.parent, set()).add(stem_of(path.name))
    for folder, wanted in stems.items():
        found = hidden_files(folder)
        if any(one.stem in wanted and one.kind != "undo" for one in found):
            return True
        if any(one.kind == "journal" for one in found) and any(
            one.kind == "journal" for one in orphans(folder)
        ):
            return True
    return False


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{stem_of(path.name)}.ggufrope-{word}")
