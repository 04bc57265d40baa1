"""A run on a real local Ray cluster of several processes.

Ray leaves processes and threads behind when it is shut down, so each cluster has a process of its
own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from ggufrope.runs.store import RunStore

Start = Callable[..., Path]
pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="a cluster needs ray, of the extra 'cluster'"
)

DRIVER = """
import sys
from pathlib import Path
import ray
from ggufrope.errors import GgufRopeError
from ggufrope.runs.ray import RayTransport
from scripted_model import carry_out

folder, opener, workers = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    transport = RayTransport(opener, workers=int(workers))
    carry_out(Path(folder), transport, on_cell=lambda cell: print("cell"))
except GgufRopeError as error:
    print(type(error).__name__, error)
"""


def drive(folder: Path, *, opener: str = "open_model", workers: int = 1) -> list[str]:
    """Carry out the run on a Ray cluster of two CPUs; return the lines the driver printed."""
    command = [sys.executable, "-c", DRIVER, str(folder), f"scripted_model:{opener}", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_several_workers_share_a_run(start: Start, scripted: ModuleType) -> None:
    folder = start("sleeps 0.05", kv=("f32", "f16", "q8_0", "q4_0"), mode="whole")
    assert drive(folder, workers=2) == ["cell"] * 24
    with RunStore(folder) as store:
        assert {record.state for record in store.jobs()} == {"done"}
        assert len({record.worker for record in store.jobs()}) == 2
        assert len(store.results()) == 24
        assert dict(store.workers()[0].environment)["llama.cpp"] == "scripted"


def test_the_job_of_a_lost_worker_is_tried_again_until_it_is_abandoned(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("dies SIGKILL 300", "")
    drive(folder)
    with RunStore(folder) as store:
        assert [record.state for record in store.jobs()] == ["failed", "done"]
        assert store.jobs()[0].reason == "abandoned after 3 worker crashes"
        assert [r.status for r in store.results()] == ["ok"] * 3 + ["error"] * 3 + ["ok"] * 6


def test_a_worker_that_cannot_work_ends_the_run(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    (printed,) = drive(folder, opener="open_nothing")
    assert printed.startswith("MissingDependencyError llama-cpp-python is not installed")
    with RunStore(folder) as store:
        assert [record.state for record in store.jobs()] == ["pending"]
