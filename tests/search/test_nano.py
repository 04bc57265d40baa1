"""The claim itself, small: on a real model at 16 times its trained length, where YaRN begins to
fail, searched parameters lose less. `benchmarks/search_nano.py` makes it larger, at 8 times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.backends import LlamaBackend, RuntimeSettings
from ggufrope.search.holdout import SchemeScore
from ggufrope.search.plan import SearchPlan
from ggufrope.search.session import run_search

if TYPE_CHECKING:
    from pathlib import Path


def misses(score: SchemeScore) -> int:
    assert score.recall is not None
    return score.recall.n - score.recall.successes


def test_searched_parameters_lose_less_than_yarn(nano: Path, tmp_path: Path) -> None:
    plan = SearchPlan(
        target_context=4096,
        space="yarn",
        candidates=24,
        finalists=2,
        samples=1,
        screening_samples=1,
        haystacks=2,
        holdout_haystacks=4,
        shared_factors=True,
    )
    backend = LlamaBackend(settings=RuntimeSettings(gpu_layers=0, threads=1))
    result = run_search(nano, plan, backend, folder=tmp_path / "out")
    searched, yarn = result.holdout[0].scores
    assert yarn.name == "yarn"
    assert misses(yarn) >= 3
    assert misses(searched) < misses(yarn)
    assert searched.loss.value is not None
    assert yarn.loss.value is not None
    assert searched.loss.value < 0.7 * yarn.loss.value
    assert result.updates_in_place
    assert result.overhead_share < 0.05
