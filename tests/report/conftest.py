"""A stored run made of numbers alone: three methods, two cache types, needles and perplexity."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import TYPE_CHECKING

import pytest

from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.results import Cell, CellResult, Curve, Metric
from ggufrope.report.record import RunReport, report_of
from ggufrope.runs.jobs import Job, expand
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., RunReport]
NATIVE = 2048
REACH = {"file": 1.0, "linear": 2.0, "yarn": 4.0}
"""How many native contexts each scaling of the invented model reaches."""


def result_of(cell: Cell) -> CellResult:
    """What the invented model makes of a cell: fine within reach, gone beyond."""
    excess = cell.context_tokens / (NATIVE * REACH.get(cell.scaling, 4.0))
    if cell.kv == "iq4_nl":
        return CellResult(cell=cell, status="unsupported", reason="no such cache here")
    keys = cell.kv.partition("/")[0]
    loss = {"f16": 0.0, "q8_0": 0.02, "q4_0": 0.6}[keys]
    if cell.task == "needle":
        middle = 1 - abs((cell.depth_percent or 0) - 50) / 50
        log_probability = -0.05 - loss - max(0.0, excess - 1) * (0.5 + 3 * middle)
        return CellResult(
            cell=cell,
            status="ok",
            metrics=(
                Metric(name="recall", value=float(log_probability > -1.2)),
                Metric(name="top_ranked", value=float(log_probability > -2)),
                Metric(name="log_probability", value=log_probability),
            ),
            notes=(("needle", "The secret number is 7."), ("answer", "7")),
            prompt_tokens=cell.context_tokens - 9,
            elapsed_seconds=0.25,
        )
    if cell.task == "kv-cache":
        size = {"f16": 512, "q8_0": 272, "q4_0": 144}[keys]
        speed = {"f16": 3000.0, "q8_0": 2600.0, "q4_0": 900.0}[keys]
        return CellResult(
            cell=cell,
            status="ok",
            metrics=(
                Metric(name="cache_bytes_per_token", value=36.0 * size),
                Metric(name="prefill_tokens_per_second", value=speed),
                Metric(name="decode_tokens_per_second", value=speed / 50),
            ),
            elapsed_seconds=2.0,
        )
    if cell.task == "divergence":
        nat = {"f16": 0.5, "q8_0": 0.004, "q4_0": 0.06}[keys]
        return CellResult(
            cell=cell,
            status="ok",
            metrics=(
                Metric(name="mean_divergence", value=nat, low=0.9 * nat, high=1.1 * nat, n=2000),
                Metric(name="same_top", value=1 - nat, n=2000),
            ),
            notes=(
                ("base", f"{cell.scaling} · f16"),
                ("cost of", "scaling" if cell.kv == "f16" else "cache"),
            ),
        )
    if cell.task in DAMAGE_TASKS:
        lost = cell.kv == "q4_0" and (cell.sample or 0) % 2 == 0
        return CellResult(cell=cell, status="ok", metrics=(Metric(name="exact", value=1.0 - lost),))
    if cell.task == "ruler":
        score = 0.96 / max(1.0, excess)
        return CellResult(cell=cell, status="ok", metrics=(Metric(name="score", value=score),))
    perplexity = 12 * (1 + loss / 10) * max(1.0, excess) ** 2
    positions = [cell.context_tokens * i / 16 for i in range(1, 17)]
    curve = [(p, 14 * max(1.0, p / (cell.context_tokens / max(excess, 1))) ** 2) for p in positions]
    return CellResult(
        cell=cell,
        status="ok",
        metrics=(
            Metric(
                name="nll",
                value=log(perplexity),
                low=log(perplexity) - 0.1,
                high=log(perplexity) + 0.1,
            ),
            Metric(
                name="perplexity", value=perplexity, low=perplexity - 0.4, high=perplexity + 0.4
            ),
        ),
        curves=(Curve(name="perplexity_by_position", points=tuple(curve)),),
        prompt_tokens=cell.context_tokens,
        elapsed_seconds=1.5,
    )


@pytest.fixture
def make_report(tmp_path: Path) -> Make:
    """A report; keyword arguments change the plan, `model` its name and metadata. By default each
    needle is asked once, in a whole prompt."""

    def make(
        *,
        model: str = "invented-1B.Q4_K_M",
        details: tuple[tuple[str, str], ...] = (),
        **settings: object,
    ) -> RunReport:
        file = ModelFile(
            name=model,
            path="models/invented.gguf",
            file_size=123_456_789,
            header_sha256="ab" * 32,
            native_context=NATIVE,
            details=details,
        )
        defaults: dict[str, object] = {
            "contexts": (1024, 2048, 4096, 8192),
            "scalings": ("file", "linear", "yarn"),
            "kv": ("f16", "q8_0"),
            "tasks": ("needle", "perplexity"),
            "depths": 5,
            "mode": "whole",
            "samples": 1,
            "control": False,
        }
        plan = RunPlan(**{"models": (file.path,), **defaults, **settings})  # type: ignore[arg-type]
        jobs = expand(plan, (file,))
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        with RunStore.create(folder, plan, (file,), jobs) as store:
            store.register("w", {"python": "3.12", "llama.cpp": "commit 0c1e57098"})
            for job in jobs:
                carry_out(store, job)
            return report_of(store)

    return make


def carry_out(store: RunStore, job: Job) -> None:
    store.start(job, "w")
    for cell in job.cells:
        store.append(job, result_of(cell))
    store.finish(job)
