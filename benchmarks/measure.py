"""Measure commands and functions: seconds by the clock, seconds of CPU, peak memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """The medians over `runs` runs; memory is the largest, in MiB."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float
    runs: int


def process(
    command: Sequence[str | Path], *, runs: int, before: Callable[[], None] | None = None
) -> Cost:
    """Run a command to its end `runs` times, each time after a call of `before`.

    It may keep bytecode, as installed packages do.
    """
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    walls, cpus, peaks = [], [], []
    for _ in range(runs):
        if before is not None:
            before()
        started = time.perf_counter()
        child = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=variables,
        )
        assert child.stderr is not None
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        walls.append(time.perf_counter() - started)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{command} failed:\n{errors.decode()}")
        cpus.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss / 1024)
    return Cost(statistics.median(walls), statistics.median(cpus), max(peaks), runs)


def call(
    function: Callable[[], object], *, runs: int, before: Callable[[], None] | None = None
) -> Cost:
    """Call a function `runs` times, each time after a call of `before`."""
    walls, cpus = [], []
    for _ in range(runs):
        if before is not None:
            before()
        started, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Cost(statistics.median(walls), statistics.median(cpus), peak, runs)


def script(name: str) -> str:
    """Return the path of a console script of this environment, or of the search path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not installed")
    return found


def environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "gguf": version("gguf"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load at the end": f"{os.getloadavg()[0]:.1f} processes",
    }


def record(name: str, results: dict[str, Any]) -> None:
    """Print the results and store them as results/NAME.json."""
    full = {"environment": environment(), **results}
    text = json.dumps(full, indent=2, default=lambda value: _rounded(asdict(value)))
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def _rounded(cost: dict[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in cost.items()
    }
