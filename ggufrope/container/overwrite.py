"""Carries out an edit inside the file: journal, insertion, patches, proof, commit."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from ggufrope.container.files import UNSUPPORTED, FileLayer, RefusedError, storage, write_all
from ggufrope.container.inplace import settle
from ggufrope.container.journal import commit, draw_up, holds, write_journal
from ggufrope.container.proof import prove_header
from ggufrope.container.recovery import roll_back
from ggufrope.container.types import Span
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ggufrope.container.composition import Piece, Rewrite
    from ggufrope.container.ladder import Way
    from ggufrope.container.records import Record
    from ggufrope.container.types import Header


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
