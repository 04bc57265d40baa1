"""Plans carried out with llama.cpp on the nano model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufrope import RunPlan, run
from ggufrope.errors import RequestError
from ggufrope.runs.jobs import Selection


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
