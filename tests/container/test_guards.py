"""In-place edits that would harm something else are refused, each by the name of its guard."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ggufrope.container.filesystem import FileLayer
from ggufrope.container.guards import check_guards, find_guards
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import GuardError, StorageError
from tests.container.edits import SCALING, u32
from tests.container.writer import small_model

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists open files")

EDITS = Edits(set={"llama.context_length": u32(4096)})


def model(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(small_model().encoded())
    return path


def names(path: Path) -> list[str]:
    return [guard.name for guard in find_guards(path)]


def edit(path: Path, *force: str) -> None:
    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), force=force))


def refused(path: Path, guard: str) -> None:
    before = path.read_bytes()
    with pytest.raises(GuardError, match=f"pass `force` '{guard}'") as caught:
        edit(path)
    assert caught.value.guard == guard
    assert path.read_bytes() == before
    with pytest.raises(GuardError):
        undo(path)


def test_an_ordinary_file_has_no_guard(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    assert names(path) == []
    check_guards(path)
    edit(path)
    assert read_header(path).get("llama.context_length") == 4096


def test_symlink_is_followed_when_forced(tmp_path: Path) -> None:
    path = model(tmp_path / "store" / "m.gguf")
    link = tmp_path / "m.gguf"
    link.symlink_to(path)
    assert names(link) == ["symlink"]
    refused(link, "symlink")
    edit(link, "symlink")
    assert link.is_symlink()
    assert read_header(path).get("llama.context_length") == 4096
    undo(link, force={"symlink"})
    assert path.read_bytes() == small_model().encoded()


def test_a_linked_directory_has_no_guard(tmp_path: Path) -> None:
    model(tmp_path / "store" / "m.gguf")
    (tmp_path / "models").symlink_to(tmp_path / "store")
    assert names(tmp_path / "models" / "m.gguf") == []


def test_hard_link(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    (tmp_path / "other.gguf").hardlink_to(path)
    assert names(path) == ["hard-link"]
    refused(path, "hard-link")
    message = find_guards(path)[0].message
    assert "inside the file changes them all" in message
    assert "a new file in its place (strategies clone and stream) this one alone" in message
    edit(path, "hard-link")
    assert read_header(tmp_path / "other.gguf").get("llama.context_length") == 4096


@pytest.mark.parametrize(
    ("where", "guard"),
    [
        ("models/blobs/sha256-0123abcd", "ollama-store"),
        ("hub/models--owner--name/blobs/0123abcd", "huggingface-cache"),
        ("hub/models--owner--name/snapshots/c0ffee/m.gguf", "huggingface-cache"),
    ],
)
def test_content_stores(tmp_path: Path, where: str, guard: str) -> None:
    path = model(tmp_path / where)
    assert names(path) == [guard]
    refused(path, guard)
    edit(path, guard)


def test_a_snapshot_link_has_both_guards(tmp_path: Path) -> None:
    blob = model(tmp_path / "models--o--n" / "blobs" / "0123")
    link = tmp_path / "models--o--n" / "snapshots" / "c0ffee" / "m.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert names(link) == ["symlink", "huggingface-cache"]
    with pytest.raises(GuardError, match="huggingface-cache"):
        edit(link, "symlink")


def test_read_only(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    path.chmod(0o444)
    assert names(path) == ["read-only"]
    refused(path, "read-only")


@linux
def test_open_elsewhere(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    code = "import sys; f = open(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (guard,) = find_guards(path)
        assert guard.name == "in-use"
        assert str(child.pid) in guard.message
        refused(path, "in-use")
        child.communicate()
    assert names(path) == []


@linux
def test_mapped_here(tmp_path: Path) -> None:
    """A model loaded in this very process counts, though the file is closed again."""
    path = model(tmp_path / "m.gguf")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        assert names(path) == ["in-use"]
    assert names(path) == []


def test_new_files_have_no_guards(tmp_path: Path) -> None:
    path = model(tmp_path / "blobs" / "sha256-0123")
    rewrite = plan_rewrite(read_header(path), EDITS)
    execute(plan_store(path, rewrite, output=tmp_path / "new.gguf"))
    assert path.read_bytes() == small_model().encoded()


def test_guards_of_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        find_guards(tmp_path / "absent.gguf")


@pytest.mark.parametrize("strategy", [Strategy.OVERWRITE, Strategy.STREAM])
def test_two_editors(tmp_path: Path, strategy: Strategy) -> None:
    """The second is refused while the first has the lock, and so is a recovery."""
    path = model(tmp_path / "m.gguf")
    made = plan_store(path, plan_rewrite(read_header(path), EDITS), strategy=strategy)
    before = path.read_bytes()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="being edited by another"):
            execute(made)
        (tmp_path / ".m.gguf.ggufrope-journal").write_bytes(b"in progress")
        with pytest.raises(StorageError, match="being edited by another"):
            recover(path)
        (tmp_path / ".m.gguf.ggufrope-journal").unlink()
    assert path.read_bytes() == before
    execute(made)


def test_one_output_of_two_editors(tmp_path: Path) -> None:
    """Each writes a file of its own; the second finds the name taken, and overwrites nothing."""
    path, output = model(tmp_path / "m.gguf"), tmp_path / "o.gguf"
    made = plan_store(path, plan_rewrite(read_header(path), EDITS), output=output)
    partial = tmp_path / ".o.gguf.ggufrope-partial-0123456789abcdef"
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"half a model")
        held.flush()
        assert recover(output) is None
        execute(made)
        assert partial.read_bytes() == b"half a model"
    with pytest.raises(GuardError, match="exists already"):
        execute(made)
    assert read_header(output).get("llama.context_length") == 4096
    recovery = recover(output)
    assert recovery is not None
    assert recovery.action == "cleared"
    assert {each.name for each in tmp_path.iterdir()} == {"m.gguf", "o.gguf"}


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path, output = model(tmp_path / "m.gguf"), tmp_path / "o.gguf"
    made = plan_store(path, plan_rewrite(read_header(path), EDITS), output=output)
    other = tmp_path / "elsewhere"
    for appear in (lambda: output.write_bytes(b"precious"), lambda: output.symlink_to(other)):
        appear()
        with pytest.raises(GuardError, match="exists already"):
            execute(made)
        assert {each.name for each in tmp_path.iterdir()} == {"m.gguf", "o.gguf"}
        output.unlink()
    execute(made)


@pytest.mark.parametrize("word", ["partial", "record"])
def test_names_of_unfinished_files_are_not_trusted(tmp_path: Path, word: str) -> None:
    """Somebody put another name of a precious file where an earlier version wrote."""
    path, precious = model(tmp_path / "m.gguf"), tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / f".m.gguf.ggufrope-{word}").hardlink_to(precious)
    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), strategy=Strategy.STREAM))
    assert precious.read_bytes() == b"precious"
    recover(path)
    assert precious.read_bytes() == b"precious"


def test_a_copy_has_no_more_rights_than_its_source_or_a_new_file(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    rewrite = plan_rewrite(read_header(path), EDITS)
    before = os.umask(0o027)
    try:
        for mode, copied in ((0o6777, 0o640), (0o600, 0o600), (0o444, 0o440)):
            path.chmod(mode)
            output = tmp_path / f"{mode}.gguf"
            execute(plan_store(path, rewrite, output=output))
            assert output.stat().st_mode & 0o7777 == copied
    finally:
        os.umask(before)


def test_a_replaced_file_keeps_its_mode_but_runs_as_nobody(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    path.chmod(0o6754)
    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), strategy=Strategy.STREAM))
    assert path.stat().st_mode & 0o7777 == 0o754


def test_only_attributes_of_users_are_copied(tmp_path: Path) -> None:
    path, output = model(tmp_path / "m.gguf"), tmp_path / "o.gguf"
    try:
        os.setxattr(path, "user.note", b"mine")
        os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 2, 0, 0, 0))
    except OSError:
        pytest.skip("needs a file system with attributes, and the right to set capabilities")
    execute(plan_store(path, plan_rewrite(read_header(path), EDITS), output=output))
    assert os.listxattr(output) == ["user.note"]


def test_an_output_that_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    path, pipe, link = model(tmp_path / "m.gguf"), tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    stdout = tmp_path / "stdout"
    stdout.symlink_to("/dev/stdout")
    rewrite = plan_rewrite(read_header(path), EDITS)
    for output in (pipe, link, stdout):
        for force in ((), ("exists",)):
            with pytest.raises(StorageError, match="is a device, pipe or socket"):
                plan_store(path, rewrite, output=output, force=force)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert stdout.is_symlink()


def test_an_interrupted_edit_blocks_the_next(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    edit(path)
    (tmp_path / ".m.gguf.ggufrope-undo-000001").rename(tmp_path / ".m.gguf.ggufrope-journal")
    rewrite = plan_rewrite(read_header(path), Edits(set=SCALING))
    with pytest.raises(StorageError, match="has an unfinished edit"):
        plan_store(path, rewrite)
    recovery = recover(path)
    assert recovery is not None
    assert recovery.action == "committed"
    assert str(path) in recovery.message
    plan_store(path, rewrite)


def test_what_a_crash_left_of_a_copy_makes_room_for_the_next(tmp_path: Path) -> None:
    path, output = model(tmp_path / "m.gguf"), tmp_path / "o.gguf"
    partial = tmp_path / ".o.gguf.ggufrope-partial-0123456789abcdef"
    partial.write_bytes(b"half a model")

    class Full(FileLayer):
        def free_bytes(self, path: Path) -> int:
            return 0 if partial.exists() else 1 << 30

    plan_store(path, plan_rewrite(read_header(path), EDITS), output=output, files=Full())
    assert not partial.exists()
