"""Plans carried out with llama.cpp on the nano model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufrope import RunPlan, RuntimeSettings, ScalingRequest, open_subject, run
from ggufrope.errors import RequestError
from ggufrope.runs.jobs import Selection
from ggufrope.runs.plan import KvTypes
from ggufrope.runtime import library

F16 = KvTypes.parse("f16")


def test_a_run_is_kept_and_found_again(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1)
    seen = []
    report = run(plan, tmp_path / "run", on_cell=seen.append)
    assert report.complete
    assert [result.cell for result in seen] == [result.cell for result in report.cells]
    assert run(plan, tmp_path / "run", on_cell=seen.append).cells == report.cells
    assert len(seen) == len(report.cells)


def test_another_plan_has_no_place_in_the_folder(nano: Path, tmp_path: Path) -> None:
    run(RunPlan(models=(str(nano),), contexts=(256,), depths=1), tmp_path / "run")
    with pytest.raises(RequestError):
        run(RunPlan(models=(str(nano),), contexts=(512,), depths=1), tmp_path / "run")


def test_a_share_of_a_run_is_judged_by_itself(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1, kv=("f16", "q8_0"))
    for shard in (1, 2):
        report = run(plan, tmp_path / "run", selection=Selection(shard=shard, shards=2))
        assert report.complete
        assert {result.cell.kv for result in report.cells} == {plan.kv[shard - 1]}
    assert len(run(plan, tmp_path / "run").cells) == 2


def test_a_selection_of_nothing_says_what_there_is(nano: Path, tmp_path: Path) -> None:
    plan = RunPlan(models=(str(nano),), contexts=(256,), depths=1)
    with pytest.raises(RequestError, match=r"no job matches kv=q4_0; there are kv=f16"):
        run(plan, tmp_path / "run", selection=Selection(only=("kv=q4_0",)))


def test_trials_share_the_weights_and_baked_ones_get_a_copy(nano: Path) -> None:
    subject = open_subject(nano, RuntimeSettings())
    try:
        for trial in (ScalingRequest(scaling="file"), ScalingRequest(scaling="linear", factor=2)):
            with subject.contexts(trial, F16, largest=512)(512) as context:
                assert context.model is subject.model
        baked = ScalingRequest(scaling="linear", factor=2, bake=True)
        for _ in range(2):
            with subject.contexts(baked, F16, largest=512)(512) as context:
                assert context.model is not subject.model
        copy = context.model.path
        assert copy.exists()
    finally:
        subject.close()
    assert not copy.exists()


def test_questions_have_room_beside_a_full_context_but_never_change_the_factors(nano: Path) -> None:
    keep_short_context = ScalingRequest(scaling="yarn", factor=4, keep_short_context=True)
    subject = open_subject(nano, RuntimeSettings())
    try:
        for trial, n_ctx, cells in (
            (ScalingRequest(scaling="file"), 256, 768),
            (keep_short_context, 256, 256),  # with more it would take its long factors
            (keep_short_context, 512, 1024),
        ):
            with subject.contexts(trial, F16, largest=1024)(n_ctx) as context:
                assert context.n_ctx == cells
    finally:
        subject.close()


@pytest.mark.skipif(library.can_offload(), reason="this build of llama.cpp can use a GPU")
@pytest.mark.parametrize("gpu_layers", ["all", "auto", 0])
def test_without_a_gpu_no_layer_is_on_one(nano: Path, gpu_layers: str | int) -> None:
    subject = open_subject(nano, RuntimeSettings(gpu_layers=gpu_layers))
    try:
        subject.contexts(ScalingRequest(scaling="file"), F16, largest=512)
        assert subject.model.placement.layers_on_gpu == 0
        assert subject.details["layers on GPU"] == "0 of 3"
    finally:
        subject.close()
