"""Plans carried out with llama.cpp on the nano model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufrope import RunPlan, ScalingRequest, Thresholds, apply, plan_patch, run
from ggufrope.errors import RequestError
from ggufrope.evals.results import CellResult
from ggufrope.report.record import report_of
from ggufrope.runs.driver import ProcessTransport, open_run
from ggufrope.runs.jobs import Selection
from ggufrope.runs.models import identify
from ggufrope.runs.plan import read_plan
from ggufrope.runs.store import RunStore


@pytest.mark.llama
def test_a_run_is_kept_and_found_again(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1)
    seen: list[CellResult] = []
    report = run(plan, tmp_path / "run", on_cell=seen.append)
    assert report.complete
    assert {result.cell for result in seen} == {result.cell for result in report.cells}
    assert run(plan, tmp_path / "run", on_cell=seen.append).cells == report.cells
    assert len(seen) == len(report.cells)


@pytest.mark.llama
def test_worker_processes_measure_what_this_process_does(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(
        models=(str(nano),),
        contexts=(256,),
        depths=2,
        samples=1,
        whole_prompts=0,
        scalings=("file", "linear"),
        tasks=("needle", "perplexity"),
    )
    here = run(plan, tmp_path / "here")
    there = run(plan, tmp_path / "there", transport=ProcessTransport())
    assert there.complete
    assert len(here.cells) == 6
    assert [(r.cell, r.metrics, r.notes) for r in here.cells] == [
        (r.cell, r.metrics, r.notes) for r in there.cells
    ]
    assert {worker.id for worker in there.workers} == {job.worker for job in there.jobs}


@pytest.mark.llama
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"contexts": (512,)}, r"contexts \[256\] -> \[512\]"),
        (
            {"seeds": (1,), "thresholds": Thresholds(recall=0.95)},
            r"seeds \[0\] -> \[1\], thresholds.recall 0.9 -> 0.95",
        ),
    ],
)
def test_a_folder_holds_the_run_of_one_plan(
    nano: Path, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1)
    before = run(plan, tmp_path / "run")
    with pytest.raises(RequestError, match=f"holds the run of another plan: {difference};"):
        run(replace(plan, **change), tmp_path / "run")
    assert run(plan, tmp_path / "run") == before


def test_a_plan_with_a_value_that_no_file_can_have_is_refused(nano: Path, tmp_path: Path) -> None:
    wrong: Any = {"mode": "isolated"}
    plan = RunPlan(models=(str(nano),), contexts=(256,), **wrong)
    with pytest.raises(RequestError, match="mode must be one of"):
        run(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.llama
def test_a_model_that_is_touched_is_loaded_again(nano_copy: Path, tmp_path: Path) -> None:
    plan = RunPlan(
        models=(str(nano_copy),), contexts=(256, 512), depths=2, mode="whole", control=False
    )
    undisturbed = run(plan, tmp_path / "undisturbed")
    seen: list[CellResult] = []

    def on_cell(result: CellResult) -> None:
        seen.append(result)
        if len(seen) == 2:
            os.utime(nano_copy)

    report = run(plan, tmp_path / "run", on_cell=on_cell)
    assert len(seen) == len(report.cells) == len(undisturbed.cells) > 3
    assert [(r.cell, r.metrics) for r in report.cells] == [
        (r.cell, r.metrics) for r in undisturbed.cells
    ]


@pytest.mark.llama
def test_changed_thresholds_judge_anew_and_are_stored(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(
        models=(str(nano),),
        contexts=(1024,),
        depths=2,
        distractors=2,
        thresholds=Thresholds(recall=0.0),
    )
    first = run(plan, tmp_path / "run")
    stricter = replace(plan, thresholds=Thresholds(recall=1.0, top_ranked=1.0), name="strict")
    with open_run(stricter, tmp_path / "run") as store:
        assert store.rejudged == (
            'name "run" -> "strict"',
            "thresholds.recall 0.0 -> 1.0",
            "thresholds.top_ranked nothing -> 1.0",
        )
    seen: list[CellResult] = []
    again = run(stricter, tmp_path / "run", on_cell=seen.append)
    assert (seen, again.cells) == ([], first.cells)
    assert (first.passed, again.passed) == (True, False)
    assert again.plan == stricter == read_plan(tmp_path / "run" / "plan.toml")
    with RunStore(tmp_path / "run") as store:
        assert report_of(store).passed is False


@pytest.mark.llama
def test_a_share_of_a_run_is_judged_by_itself(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(
        models=(str(nano),),
        contexts=(256,),
        depths=1,
        samples=1,
        whole_prompts=0,
        kv=("f16", "q8_0"),
    )
    for shard in (1, 2):
        report = run(plan, tmp_path / "run", selection=Selection(shard=shard, shards=2))
        assert report.complete
        assert {result.cell.kv for result in report.cells} == {plan.kv[shard - 1]}
    assert len(run(plan, tmp_path / "run").cells) == 2


def test_a_selection_of_nothing_says_what_there_is(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1)
    with pytest.raises(RequestError, match=r"no job matches kv=q4_0; there are kv=f16"):
        run(plan, tmp_path / "run", selection=Selection(only=("kv=q4_0",)))


@pytest.mark.parametrize("scheme", ["linear", "ntk", "yarn"])
def test_a_patched_file_knows_what_it_was_trained_for(
    nano: Path, tmp_path: Path, scheme: str
) -> None:
    before = identify("nano", nano)
    assert (before.native_context, before.native_scalings) == (256, ("file", "none"))
    request = ScalingRequest(scaling=scheme, target_context=2048)  # type: ignore[arg-type]
    apply(plan_patch(nano, request, output=tmp_path / "patched.gguf"))
    after = identify("nano", tmp_path / "patched.gguf")
    assert (after.native_context, after.native_scalings) == (256, ("none",))
