"""YaRN parameters searched for SmolLM2-135M-Instruct at 16384 tokens, twice its original context.

    python -m benchmarks.search_smollm2 MODEL [--out DIR] [--results FILE] [--budget SECONDS]

Hours on 2 cores: one sample of 16384 tokens takes minutes. The search resumes where it was
stopped, so the budget can be spent in parts. What it finds is written whatever it shows.
"""

from __future__ import annotations

from benchmarks.search_nano import measure
from ggufrope import SearchPlan

PLAN = SearchPlan(
    target_context=16_384,
    space="yarn",  # three numbers: what some dozens of evaluations can search
    candidates=24,
    finalists=4,
    samples=1,
    screening_samples=1,
    screening_context=12_288,
    holdout_samples=3,
    budget_seconds=5 * 3600,
)

if __name__ == "__main__":
    measure(
        PLAN,
        description=str(__doc__).splitlines()[0],
        title="SmolLM2-135M-Instruct at 16384 tokens, twice its original context",
    )
