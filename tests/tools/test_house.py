"""The table of rooms in docs/architecture.md, and the script that makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import house


def test_paths_belong_to_rooms() -> None:
    assert house.room_of("ggufrope/evals/ruler/niah.py") == "evals"
    assert house.room_of("ggufrope/errors.py") == house.BESIDE
    assert house.room_of("cli/commands/run.py") == "cli"
    assert house.room_of("ggufrope/report/page.css") is None
    assert house.room_of("tests/conftest.py") is None


def test_files_and_lines_are_added_up_and_empty_files_are_left_out() -> None:
    files = [
        ("ggufrope/rope/a.py", "1\n2\n"),
        ("ggufrope/rope/b.py", "1\n"),
        ("ggufrope/rope/__init__.py", ""),
        ("README.md", "1\n"),
    ]
    assert house.sizes(files) == {"rope": house.Size(files=2, lines=3)}


def test_the_table_has_every_room_and_a_total() -> None:
    now = {"rope": house.Size(files=2, lines=1300), "new": house.Size(files=1, lines=5)}
    before = {"rope": house.Size(files=3, lines=1200)}
    lines = house.table(now, before).splitlines()
    assert "| `rope` | 3 | 1,200 | 2 | 1,300 |" in lines
    assert "| `new` |  |  | 1 | 5 |" in lines
    assert lines[-1] == "| together | 3 | 1,200 | 3 | 1,305 |"


def test_a_page_is_written_between_its_markers() -> None:
    page = f"before\n{house.BEGIN}\nold\n{house.END}\nafter\n"
    assert house.write_into(page, "new") == (
        f"before\n{house.BEGIN}\n\nnew\n\n{house.END}\nafter\n"
    )
    with pytest.raises(ValueError, match="the page needs the lines"):
        house.write_into("no markers", "new")


def test_every_room_is_in_the_architecture_page(root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = set(house.here(root)) - {house.BESIDE}
    assert len(rooms) > 8
    described = set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE))
    assert rooms <= described


def test_the_files_to_read_first_exist(root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The rooms")[2].partition("## ")[0]
    named = re.findall(r"`([a-z_]+/[a-z_/]*[a-z_]+\.(?:py|json))`", section)
    assert len(named) > 15
    missing = [n for n in named if not ((root / n).exists() or (root / "ggufrope" / n).exists())]
    assert not missing
