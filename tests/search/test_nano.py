"""The claim itself, small: on a real model at 16 times its trained length, where YaRN begins to
fail, searched parameters lose less. `benchmarks/search_nano.py` makes it larger, at 8 times too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.backends.runtimes import LlamaBackend
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.search.plan import SearchPlan
from ggufrope.search.session import run_search

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path


def test_searched_parameters_lose_less_than_yarn(nano: Path, tmp_path: Path) -> None:
    plan = SearchPlan(
        target_context=4096,
        attention="formula",
        candidates=8,
        finalists=1,
        samples=4,
        screening_samples=2,
        haystacks=1,
        holdout_haystacks=2,
        depths=(0, 30, 60, 90),
        shared_factors=True,
    )
    backend = LlamaBackend(settings=RuntimeSettings(gpu_layers=0, threads=1))
    result = run_search(nano, plan, backend, folder=tmp_path / "out")
    assert result.finals[0].difference < 0
    searched, yarn, *whole = result.holdout[0].scores
    assert (searched.name, yarn.name) == ("searched", "yarn")
    assert searched.loss.value is not None
    assert yarn.loss.value is not None
    assert searched.loss.value < 0.7 * yarn.loss.value
    assert [score.asked for score in whole] == ["whole", "whole"]
    assert "--yarn-beta-fast" in result.searched_serve_command
    assert result.updates_in_place
    assert result.overhead_share < 0.05
