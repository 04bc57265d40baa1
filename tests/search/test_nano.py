"""The claim itself, small: on a real model at 16 times its trained length, where YaRN begins to
fail, searched parameters lose less. `benchmarks/search_nano.py` makes it larger, at 8 times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.patching.inspection import read_model
from ggufrope.search.holdout import Standing
from ggufrope.search.plan import SearchPlan
from ggufrope.search.session import run_search
from tests.search.test_bench import LlamaRuntime

if TYPE_CHECKING:
    from pathlib import Path


def misses(standing: Standing) -> int:
    assert standing.recall is not None
    return standing.recall.n - standing.recall.successes


def test_searched_parameters_lose_less_than_yarn(nano: Path, tmp_path: Path) -> None:
    plan = SearchPlan(
        target_context=4096,
        space="yarn",
        candidates=24,
        finalists=2,
        samples=2,
        screening_samples=1,
        holdout_samples=4,
        keep_short_context=False,
    )
    result = run_search(read_model(nano), plan, LlamaRuntime(), folder=tmp_path / "out")
    searched, yarn = result.holdout[0].standings
    assert yarn.name == "yarn"
    assert misses(yarn) >= 3
    assert misses(searched) < misses(yarn)
    assert searched.loss.value is not None
    assert yarn.loss.value is not None
    assert searched.loss.value < 0.7 * yarn.loss.value
    assert result.live
    assert result.overhead_share < 0.05
