"""Estimates hold as upper limits for what is really evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.runs.estimate import contexts_at_once, estimate, tokens_of
from ggufrope.runs.jobs import Job, expand
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import RunStore

MODEL = ModelFile(name="m", path="m.gguf", file_size=1, header_sha256="")


def jobs_of(**settings: object) -> tuple[RunPlan, tuple[Job, ...]]:
    few = {"contexts": (1024, 4096), "depths": 3, "samples": 1, "whole_prompts": 0}
    plan = RunPlan(**{"models": ("m",), **few, **settings})  # type: ignore[arg-type]
    return plan, expand(plan, (MODEL,))


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 4096 + 6 * 120),
        ({"samples": 2}, 4096 + 12 * 120),
        ({"mode": "whole"}, 9 * 4096 + 1.5 * (1024 + 4096) + 6 * 120),
        ({"whole_prompts": 3}, 9 * 4096 + 1.5 * (1024 + 4096) + 12 * 120),
        ({"tasks": ("multikey",), "samples": 2}, 2 * 4096 + 12 * 120),
        ({"tasks": ("perplexity",), "chunks": 3}, 3 * 5120),
        ({"tasks": ("divergence",), "chunks": 3, "kv": ("q8_0",)}, 6 * 5120),
        ({"tasks": ("kv-cache",)}, 1024 + 4096 + 2 * 32),
    ],
)
def test_tokens_by_task(settings: dict[str, object], tokens: int) -> None:
    plan, (job,) = jobs_of(**settings)
    assert tokens_of(plan, job) == tokens


def test_a_server_evaluates_no_prompt_more_than_once() -> None:
    server = RuntimeSettings(server="http://localhost:8080")
    plan, (job,) = jobs_of(contexts=(512,), depths=2, mode="whole", runtime=server)
    assert tokens_of(plan, job) == tokens_of(plan, job, reuses=False) == 2 * 512


def test_memory_is_that_of_the_longest_context() -> None:
    plan, jobs = jobs_of(tasks=("needle", "divergence"), kv=("f16", "q8_0"))
    found = estimate(
        plan, jobs, memory=lambda job, n: n * contexts_at_once(job), tokens_per_second=2
    )
    assert [e.memory_bytes for e in found] == [4096, 4096, 8192]
    assert found[0].seconds == found[0].tokens / 2
    assert estimate(plan, jobs, memory=lambda job, n: None)[0].seconds is None


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_must_be_a_number_above_0(speed: float) -> None:
    plan, jobs = jobs_of()
    with pytest.raises(RequestError, match="tokens/s"):
        estimate(plan, jobs, memory=lambda job, n: None, tokens_per_second=speed)


@pytest.mark.parametrize("mode", ["spliced", "whole"])
@pytest.mark.parametrize(
    "task", ["needle", "passkey", "multikey", "perplexity", "divergence", "kv-cache"]
)
def test_no_job_evaluates_more_than_estimated(
    start: Callable[..., Path], scripted: ModuleType, task: str, mode: str
) -> None:
    folder = start("", tasks=(task,), mode=mode, whole_prompts=44, kv=("q8_0",), chunks=1)
    evaluated: list[int] = []
    scripted.work(folder, progress=evaluated.append)
    with RunStore(folder) as store:
        (record,) = store.jobs()
        assert {result.status for result in store.results()} == {"ok"}
        assert 0 < sum(evaluated) <= tokens_of(store.plan, record.job)
