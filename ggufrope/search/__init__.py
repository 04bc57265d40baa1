"""Searching for factors that carry a model further than the known schemes do (LongRoPE).

Three parts meet at two seams: a `Space` says what may be chosen, a `Fitness` how good a choice
is, an `Optimiser` which to try next; a `Bench` makes a loaded model rotate as a candidate says.

    result = run_search(read_model(path), SearchPlan(target_context=16384), runtime, folder=out)
"""

from ggufrope.search.bench import Bench, Runtime, Subject, open_bench
from ggufrope.search.holdout import Comparison, Difference, Standing
from ggufrope.search.judge import SearchProgress
from ggufrope.search.plan import SearchPlan
from ggufrope.search.result import Curve, SearchResult, Step
from ggufrope.search.rotation import Rotation, rotation_of
from ggufrope.search.session import run_search
from ggufrope.search.spaces import Space, make_space

__all__ = [
    "Bench",
    "Comparison",
    "Curve",
    "Difference",
    "Rotation",
    "Runtime",
    "SearchPlan",
    "SearchProgress",
    "SearchResult",
    "Space",
    "Standing",
    "Step",
    "Subject",
    "make_space",
    "open_bench",
    "rotation_of",
    "run_search",
]
