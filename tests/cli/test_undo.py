"""`ggufrope undo` as a person uses it: step by step, all at once, and what it refuses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call


def edit(cli: Call, path: Path, target: int) -> str:
    done = cli("patch", path, "--in-place", "--scaling", "yarn", "--target-ctx", str(target))
    assert done.code == 0, done.err
    return done.out


def test_patch_says_what_undo_will_do(cli: Call, llama: Path) -> None:
    assert "restores the file to its state before this edit." in edit(cli, llama, 2048)
    second = " ".join(edit(cli, llama, 4096).split())
    assert "undoes this edit only; 2 edits can be undone, one at a time or with --all." in second


def test_edits_are_undone_one_by_one(cli: Call, llama: Path) -> None:
    states = [llama.read_bytes()]
    for target in (1024, 2048, 4096):
        edit(cli, llama, target)
        states.append(llama.read_bytes())
    assert "2 earlier edits can still be undone" in cli("undo", llama).out
    assert llama.read_bytes() == states[2]
    answer = cli("undo", llama, "--json").json
    assert (answer["undone"], answer["left"]) == (1, 1)
    assert llama.read_bytes() == states[1]
    assert "can still" not in cli("undo", llama).out
    assert llama.read_bytes() == states[0]


def test_all_edits_are_undone(cli: Call, llama: Path) -> None:
    before = llama.read_bytes()
    for target in (1024, 2048, 4096):
        edit(cli, llama, target)
    assert "before the last 3 in-place edits." in cli("undo", "--all", llama).out
    assert llama.read_bytes() == before
    assert [one.name for one in llama.parent.iterdir()] == [llama.name]


def test_a_change_by_others_is_named(cli: Call, llama: Path) -> None:
    before = llama.read_bytes()
    edit(cli, llama, 2048)
    os.utime(llama)
    refused = cli("undo", llama)
    assert refused.code == 3
    assert "its time of change is another" in refused.err
    assert "--force 'changed'" in refused.err
    assert cli("undo", llama, "--force", "changed").code == 0
    assert llama.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")
@pytest.mark.parametrize(
    "name", ["a\nggufrope: all is well.gguf", "m" * 250 + ".x", "-rf", "é.gguf"]
)
def test_names_of_any_kind(cli: Call, llama: Path, name: str) -> None:
    path = llama.rename(llama.with_name(name))
    before = path.read_bytes()
    edit(cli, path, 2048)
    for call in (cli("inspect", path), cli("undo", path), cli("undo", path)):
        assert "\nggufrope: all is well" not in call.out + call.err
        assert call.err.count("\n") <= 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["inspect", "undo"])
def test_a_journal_made_by_others_stops_nothing_for_long(
    cli: Call, llama: Path, command: str
) -> None:
    before = llama.read_bytes()
    journal = llama.with_name(f".{llama.name}.ggufrope-journal")
    for content in (b"", b"ggufrope journal 1\n", b"\0" * 4096):
        journal.write_bytes(content)
        refused = cli(command, llama)
        assert refused.code == 3
        assert "is damaged and cannot be used" in refused.err
        assert refused.err.count("\n") == 1
    assert llama.read_bytes() == before
