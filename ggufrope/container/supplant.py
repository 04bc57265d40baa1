"""Carries out an edit by a new file: shared or copied, proved, then renamed into its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from ggufrope.container.build import built, keep_attributes
from ggufrope.container.files import FileLayer, storage
from ggufrope.container.inplace import copied
from ggufrope.container.journal import commit, draw_up, write_journal
from ggufrope.container.ladder import Strategy, Way
from ggufrope.container.proof import prove_header, prove_pieces
from ggufrope.container.siblings import journal_path, partial_path, undo_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ggufrope.container.composition import Rewrite
    from ggufrope.container.types import Header


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
