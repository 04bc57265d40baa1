"""The claim itself, small: on a real model at 8 times its trained length, searched parameters halve
the needles that YaRN misses. `benchmarks/search_nano.py` does the same with free factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.patching import read_model
from ggufrope.search import SearchPlan, Standing, run_search

from .test_bench import LlamaRuntime

if TYPE_CHECKING:
    from pathlib import Path


def misses(standing: Standing) -> int:
    assert standing.recall is not None
    return standing.recall.n - standing.recall.successes


def test_searched_parameters_halve_yarns_misses(nano: Path, tmp_path: Path) -> None:
    plan = SearchPlan(
        target_context=2048,
        space="yarn",
        candidates=24,
        finalists=2,
        samples=2,
        screening_samples=1,
        holdout_samples=4,
        depths=tuple(range(0, 101, 10)),
        two_faced=False,
    )
    result = run_search(read_model(nano), plan, LlamaRuntime(), folder=tmp_path / "out")
    searched, yarn = result.holdout[0].standings
    assert yarn.name == "yarn"
    assert misses(yarn) >= 3
    assert misses(searched) <= misses(yarn) / 2
    assert result.live
    assert result.overhead_share < 0.05
