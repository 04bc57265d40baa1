"""A batch killed at any moment, driver and workers: nothing is lost, redone, changed or left."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from ggufrope.runs.driver import open_run
from ggufrope.runs.plan import read_plan

KILLS = 5
COMMAND = "from ggufrope_cli.app import main; main()"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill the workers first, so that none of them cleans up, and the driver."""
    os.kill(driver.pid, signal.SIGSTOP)
    for pid in children(driver.pid):
        os.kill(pid, signal.SIGKILL)
    driver.kill()
    driver.wait()


def rows(folder: Path) -> dict[tuple[str, int], str]:
    """Every stored cell, by its job and number, as it was written."""
    if not (folder / "run.sqlite").is_file():
        return {}
    database = sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)
    with closing(database):
        try:
            found = database.execute("SELECT job, number, body FROM cells").fetchall()
        except sqlite3.OperationalError:
            return {}
    return {(job, number): body for job, number, body in found}


def copies(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("ggufrope-work-*"))


def test_kills_lose_and_redo_nothing_and_leave_no_working_copy(nano: Path, tmp_path: Path) -> None:
    temporary, out, plan = tmp_path / "tmp", tmp_path / "run", tmp_path / "plan.toml"
    temporary.mkdir()
    plan.write_text(
        f"models = [{json.dumps(str(nano))}]\ncontexts = [256, 512]\ndepths = 6\n"
        "samples = 1\nwhole_prompts = 0\nseeds = [0, 1]\n"
        'scalings = [{ scaling = "yarn", factor = 8.0, bake = true }, "none"]\n'
        'control = false\nhaystack = { kind = "noise" }\n[runtime]\nthreads = 1\n'
    )
    command = [sys.executable, "-c", COMMAND, "run", str(plan), "--out", str(out), "--json"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    chance = random.Random(8)
    kept: dict[tuple[str, int], str] = {}
    left_behind = 0
    for number in range(KILLS):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        wanted = len(kept) + chance.randrange(5)
        deadline = time.monotonic() + 60
        while (
            time.monotonic() < deadline
            and driver.poll() is None
            and (len(rows(out)) < wanted or (number == 0 and not copies(temporary)))
        ):
            time.sleep(0.01)
        kill(driver)
        now = rows(out)
        assert kept.items() <= now.items()
        kept = now
        left_behind += len(copies(temporary))
    assert left_behind
    done = subprocess.run(command, capture_output=True, env=environment)
    assert kept.items() <= rows(out).items()
    report = json.loads(done.stdout)
    assert report["complete"] is True
    assert len(report["cells"]) == len(rows(out)) == 2 * 6 * 2 * 2
    assert {cell["status"] for cell in report["cells"]} == {"ok"}
    assert copies(temporary) == []


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
