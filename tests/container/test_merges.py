"""The undo records of many edits of a split model are merged: the original stays in reach."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from ggufrope.container import history
from ggufrope.container.beside import hidden_files
from ggufrope.container.history import KEPT_RECORDS, undo_steps
from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, open_model, shard_paths
from ggufrope.container.store import execute_together, plan_store
from ggufrope.container.types import Edits, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import RequestError, StorageError
from tests.container.edits import text, u32
from tests.container.faults import CapableFiles, FaultyFiles, Stop
from tests.container.test_shards import contents, gguf_contents, split

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.store import StoreReceipt

FORCE = {"in-use"}


def changes(number: int) -> Edits:
    """Return an edit of the first file, of the second, or of the first and the third, in turn."""
    key = {"llama.context_length": u32(3000 + number)}
    tensor = float_tensor([float(number)] * 8, "<")
    return (
        Edits(set=key | {"a.note": text("x" * (100 + number))}),
        Edits(put_tensors={"t10": tensor}),
        Edits(set=key, put_tensors={"t21": tensor}),
    )[number % 3]


def edit(first: Path, edits: Edits, files: CapableFiles | None = None) -> StoreReceipt:
    files = files or CapableFiles()
    plans = [
        plan_store(shard.path, plan_rewrite(shard.header, part), force=FORCE, files=files)
        for shard, part in distribute(open_model(first), edits)
    ]
    return execute_together(plans, files=files)[-1]


def back(path: Path, *, everything: bool = False) -> tuple[int, int, int]:
    """Undo; return the edits that were undone, can be undone, and cannot be undone any more."""
    receipt = undo(path, everything=everything, force=FORCE, files=CapableFiles())
    return receipt.undone, receipt.left, receipt.lost


def test_the_original_of_a_split_model_stays_in_reach(tmp_path: Path) -> None:
    first = split(tmp_path)
    rounds, before = KEPT_RECORDS + 11, []
    for number in range(rounds):
        before.append(gguf_contents(tmp_path))
        receipt = edit(first, changes(number))
        assert receipt.undo_steps == number + 1
        assert len(undo_steps(shard_paths(first))) <= KEPT_RECORDS
    assert (receipt.undone_at_once, receipt.undo_lost) == (12, 0)
    for number in range(rounds - 1, 11, -1):
        shard = first.with_name(f"m-0000{number % 3 + 1}-of-00003.gguf")
        assert back(shard) == (1, number, 0)
        assert gguf_contents(tmp_path) == before[number], number
    assert back(first) == (12, 0, 0)
    assert contents(tmp_path) == before[0]


def test_all_edits_of_a_split_model_are_undone_at_once(tmp_path: Path) -> None:
    first = split(tmp_path)
    original = contents(tmp_path)
    for number in range(KEPT_RECORDS + 5):
        edit(first, changes(number))
    assert back(first, everything=True) == (KEPT_RECORDS + 5, 0, 0)
    assert contents(tmp_path) == original


@pytest.mark.parametrize("mode", ["stop", "fail", "short", "torn", "power"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_merge_that_is_interrupted_loses_nothing(
    tmp_path: Path, mode: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every operation, with every order of edits that change one file or two."""
    monkeypatch.setattr(history, "KEPT_RECORDS", 2)
    first = split(tmp_path)
    original = contents(tmp_path)
    struck = 0
    for at in count():
        for number in (start, start + 1):
            edit(first, changes(number))
        files = FaultyFiles(mode, at)
        with suppress(Stop, StorageError):
            edit(first, changes(start + 2), files)
        files.close()
        if not files.struck:
            break
        struck += 1
        if at % 2:  # another edit, or an undo, finds what was left
            recover(first, files=CapableFiles())
            edit(first, changes(start + 3))
        back(first.with_name(f"m-0000{at % 3 + 1}-of-00003.gguf"), everything=True)
        assert contents(tmp_path) == original, at
    assert struck > 20


def test_what_cannot_be_merged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest edits are forgotten in all files; `undo` says that the original is not back."""
    monkeypatch.setattr(history, "KEPT_RECORDS", 3)
    monkeypatch.setattr(history, "CARRY_LIMIT", 8)
    first = split(tmp_path)
    states = []
    for number in range(5):
        states.append(gguf_contents(tmp_path))
        receipt = edit(first, changes(number))
    assert (receipt.undo_steps, receipt.undone_at_once, receipt.undo_lost) == (3, 1, 2)
    assert back(first, everything=True) == (3, 0, 2)
    assert contents(tmp_path) == states[2]


def test_somebody_elses_merged_record_removes_nothing(tmp_path: Path) -> None:
    """A merged record that cannot be used stands for no others."""
    first = split(tmp_path)
    original = contents(tmp_path)
    for number in range(3):
        edit(first, changes(number))
    strange = first.with_name(f".{first.name}.ggufrope-undo-000003-from-000001")
    strange.write_bytes(b"strange")
    before = {one.path for one in hidden_files(tmp_path)}
    recover(first, files=CapableFiles())
    with pytest.raises(RequestError, match="bring back the missing records"):
        back(first, everything=True)
    assert {one.path for one in hidden_files(tmp_path)} == before
    strange.unlink()
    assert back(first, everything=True) == (3, 0, 0)
    assert contents(tmp_path) == original
