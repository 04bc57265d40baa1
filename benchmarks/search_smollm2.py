"""YaRN's three numbers searched for a real model at twice its original context.

    python -m benchmarks.search_smollm2 MODEL [--target TOKENS] [--space NAME] [--out DIR]
        [--results FILE] [--budget SECONDS] [--threads N] [--gpu-layers all]

MODEL is SmolLM2-135M-Instruct (original context 8192), or any other with a target for it. Hours on
2 cores, where a haystack of 16384 tokens takes minutes; minutes on a GPU. The search keeps its
budget and resumes where it was stopped, so the budget can be spent in parts: the same call with a
larger one goes on. What it finds is written whatever it shows.
"""

from __future__ import annotations

from benchmarks.search_nano import measure
from ggufrope import SearchPlan

PLAN = SearchPlan(
    target_context=16_384,
    space="yarn",  # three numbers: what some dozens of evaluations can search
    candidates=200,
    finalists=6,
    haystacks=8,  # of 44 needles each
    holdout_haystacks=32,
    shared_factors=True,  # what run-time flags say: one rotation for all contexts
    budget_seconds=300,
)

if __name__ == "__main__":
    measure(PLAN, description=str(__doc__).splitlines()[0])
