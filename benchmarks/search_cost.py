"""What a candidate of a search costs, against another checkout of ggufrope on the same machine.

    python -m benchmarks.search_cost OTHER [--target TOKENS] [--rounds N]

Both search the nano model with one optimizer and seed, on one thread, and judge what may win by
8 needles at each depth: the other checkout every candidate, in one haystack, this one in two, and
only what stays in the race. Counted is the CPU time from the first to the last evaluation of the
screening.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import record

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = 26
SEARCH = """
import inspect, json, sys, time
from pathlib import Path
from ggufrope import LlamaBackend, RuntimeSettings, SearchPlan, run_search

target, candidates, folder, model = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
races = "haystacks" in inspect.signature(SearchPlan).parameters
plan = SearchPlan(
    target_context=target, space="yarn", candidates=candidates, finalists=1, samples=1,
    screening_samples=4 if races else 8, shared_factors=True, depths=(0, 25, 50, 75, 100),
    **({"haystacks": 1, "holdout_haystacks": 2} if races else {"holdout_samples": 2}),
)
seen = []

def watch(progress):
    if progress.candidate.stage == "screening":
        each = progress.candidate.evaluation
        seen.append((time.process_time(), each.overhead_seconds, repr(progress.candidate.scheme)))

settings = RuntimeSettings(gpu_layers=0, threads=1)
run_search(model, plan, LlamaBackend(settings=settings), folder=Path(folder), watch=watch)
# The first evaluation is left out: it began before the clock.
count = len({scheme for _, _, scheme in seen}) - 1
print(json.dumps({
    "evaluations": len(seen),
    "candidates": count + 1,
    "cpu_seconds_per_candidate": (seen[-1][0] - seen[0][0]) / count,
    "overhead_seconds_per_evaluation": sum(each for _, each, _ in seen) / len(seen),
}))
"""


def searched(checkout: Path, target: int) -> dict[str, Any]:
    """Return what one search by a checkout cost."""
    with tempfile.TemporaryDirectory() as folder:
        model = ROOT / "fixtures" / "nano.gguf"
        command = [sys.executable, "-c", SEARCH, str(target), str(CANDIDATES), folder, str(model)]
        done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Measure both in turn, and record the medians."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout of ggufrope")
    parser.add_argument("--target", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    for _ in range(given.rounds):
        found["before"].append(searched(given.other.resolve(), given.target))
        found["now"].append(searched(ROOT, given.target))
    results: dict[str, Any] = {
        name: {key: median(each[key] for each in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    for each in results.values():
        each["candidates_per_cpu_hour"] = round(3600 / each["cpu_seconds_per_candidate"])
    record("search_cost", {"target": given.target, "rounds": given.rounds, **results})


if __name__ == "__main__":
    main()
