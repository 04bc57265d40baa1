"""The hidden files that stand beside a model while and after it is edited in place.

    .NAME.ggufrope-partial   a new file that grows; worthless until it is renamed
    .NAME.ggufrope-record    a journal that grows; likewise
    .NAME.ggufrope-journal   an edit in progress, or one that was interrupted
    .NAME.ggufrope-undo      the last finished edit

Each has one name and not a random one, so that what a crash leaves is found and removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def partial_path(path: Path) -> Path:
    return _sibling(path, "partial")


def record_path(path: Path) -> Path:
    return _sibling(path, "record")


def journal_path(path: Path) -> Path:
    return _sibling(path, "journal")


def undo_path(path: Path) -> Path:
    return _sibling(path, "undo")


def _sibling(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.ggufrope-{word}")
