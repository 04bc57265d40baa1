"""A run on a real local Ray cluster of several processes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ggufrope.errors import RuntimeFailure
from ggufrope.runs.cells import CellResult
from ggufrope.runs.cluster import run_on_ray
from ggufrope.runs.store import RunStore

ray = pytest.importorskip("ray", reason="a cluster needs ray, of the extra 'cluster'")
Start = Callable[..., Path]
OPENER = "scripted_subject:open_subject"


@pytest.fixture
def cluster(scripted: ModuleType) -> Iterator[None]:
    """Two CPUs' worth of Ray, whose workers can import the scripted models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, at start
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_several_workers_share_a_run(start: Start, cluster: None) -> None:
    folder = start("sleeps 0.05", kv=("f32", "f16", "q8_0", "q4_0"), mode="isolated")
    seen: list[CellResult] = []
    run_on_ray(folder, OPENER, workers=2, on_cell=seen.append)
    with RunStore(folder) as store:
        assert {record.state for record in store.jobs()} == {"done"}
        assert len({record.worker for record in store.jobs()}) == 2
        assert Counter(r.cell for r in seen) == Counter(r.cell for r in store.results())
        assert len(seen) == 24
        assert dict(store.workers()[0].environment)["llama.cpp"] == "scripted"


def test_a_lost_workers_job_is_taken_up_again_until_it_is_given_up(
    start: Start, cluster: None
) -> None:
    folder = start("dies SIGKILL 300", "")
    run_on_ray(folder, OPENER, workers=1)
    with RunStore(folder) as store:
        assert [record.state for record in store.jobs()] == ["failed", "done"]
        assert [r.status for r in store.results()] == ["ok"] * 3 + ["error"] * 3 + ["ok"] * 6


def test_a_worker_that_cannot_work_ends_the_run(start: Start, cluster: None) -> None:
    folder = start("")
    with pytest.raises(RuntimeFailure, match="pip install"):
        run_on_ray(folder, "scripted_subject:open_nothing", workers=1)
    with RunStore(folder) as store:
        assert [record.state for record in store.jobs()] == ["pending"]
