"""Edits are undone one by one, to the original, and only where nobody else changed the file."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ggufrope.container import history
from ggufrope.container.history import KEPT_RECORDS
from ggufrope.container.reader import read_header
from ggufrope.container.record import decode_record, encode_record
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, FileIdentity
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import GuardError, MalformedError, RequestError, StorageError
from tests.container.edits import CASES, blocky_model, plan, prepare, text, u32
from tests.container.faults import CapableFiles, FaultyFiles, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.store import StoreReceipt

FORCE = ("in-use", "hard-link")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(blocky_model().encoded())
    return path


def edit(
    path: Path, edits: Edits, strategy: Strategy | None = None, files: CapableFiles | None = None
) -> StoreReceipt:
    files = files or CapableFiles()
    rewrite = plan_rewrite(read_header(path), edits)
    return execute(
        plan_store(path, rewrite, strategy=strategy, force=FORCE, files=files), files=files
    )


def context(tokens: int) -> Edits:
    return Edits(set={"llama.context_length": u32(tokens)})


def grown(size: int) -> Edits:
    return Edits(set={"a.note": text("x" * size)})


def back(path: Path, *force: str, everything: bool = False) -> int:
    receipt = undo(path, everything=everything, force=(*FORCE, *force), files=CapableFiles())
    return receipt.left


def records(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir() if "-undo" in one.name)


STRATEGIES = (None, Strategy.STREAM, None, Strategy.CLONE, None, Strategy.STREAM)


def many_edits(path: Path) -> list[tuple[bytes, int]]:
    """Edit in every way, and return the content and time of change before each edit."""
    states = []
    for number, strategy in enumerate(STRATEGIES):
        states.append((path.read_bytes(), path.stat().st_mtime_ns))
        receipt = edit(path, grown(100 + 3000 * number), strategy)
        # Keep the inodes of replaced files in use, so that none of them comes back by chance.
        path.with_name(f"held-{number}").hardlink_to(path)
        assert receipt.undo_steps == number + 1
    return states


def test_edits_are_undone_newest_first(path: Path) -> None:
    states = many_edits(path)
    for number, (content, changed) in reversed(list(enumerate(states))):
        assert back(path) == number
        assert path.read_bytes() == content
        assert path.stat().st_mtime_ns == changed
    assert len(states) == len(STRATEGIES)
    assert records(path) == []
    with pytest.raises(RequestError, match="no edit of"):
        back(path)


def test_all_edits_are_undone_at_once(path: Path) -> None:
    states = many_edits(path)
    receipt = undo(path, everything=True, force=FORCE, files=CapableFiles())
    assert (receipt.undone, receipt.left) == (len(STRATEGIES), 0)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == states[0]
    assert records(path) == []


def test_an_edit_after_an_undo_joins_the_stack(path: Path) -> None:
    original = path.read_bytes()
    edit(path, context(4096))
    edit(path, context(8192))
    back(path)
    edit(path, grown(5000), Strategy.STREAM)
    assert back(path) == 1
    assert read_header(path).get("llama.context_length") == 4096
    back(path)
    assert path.read_bytes() == original


def test_records_are_bounded_and_the_original_stays_in_reach(path: Path) -> None:
    original = path.read_bytes()
    rounds = KEPT_RECORDS + 20
    before = []
    for number in range(rounds):
        before.append(path.read_bytes())
        edit(path, grown(10 + 40 * number) if number % 5 == 0 else context(1024 + number))
        assert len(records(path)) <= KEPT_RECORDS
    for number in range(rounds - 1, rounds - KEPT_RECORDS, -1):
        back(path)
        assert path.read_bytes() == before[number], number
    assert back(path) == 0
    assert path.read_bytes() == original


def test_the_bytes_of_records_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = path.read_bytes()
    monkeypatch.setattr(history, "KEPT_BYTES", 40_000)
    for number in range(12):
        edit(path, grown(9000 + 8 * (number % 2)))
    assert sum((path.parent / name).stat().st_size for name in records(path)) <= 40_000
    assert back(path, everything=True) == 0
    assert path.read_bytes() == original


@pytest.mark.parametrize("mode", ["stop", "fail"])
def test_a_merge_that_is_interrupted_loses_nothing(
    path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEPT_RECORDS", 2)
    original = path.read_bytes()
    struck = 0
    for at in range(60):
        edit(path, context(3000))
        edit(path, context(4000))
        files = FaultyFiles(mode, at)
        try:
            edit(path, grown(300), files=files)
        except (Stop, StorageError):
            struck += 1
        recover(path, files=CapableFiles())
        back(path, everything=True)
        assert path.read_bytes() == original, at
        assert records(path) == []
        if not files.struck:
            break
    assert struck > 10


@pytest.mark.parametrize("tag", ["-000900", "-9999999", "-abc", "-000005-from-000001", ""])
def test_records_made_by_others_do_not_stop_an_edit(path: Path, tag: str) -> None:
    strange = path.with_name(f".{path.name}.ggufrope-undo{tag}")
    strange.write_bytes(b"strange")
    original = path.read_bytes()
    for tokens in (3000, 4000):
        edit(path, context(tokens))
    assert read_header(path).get("llama.context_length") == 4000
    back(path)
    back(path)
    assert path.read_bytes() == original
    assert [one.name for one in path.parent.iterdir() if one != path] == [strange.name]


def test_a_merged_record_that_is_none_removes_no_others(path: Path) -> None:
    original = path.read_bytes()
    edit(path, context(3000))
    edit(path, context(4000))
    strange = path.with_name(f".{path.name}.ggufrope-undo-000002-from-000001")
    strange.write_bytes(b"strange")
    with pytest.raises(StorageError, match="is damaged"):
        back(path)
    strange.unlink()
    assert back(path, everything=True) == 0
    assert path.read_bytes() == original


def test_the_last_number_is_not_passed(path: Path) -> None:
    path.with_name(f".{path.name}.ggufrope-undo-999999").write_bytes(b"strange")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="has the last number"):
        edit(path, context(3000))
    assert path.read_bytes() == before


def test_a_renamed_model_keeps_its_records(path: Path) -> None:
    original = path.read_bytes()
    edit(path, context(3000))
    edit(path, context(4000))
    other = path.with_name("copy-of-nothing.gguf")
    other.write_bytes(b"GGUF something else")
    renamed = path.rename(path.with_name("better name.gguf"))
    edit(renamed, context(5000))
    assert len(records(renamed)) == 3
    assert all("better name" in name for name in records(renamed))
    again = renamed.rename(path)
    assert back(again, everything=True) == 0
    assert again.read_bytes() == original
    assert records(path) == []


def test_records_of_another_model_are_left_alone(path: Path) -> None:
    shutil.copy2(path, path.with_name("other.gguf"))
    edit(path, context(3000))
    path.unlink()
    with pytest.raises(RequestError, match="no edit of"):
        back(path.with_name("other.gguf"))
    assert len(records(path)) == 1


def test_records_of_a_file_that_was_replaced_promise_nothing(path: Path) -> None:
    original = path.read_bytes()
    edit(path, context(3000))
    edit(path, context(4000))
    moved = path.rename(path.with_name("moved.gguf"))
    path.write_bytes(blocky_model().encoded() + b"another")
    other = path.read_bytes()
    assert edit(path, context(5000)).undo_steps == 1
    assert back(path, everything=True) == 0
    assert path.read_bytes() == other
    assert back(moved, everything=True) == 0
    assert moved.read_bytes() == original
    assert records(path) == []


def test_an_undo_that_stops_says_how_far_it_came(path: Path) -> None:
    edit(path, context(3000))
    path.write_bytes(blocky_model().encoded() + b"another")
    edit(path, context(5000))
    newest, aside = records(path)
    path.with_name(newest).rename(path.with_name(newest.replace("000001", "000002")))
    path.with_name(aside).rename(path.with_name(f".{path.name}.ggufrope-undo-000001"))
    number_2(path)
    with pytest.raises(RequestError, match=r"undid 1 of the edits, then: .*it has .* bytes"):
        back(path, everything=True)


def number_2(path: Path) -> None:
    """Give the record of that name the number 2."""
    name = path.with_name(f".{path.name}.ggufrope-undo-000002")
    record = replace(decode_record(name.read_bytes()), number=2, first=2)
    name.write_bytes(encode_record(record))


def test_a_copy_does_not_take_the_records_of_the_file_that_was_edited(path: Path) -> None:
    original = path.read_bytes()
    edit(path, context(3000))
    edited = path.rename(path.with_name("c.gguf"))
    copy = path.with_name("b.gguf")
    shutil.copy2(edited, copy)
    for force in ((), ("changed",)):
        with pytest.raises(RequestError, match=r"no edit of .* for a copy of a file that was"):
            back(copy, *force)
    assert back(edited) == 0
    assert edited.read_bytes() == original

    edit(edited, context(3000))  # and where the file that was edited is gone
    shutil.copy2(edited, copy)
    edited.unlink()
    with pytest.raises(RequestError, match="for a copy of a file"):
        back(copy)
    assert records(path) == [".c.gguf.ggufrope-undo-000001"]
    assert back(copy, "changed") == 0
    assert copy.read_bytes() == original


def test_a_model_renamed_in_the_middle_of_an_edit_is_repaired(path: Path) -> None:
    case = next(case for case in CASES if case.name == "grow and append")
    old = prepare(path, case)
    made = plan(path, case, CapableFiles())
    repaired = 0
    for at in range(3, 12):
        path.write_bytes(old)
        files = FaultyFiles("torn", at)
        try:
            execute(replace(made, edit=replace(made.edit, identity=identity(path))), files=files)
        except Stop:
            renamed = path.rename(path.with_name("n.gguf"))
            recovery = recover(renamed, files=CapableFiles())
            if renamed.read_bytes() != old:
                back(renamed, "changed")
            assert renamed.read_bytes() == old
            repaired += recovery is not None
            renamed.rename(path)
        for name in path.parent.iterdir():
            if name != path:
                name.unlink()
    assert repaired > 3


def identity(path: Path) -> FileIdentity:
    found = read_header(path).identity
    assert found is not None
    return found


@pytest.mark.parametrize("strategy", [Strategy.OVERWRITE, Strategy.STREAM])
def test_a_file_changed_by_others_is_not_undone(path: Path, strategy: Strategy) -> None:
    header = read_header(path)
    original = path.read_bytes()
    edit(path, context(4096), strategy)
    edited = path.read_bytes()
    status = path.stat()

    with path.open("r+b") as file:  # between the samples
        file.seek(header.data_offset + 6000)
        file.write(b"!")
    with pytest.raises((GuardError, RequestError), match="changed"):
        back(path)

    path.write_bytes(edited + b"more")
    with pytest.raises(RequestError, match=r"it has \d+ bytes, the edit left \d+"):
        back(path, "changed")
    path.write_bytes(edited[:30] + b"!" + edited[31:])
    with pytest.raises(RequestError, match=r"bytes of the edit differ"):
        back(path, "changed")

    path.write_bytes(edited)
    with pytest.raises(GuardError, match="time of change is another") as caught:
        back(path)
    assert caught.value.guard == "changed"
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    other = path.with_name("other.gguf")
    shutil.copy2(path, other)
    other.replace(path)
    with pytest.raises(GuardError, match="another file of the same name"):
        back(path)
    assert path.read_bytes() == edited
    back(path, "changed")
    assert path.read_bytes() == original


def test_an_edit_of_a_header_that_is_out_of_date_is_refused(path: Path) -> None:
    """Another edit, of the same size, came in between: it would be lost."""
    stale = plan_rewrite(read_header(path), context(1111))
    edit(path, context(2222))
    with pytest.raises(StorageError, match="has changed since its header was read"):
        plan_store(path, stale, force=FORCE)
    assert read_header(path).get("llama.context_length") == 2222


def test_every_edit_moves_the_time_of_change(path: Path) -> None:
    seen = [path.stat().st_mtime_ns]
    for number in range(5):
        edit(path, context(100 + number))
        seen.append(path.stat().st_mtime_ns)
    assert seen == sorted(set(seen))


def test_a_failed_edit_leaves_the_old_file(path: Path) -> None:
    """Also where the failure comes at the very end."""
    for strategy in (Strategy.OVERWRITE, Strategy.STREAM):
        old, failed = path.read_bytes(), 0
        for at in range(60):
            files = FaultyFiles("fail", at)
            try:
                edit(path, context(4096), strategy, files)
            except StorageError:
                failed += 1
                assert path.read_bytes() == old, at
                assert [one.name for one in path.parent.iterdir()] == ["m.gguf"]
            else:
                back(path)
                break
        assert failed > 5


def test_readers_see_the_old_or_the_new_header(path: Path) -> None:
    """The reader waits for the editor, whose journal and lock it finds."""
    stop = threading.Event()
    seen: set[object] = set()
    wrong: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(read_header(path).get("a.note"))
            except (MalformedError, StorageError) as error:
                wrong.append(error)

    class SlowFiles(CapableFiles):
        def write(self, file: object, offset: int, data: bytes | memoryview) -> int:
            time.sleep(0.01)
            return super().write(file, offset, data[: max(len(data) // 2, 1)])  # type: ignore[arg-type]

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for size in (3000, 10, 9000):
            edit(path, grown(size), files=SlowFiles())
    finally:
        stop.set()
        reader.join()
    assert not wrong
    assert seen <= {None, *("x" * size for size in (3000, 10, 9000))}
    assert len(seen) > 1


@pytest.mark.parametrize("strategy", [None, Strategy.STREAM])
@pytest.mark.parametrize("ahead", [3600, 10 * 365 * 86_400])
def test_a_clock_that_goes_backwards(path: Path, strategy: Strategy | None, ahead: int) -> None:
    """The file was changed in what is now the future: each edit is later still, and can be undone
    by the times that it left."""
    future = time.time_ns() + ahead * 10**9
    os.utime(path, ns=(future, future))
    states = [(path.read_bytes(), path.stat().st_mtime_ns)]
    for tokens in (3000, 4000):
        edit(path, context(tokens), strategy)
        assert path.stat().st_mtime_ns > states[-1][1]
        states.append((path.read_bytes(), path.stat().st_mtime_ns))
    for state in reversed(states[:-1]):
        back(path)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == state
