"""A power cut at any moment leaves the old file or the new one, once it is repaired.

Every prefix of the operations of an edit, an undo and a recovery, and every part of what was not
made durable: see `tests.container.power`. Split models too, whose files are all old or all new.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, execute_together
from tests.container.edits import CASES, Case, plan, prepare
from tests.container.faults import CapableFiles, Stop
from tests.container.power import Disk, RecordingFiles, disks
from tests.container.test_faults import folder  # noqa: F401 - a fixture
from tests.container.test_shards import gguf_contents, planned, split

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("same size", "reserved", "grow and append", "clone", "stream", "last tensor goes")
by_name = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name
)
FORCE = ("in-use", "changed")
"""The files of the model are written anew, so that their inodes and times are others."""


def check(
    work: Path,
    at: Path,
    start: Disk,
    files: RecordingFiles,
    good: tuple[dict[str, bytes], ...],
) -> int:
    """Repair every disk that a cut may leave; return how many there were."""
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    chance = random.Random(len(files.log))
    for done, disk in disks(start, files.log, chance):
        key = tuple(sorted(disk.files().items()))
        if key in seen:
            continue
        seen.add(key)
        disk.put(work)
        recover(at, files=CapableFiles())
        assert gguf_contents(work) in good, (done, files.log[:done])
        hidden = {path.name for path in work.iterdir() if not path.name.endswith(".gguf")}
        assert all("-undo" in name for name in hidden), hidden
        if gguf_contents(work) == good[1] and hidden and done == len(files.log):
            undo(at, force=FORCE, files=CapableFiles())
            assert gguf_contents(work) == good[0]
    return len(seen)


def recorded(path: Path, action: Callable[[RecordingFiles], object]) -> tuple[Disk, RecordingFiles]:
    start, files = Disk.of(path.parent), RecordingFiles()
    action(files)
    return start, files


@by_name
def test_power_cut_in_an_edit_and_in_its_undo(case: Case, folder: Path) -> None:  # noqa: F811
    path = folder / "m.gguf"
    old = prepare(path, case)
    made = plan(path, case, CapableFiles())
    start, edit = recorded(path, lambda files: execute(made, files=files))
    good = ({"m.gguf": old}, {"m.gguf": path.read_bytes()})
    after, back = recorded(path, lambda files: undo(path, force=FORCE, files=files))
    assert path.read_bytes() == old
    assert check(folder, path, start, edit, good) > 5
    assert check(folder, path, after, back, (good[1], good[0])) > 3


@by_name
def test_power_cut_in_the_recovery_of_a_killed_edit(case: Case, folder: Path) -> None:  # noqa: F811
    """What the killed edit wrote is in the page cache: visible, and not durable."""
    path = folder / "m.gguf"
    old = prepare(path, case)
    made = plan(path, case, CapableFiles())
    start, edit = recorded(path, lambda files: execute(made, files=files))
    good = ({"m.gguf": old}, {"m.gguf": path.read_bytes()})
    tried = 0
    for killed in range(1, len(edit.log)):
        start.put(folder)
        before, files = Disk.of(folder), RecordingFiles(killed)
        with suppress(Stop):
            execute(plan(path, case, CapableFiles()), files=files)
        files.revive()
        recover(path, files=files)
        tried += check(folder, path, before, files, good)
    assert tried > 30


def test_power_cut_in_an_edit_of_a_split_model(folder: Path) -> None:  # noqa: F811
    first = split(folder)
    old = gguf_contents(folder)
    for strategies in ((None, None), ("stream", None)):
        made = planned(first, strategies)
        start, edit = recorded(first, lambda files: execute_together(made, files=files))  # noqa: B023
        good = (old, gguf_contents(folder))
        after, back = recorded(first, lambda files: undo(first, force=FORCE, files=files))
        assert gguf_contents(folder) == old
        third = folder / "m-00003-of-00003.gguf"
        assert check(folder, third, start, edit, good) > 10
        assert check(folder, third, after, back, (good[1], good[0])) > 5
        start.put(folder)
