"""A batch killed at any moment, driver and workers: nothing is lost, redone, changed or left."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.kills import Round, campaign, copies, end
from ggufrope.runs.driver import open_run
from ggufrope.runs.plan import read_plan

KILLS = 5

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc"),
]


def test_kills_lose_and_redo_nothing_and_leave_no_working_copy(tmp_path: Path) -> None:
    one = Round("run", tmp_path)
    chance = random.Random(8)
    kept: dict[tuple[str, int], str] = {}
    left_behind = 0
    for number in range(KILLS):
        driver = one.begin()
        wanted = len(kept) + chance.randrange(5)
        deadline = time.monotonic() + 60
        while (
            time.monotonic() < deadline
            and driver.poll() is None
            and (len(one.kept()) < wanted or (number == 0 and not copies(one.temporary)))
        ):
            time.sleep(0.01)
        end(driver, signal.SIGKILL, workers=True, driver=True)
        driver.communicate()
        now = one.kept()
        assert kept.items() <= now.items()
        kept = now
        left_behind += len(copies(one.temporary))
    assert left_behind
    _, report, _ = one.finish()
    assert kept.items() <= one.kept().items()
    assert report["complete"] is True
    assert len(report["cells"]) == len(one.kept()) == 2 * 6 * 2 * 2
    assert {cell["status"] for cell in report["cells"]} == {"ok"}
    assert copies(one.temporary) == []


def test_signals_at_any_moment_leave_what_an_undisturbed_round_leaves() -> None:
    happened, faults = campaign(6, seed=3)
    assert faults == []
    assert happened["run ended"] + happened["search ended"] >= 6


def test_leftovers_go_when_the_run_is_taken_up(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan, folder = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(f"models = [{json.dumps(str(nano))}]\ncontexts = [256]\ndepths = 1\n")
    open_run(read_plan(plan), folder).close()
    before = sorted(folder.iterdir())
    for parent in (tmp_path, folder):
        (parent / "ggufrope-work-a").mkdir()
        (parent / "ggufrope-work-a" / ".owner").touch()
        (parent / "ggufrope-work-a" / "copy.gguf").write_bytes(bytes(1000))
    for name in ("run.sqlite.building", "run.sqlite.building-journal", ".plan.toml.x1y2"):
        (folder / name).write_text("cut off")
    open_run(read_plan(plan), folder).close()
    assert sorted(folder.iterdir()) == before
    assert not (tmp_path / "ggufrope-work-a").exists()
