"""Locks of the file being edited, file systems that have none, and systems without `fcntl`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ggufrope.container import reader
from ggufrope.container.filesystem import BusyError, Mode, lock
from ggufrope.container.reader import parse_header, read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, Header
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import MalformedError, StorageError
from tests.container.edits import u32
from tests.container.faults import CapableFiles
from tests.container.writer import small_model

CONTAINER = Path(__file__).resolve().parent.parent.parent / "ggufrope" / "container"
EDITS = Edits(set={"llama.context_length": u32(4096)})

without_locks = pytest.mark.parametrize(
    "code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get
)


class LocklessFiles(CapableFiles):
    """A network file system that answers flock with an error."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.asked = 0

    def try_lock(self, file: BinaryIO, *, shared: bool) -> bool:
        self.asked += 1
        raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_model().encoded())
    return path


@without_locks
@pytest.mark.parametrize("strategy", [Strategy.OVERWRITE, Strategy.STREAM])
def test_an_edit_in_place_without_locks_is_refused(
    path: Path, code: int, strategy: Strategy
) -> None:
    before = path.read_bytes()
    files = LocklessFiles(code)
    rewrite = plan_rewrite(read_header(path), EDITS)
    plan = plan_store(path, rewrite, strategy=strategy, force={"in-use"}, files=files)
    with pytest.raises(StorageError, match=r"cannot lock .*m\.gguf.*write a copy") as caught:
        execute(plan, files=files)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["m.gguf"]


@without_locks
def test_undo_and_recovery_without_locks_are_refused(path: Path, code: int) -> None:
    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), force={"in-use"}))
    after = path.read_bytes()
    with pytest.raises(StorageError, match="cannot lock"):
        undo(path, force={"in-use"}, files=LocklessFiles(code))
    record = path.with_name(".m.gguf.ggufrope-undo-000001")
    journal = record.rename(path.with_name(".m.gguf.ggufrope-journal"))
    with pytest.raises(StorageError, match="cannot lock"):
        recover(path, files=LocklessFiles(code))
    assert path.read_bytes() == after
    assert journal.exists()


@without_locks
def test_a_copy_needs_no_locks(path: Path, code: int) -> None:
    output = path.with_name("o.gguf")
    files = LocklessFiles(code)
    plan = plan_store(path, plan_rewrite(read_header(path), EDITS), output=output, files=files)
    execute(plan, files=files)
    assert files.asked == 2
    assert read_header(output).get("llama.context_length") == 4096
    assert {each.name for each in path.parent.iterdir()} == {"m.gguf", "o.gguf"}


@without_locks
def test_remains_that_cannot_be_locked_are_left(path: Path, code: int) -> None:
    """Another process may still be writing them."""
    partial = path.with_name(".m.gguf.ggufrope-partial")
    partial.write_bytes(b"half a model")
    assert recover(path, files=LocklessFiles(code)) is None
    assert partial.exists()


def test_a_file_that_was_replaced_before_it_was_locked_is_not_edited(path: Path) -> None:
    other = path.with_name("other.gguf")
    other.write_bytes(path.read_bytes())
    with path.open("r+b") as file:
        lock(file, path)
        other.replace(path)
        with pytest.raises(StorageError, match="replaced a moment ago"):
            lock(file, path)


def test_a_reader_leaves_what_an_editor_is_writing(path: Path) -> None:
    """Also where it looks before that is locked."""

    class Watched(CapableFiles):
        created = 0

        def create(self, path: Path) -> BinaryIO:
            file = super().create(path)
            self.created += 1
            if self.created in (1, 3):
                recover(model)
            return file

        def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> int:
            with suppress(BusyError):
                recover(model)
            return super().write(file, offset, data)

    model = path
    for strategy, created in ((Strategy.OVERWRITE, 2), (Strategy.STREAM, 4)):
        files = Watched()
        rewrite = plan_rewrite(read_header(path), EDITS)
        made = plan_store(path, rewrite, strategy=strategy, force={"in-use"}, files=files)
        execute(made, files=files)
        assert files.created == created
        undo(path, force={"in-use"})


def test_a_recovery_waits_for_an_edit(path: Path) -> None:
    class Busy(CapableFiles):
        left = 3

        def try_lock(self, file: BinaryIO, *, shared: bool) -> bool:
            self.left -= 1
            return self.left < 0 and super().try_lock(file, shared=shared)

    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), force={"in-use"}))
    record = path.with_name(".m.gguf.ggufrope-undo-000001")
    record.rename(path.with_name(".m.gguf.ggufrope-journal"))
    with pytest.raises(StorageError, match="is being edited"):
        recover(path, files=Busy())
    recovery = recover(path, patience=60, files=Busy())
    assert recovery is not None
    assert recovery.action == "committed"


def test_who_may_only_read_waits_too(path: Path) -> None:
    class Reading(CapableFiles):
        def open(self, path: Path, mode: Mode) -> BinaryIO:
            if mode == "r+b":
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().open(path, mode)

    path.with_name(".m.gguf.ggufrope-journal").write_bytes(b"in progress")
    with path.open("rb") as held:
        lock(held, path)
        with pytest.raises(BusyError):
            recover(path, files=Reading())
    with pytest.raises(StorageError, match=r"cannot repair .*Permission denied"):
        recover(path, files=Reading())


@pytest.mark.parametrize("strategy", [Strategy.OVERWRITE, Strategy.STREAM])
def test_a_read_only_file_is_edited_and_undone_by_its_owner(path: Path, strategy: Strategy) -> None:
    """Who is root may write to any file, and sees none of this."""

    class Owner(CapableFiles):
        def open(self, path: Path, mode: Mode) -> BinaryIO:
            if mode == "r+b" and not path.stat().st_mode & 0o200:
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().open(path, mode)

    old = path.read_bytes()
    path.chmod(0o444)
    force, files = {"in-use", "read-only"}, Owner()
    rewrite = plan_rewrite(read_header(path), EDITS)
    execute(plan_store(path, rewrite, strategy=strategy, force=force, files=files), files=files)
    assert read_header(path).get("llama.context_length") == 4096
    undo(path, force=force, files=files)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (old, 0o444)


def test_the_package_is_imported_where_there_is_no_fcntl(path: Path) -> None:
    """As on Windows: every module imports, and a lock is not needed."""
    names = sorted(f"ggufrope.container.{each.stem}" for each in CONTAINER.glob("[a-z]*.py"))
    assert len(names) > 20
    code = "\n".join(
        [
            "import sys; from importlib import import_module; from pathlib import Path",
            "sys.modules['fcntl'] = None; sys.modules['resource'] = None",
            "path, *names = sys.argv[1:]",
            "for name in names: import_module(name)",
            "from ggufrope.container.filesystem import lock",
            "with open(path, 'r+b') as file: lock(file, Path(path))",
            "print('locked')",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, *names], capture_output=True, text=True, check=False
    )
    assert done.stdout == "locked\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of the last change")
def test_a_reader_sees_an_edit_that_was_undone_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of the file are restored, and what was read of it may be of in between."""
    wanted = read_header(path)
    torn: list[Path] = []

    def parse(*arguments: Any) -> Header:
        if not torn:
            torn.append(path)
            execute(plan_store(path, plan_rewrite(read_header(path), EDITS), force={"in-use"}))
            undo(path, force={"in-use"})
            raise MalformedError("bytes of two states")
        return parse_header(*arguments)

    monkeypatch.setattr(reader, "parse_header", parse)
    assert read_header(path) == wanted
    assert torn
