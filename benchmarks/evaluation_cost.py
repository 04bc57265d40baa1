"""Measure what evaluations cost beyond evaluating the tokens, on one model.

    python -m benchmarks.evaluation_cost MODEL.gguf

Compare perplexity with a bare loop over the same tokens and logits, the divergence of a q8_0 cache
with two such loops, and a grid of spliced needles with a bare prefill of its longest length and
with the same needles in whole prompts, each in a context of its own. Then say what a further sample
costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from ggufrope.backends.opened import open_model
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.divergence import DivergencePlan, compare_contexts
from ggufrope.evals.needle import Asker, NeedleScore, ask, asking_tokens, recall
from ggufrope.evals.needle_prompts import GridPoint, NeedleGrid, NeedlePlan
from ggufrope.evals.perplexity import PerplexityPlan, read_chunks
from ggufrope.evals.texts import reference_text, windows_of
from ggufrope.evals.trunk import Lanes
from ggufrope.lm import LanguageModel, OpenContext
from ggufrope.patching.request import ScalingRequest

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `work`, and the seconds it took."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


def bare(
    model: LanguageModel, open_context: OpenContext, n_ctx: int, chunks: int, *, skip: int
) -> None:
    """Evaluate `chunks` windows, with the logits after the first `skip`, and nothing else."""
    with closing(open_context(n_ctx)) as context:
        windows = windows_of(model, reference_text(), n_ctx=n_ctx, step=n_ctx, most=chunks)
        for window in windows:
            context.rewind(0)
            for _ in context.logits(window.tolist(), skip=skip):
                pass


Scores: TypeAlias = dict[GridPoint, NeedleScore]


def spliced(model: LanguageModel, open_context: OpenContext, plan: NeedlePlan) -> Scores:
    """Measure the grid as the needle task does."""
    return {score.point: score for score in ask(plan, model, open_context)}


def one_by_one(
    model: LanguageModel, open_context: OpenContext, plan: NeedlePlan, sampled: int | None
) -> Scores:
    """Ask every needle in its whole prompt, in a context of its own."""
    asker = Asker(model, plan)
    found: Scores = {}
    depths = plan.depths if sampled is None else plan.depths[:: -(-len(plan.depths) // sampled)]
    for point in plan.points:
        if point.depth_percent in depths and point.sample == 0:
            with Lanes(open_context, point.context_tokens) as lanes:
                found |= {score.point: score for score in asker.whole(lanes, [point])}
    return found


def report(name: str, found: float, bare_seconds: float) -> None:
    print(f"{name:<34}{found:8.1f} s{bare_seconds:8.1f} s   x {found / bare_seconds:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--scheme", default="file", help="file, yarn, ... for the longest length")
    parser.add_argument("--threads", type=int, help="default: all CPUs")
    parser.add_argument(
        "--sampled",
        type=int,
        help="whole prompts at this many depths only; prompts of a length are equally long",
    )
    parser.add_argument(
        "--deep", type=int, help="only: 40 needles spliced at this length, beside its bare prefill"
    )
    options = parser.parse_args()
    n_ctx, chunks, longest = options.ctx, options.chunks, options.deep or max(options.lengths)
    with closing(open_model(options.model, RuntimeSettings(threads=options.threads))) as subject:
        model, trial = subject.model, ScalingRequest(scaling=options.scheme)
        plain, quantized = (
            subject.contexts(trial, KvTypes(k=kind, v=kind), largest=longest)
            for kind in ("f16", "q8_0")
        )
        if options.deep is not None:
            deep_needles(model, plain, options.deep)
            return 0
        read = partial(bare, model, n_ctx=n_ctx, chunks=chunks)
        read(plain, skip=0)

        _, loop = timed(lambda: read(plain, skip=0))
        reading = PerplexityPlan(n_ctx=n_ctx, chunks=chunks)
        _, took = timed(lambda: list(read_chunks(reading, model, plain)))
        report("perplexity : bare loop", took, loop)

        _, loops = timed(lambda: [read(each, skip=n_ctx // 2) for each in (plain, quantized)])
        comparing = DivergencePlan(n_ctx=n_ctx, chunks=chunks)
        _, took = timed(lambda: compare_contexts(comparing, model, plain, quantized))
        report("divergence : two bare loops", took, loops)

        depths = tuple(100 * i / (options.depths - 1) for i in range(options.depths))
        plan = NeedlePlan(lengths=tuple(options.lengths), depths=depths)
        compare_grids(model, plain, plan, sampled=options.sampled)
    return 0


def deep_needles(model: LanguageModel, open_context: OpenContext, length: int) -> None:
    """Print what 40 needles add to one prefill."""
    depths = tuple(100 * i / 7 for i in range(8))
    plan = NeedlePlan(lengths=(length,), depths=depths, samples=5)
    asker, haystack = Asker(model, plan), NeedleGrid(model, plan).haystack(length)
    with Lanes(open_context, length) as lanes:
        _, bare_prefill = timed(lambda: lanes.trunks[0].move_to(haystack))
        scores, asking = timed(lambda: list(asker.spliced(lanes.trunks[0], plan.points)))
    report(f"{len(scores)} needles : bare prefill", asking, bare_prefill)
    show("spliced", {score.point: score for score in scores})


def compare_grids(
    model: LanguageModel, open_context: OpenContext, plan: NeedlePlan, *, sampled: int | None
) -> None:
    """Measure the same grid in several ways, and print how they compare."""
    longest = plan.lengths[-1]
    haystack = NeedleGrid(model, plan).haystack(longest)

    def prefill() -> None:
        with closing(open_context(longest)) as context:
            context.extend(haystack)

    prefill()
    _, bare_prefill = timed(prefill)
    grid, together = timed(lambda: spliced(model, open_context, plan))
    more, samples = timed(lambda: spliced(model, open_context, replace(plan, samples=2)))
    report("spliced grid : bare prefill", together, bare_prefill)
    show("spliced", grid)
    tokens = asking_tokens(plan, model) - len(haystack)
    print(f"  a needle with its question: {tokens / len(grid):.0f} tokens")
    extra = (samples - together) / (len(more) - len(grid))
    print(f"  a further sample of a cell: {1000 * extra:.0f} ms")
    alone, took = timed(lambda: one_by_one(model, open_context, plan, sampled))
    if sampled is not None:
        print(f"  {len(alone)} of {len(grid)} prompts took {took:.1f} s; the others take as long")
    report("whole prompts : spliced grid", took * len(grid) / len(alone), together)
    show("whole prompts", alone)
    show("the same cells, spliced", {key: grid[key] for key in alone})
    difference = max(
        abs((grid[key].log_probability or 0) - (alone[key].log_probability or 0)) for key in alone
    )
    print(f"  within {difference:.4f} nat of each other")


def show(name: str, scores: Scores) -> None:
    found = recall(scores.values())
    print(
        f"  {name}: {found.exact.successes}/{len(scores)} exact, "
        f"{found.log_probability.value:.3f} nat"
    )


if __name__ == "__main__":
    sys.exit(main())
