"""Runs and searches ended by signals at random moments, and given again until they are done.

    python -m benchmarks.kills [--kills 60] [--seed 0]

Each round is a run of the nano model in worker processes, or a search on it. A signal (KILL, TERM,
INT or HUP) ends the driver, a worker or both at a random moment, many times over. No cell and no
candidate may be lost, changed or measured again, the end must be that of an undisturbed round, and
no working copy may be left. What is not so is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NANO = ROOT / "fixtures" / "nano.gguf"
COMMAND = [sys.executable, "-c", "from ggufrope_cli.__main__ import start; start()"]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PLAN = """
models = [{model}]
contexts = [256, 512]
depths = 6
samples = 1
whole_prompts = 0
seeds = [0, 1]
scalings = [{{ scaling = "yarn", factor = 8.0, bake = true }}, "none"]
control = false
haystack = {{ kind = "noise" }}
[runtime]
threads = 1
"""


_ENDING_SECONDS = 30.0


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def end(process: subprocess.Popen[bytes], number: int, *, workers: bool, driver: bool) -> None:
    """Send a signal to the workers of a process, to itself, or to both, workers first.

    Returns when they have ended: one that waits for the disk keeps its locks until it is done.
    """
    if workers and driver:
        os.kill(process.pid, signal.SIGSTOP)
    struck = children(process.pid) if workers else []
    for pid in struck:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    if driver:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
    process.wait()
    deadline = time.monotonic() + _ENDING_SECONDS
    while any(map(_runs, struck)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only waits for somebody to ask how it ended."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    except OSError:
        return False
    return rest[:1] != "Z"


def cells(folder: Path) -> dict[tuple[str, int], str]:
    """Every stored cell of a run, by its job and number, as it was written."""
    if not (folder / "run.sqlite").is_file():
        return {}
    database = sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)
    with closing(database):
        try:
            found = database.execute("SELECT job, number, body FROM cells").fetchall()
        except sqlite3.OperationalError:
            return {}
    return {(job, number): body for job, number, body in found}


def candidates(folder: Path) -> dict[int, str]:
    """Every whole line of the record of a search, by its number."""
    with suppress(FileNotFoundError):
        text = (folder / "search.jsonl").read_text()
        return dict(enumerate(text[: text.rfind("\n") + 1].splitlines()))
    return {}


def copies(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("ggufrope-work-*"))


class Round:
    """One run or search in a folder of its own, given again and again."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.out = folder / "out"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        if kind == "run":
            plan = folder / "plan.toml"
            plan.write_text(PLAN.format(model=json.dumps(str(NANO))))
            words = ["run", str(plan), "--retry-failed"]
        else:
            words = [
                "search",
                str(NANO),
                "--target-ctx",
                "512",
                "--samples=1",
                "--haystacks=2",
                "--threads=1",
            ]
            words += ["--screening-samples=1", "--holdout-haystacks=2", "--candidates=24"]
        self.command = [*COMMAND, *words, "--out", str(self.out), "--json"]
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}

    def kept(self) -> dict[Any, str]:
        """What is on disk of it, but for cells in error, which are measured again."""
        if self.kind == "search":
            return dict(candidates(self.out))
        return {key: body for key, body in cells(self.out).items() if '"error"' not in body}

    def begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.out.parent,
        )

    def finish(self) -> tuple[int, Any, str]:
        """Let it come to its end; return the exit code, the answer and what it said on stderr."""
        done = subprocess.run(
            self.command, capture_output=True, text=True, env=self.environment, cwd=self.out.parent
        )
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    def outcome(self, answer: Any) -> Any:
        """What must be the same however often it was ended."""
        if self.kind == "search":
            return [{k: v for k, v in s.items() if k != "seconds"} for s in answer["history"]]
        rows = [json.loads(body) for _, body in sorted(self.kept().items())]
        for row in rows:
            row.pop("elapsed_seconds", None)
            row["metrics"] = [m for m in row["metrics"] if "second" not in m["name"]]
        return rows


def campaign(kills: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """End runs and searches `kills` times in all; return what happened, and every violation."""
    chance = random.Random(seed)
    happened: Counter[str] = Counter()
    faults: list[str] = []
    expected: dict[str, Any] = {}
    length: dict[str, float] = {}
    for kind in ("run", "search"):
        with tempfile.TemporaryDirectory() as name:
            began = time.monotonic()
            undisturbed = Round(kind, Path(name))
            _, answer, _ = undisturbed.finish()
            length[kind] = time.monotonic() - began
            expected[kind] = undisturbed.outcome(answer)
    while sum(happened[f"{kind} ended"] for kind in expected) < kills:
        kind = chance.choice(("run", "run", "search"))
        with tempfile.TemporaryDirectory() as name:
            faults += _disturbed(Round(kind, Path(name)), length[kind], expected, happened, chance)
        happened[f"{kind}s"] += 1
    return happened, faults


def _disturbed(
    one: Round,
    length: float,
    expected: dict[str, Any],
    happened: Counter[str],
    chance: random.Random,
) -> list[str]:
    """End one round up to eight times, let it finish, and return what is not as it must be."""
    faults = []
    kept: dict[Any, str] = {}
    for _ in range(8):
        with one.begin() as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=chance.uniform(0.0, 0.7 * length))
            if process.poll() is not None:
                break
            number = chance.choice(SIGNALS)
            who = chance.choice(("driver", "both", "worker")) if one.kind == "run" else "driver"
            end(process, number, workers=who != "driver", driver=who != "worker")
            said = process.stderr.read() if process.stderr else b""
        happened[f"{one.kind} ended"] += 1
        happened[f"{who} by {number.name}"] += 1
        happened["working copies left for a while"] += bool(copies(one.temporary))
        if b"Traceback" in said:
            faults.append(f"{one.kind}, {who} by {number.name}: {said.decode()[-300:]}")
        now = one.kept()
        if not kept.items() <= now.items():
            faults.append(f"{one.kind}: {len(kept.items() - now.items())} results lost or changed")
        kept = now
    code, answer, text = one.finish()
    if code not in (0, 1) or (one.kind == "run" and not answer["complete"]):
        faults.append(f"{one.kind}: exit {code}: {text[-300:]}")
    elif difference := _difference(one.outcome(answer), expected[one.kind]):
        faults.append(f"{one.kind}: {difference}")
    if not kept.items() <= one.kept().items():
        faults.append(f"{one.kind}: results lost or changed at the end")
    if copies(one.temporary):
        faults.append(f"{one.kind}: {copies(one.temporary)} is left")
    return faults


def _difference(found: list[Any], wanted: list[Any]) -> str | None:
    """Say where a round ended in another way than an undisturbed one, None where nowhere."""
    for number, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if not _alike(one, other):
            return f"result {number} is {one}, undisturbed {other}"
    if len(found) != len(wanted):
        return f"it has {len(found)} results, undisturbed {len(wanted)}"
    return None


def _alike(one: Any, other: Any) -> bool:
    """Whether two results are the same, numbers to four places: a job that goes on scores fewer
    questions in a batch, which changes the last digits."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-4
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args()
    began = time.monotonic()
    happened, faults = campaign(options.kills, options.seed)
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{time.monotonic() - began:.0f} s: {', '.join(f'{n} {k}' for k, n in happened.items())}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
