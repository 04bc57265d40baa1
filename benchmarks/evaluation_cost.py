"""Measure what evaluations cost beyond evaluating the tokens, on one model.

    python -m benchmarks.evaluation_cost MODEL.gguf

Compare perplexity with a bare loop over the same tokens and logits, the divergence of a q8_0 cache
with two such loops, and the one-pass needle grid with the same questions about the same haystacks,
one prompt per cell. With --isolated, measure isolated mode too, with a single fact per haystack.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from ggufrope.backends import RuntimeSettings, open_model
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.divergence import DivergencePlan, compare_contexts
from ggufrope.evals.needle import ask
from ggufrope.evals.needle_prompts import GridPoint, NeedlePlan, prompts
from ggufrope.evals.perplexity import PerplexityPlan, read_chunks
from ggufrope.evals.texts import reference_text, windows_of
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


@dataclass(frozen=True)
class Found:
    """The result of a cell: whether the answer is exact, and its mean log-probability."""

    exact: bool
    log_probability: float


Cells: TypeAlias = dict[GridPoint, Found]


def in_one_pass(model: LanguageModel, open_context: OpenContext, plan: NeedlePlan) -> Cells:
    """Measure the grid as the needle task does, in the mode of the plan."""
    return {
        score.point: Found(score.exact is True, score.log_probability or 0.0)
        for score in ask(plan, model, open_context)
    }


def one_prompt_per_cell(
    model: LanguageModel, open_context: OpenContext, plan: NeedlePlan, sampled: int | None = None
) -> Cells:
    """Measure every question with its whole prompt, in a context of its own."""
    found: Cells = {}
    for prompt in prompts(model, plan):
        for question in prompt.questions[:sampled]:
            with closing(open_context(question.point.context_tokens)) as context:
                context.extend(prompt.trunk)
                ((answer, *_),) = context.score([question.branch])
                found[question.point] = Found(answer.greedy, answer.mean_log_probability)
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
        help="one prompt per cell at this many depths only; prompts of a length are equally long",
    )
    parser.add_argument("--isolated", action="store_true", help="measure isolated mode too")
    options = parser.parse_args()
    n_ctx, chunks, longest = options.ctx, options.chunks, max(options.lengths)
    with closing(open_model(options.model, RuntimeSettings(threads=options.threads))) as subject:
        model, trial = subject.model, ScalingRequest(scaling=options.scheme)
        plain, quantized = (
            subject.contexts(trial, KvTypes(k=kind, v=kind), largest=longest)
            for kind in ("f16", "q8_0")
        )
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
        compare_grids(model, plain, plan, sampled=options.sampled, apart=options.isolated)
    return 0


def compare_grids(
    model: LanguageModel,
    open_context: OpenContext,
    plan: NeedlePlan,
    *,
    sampled: int | None,
    apart: bool,
) -> None:
    """Measure the same grid in several ways, and print how they compare."""
    grid, together = timed(lambda: in_one_pass(model, open_context, plan))
    show("in one pass", grid)
    alone, took = timed(lambda: one_prompt_per_cell(model, open_context, plan, sampled))
    if sampled is not None:
        print(f"  {len(alone)} of {len(grid)} prompts took {took:.1f} s; the others take as long")
    report("one prompt per cell : in one pass", took * len(grid) / len(alone), together)
    show("one prompt per cell", alone)
    show("the same cells in one pass", {key: grid[key] for key in alone})
    difference = max(abs(grid[key].log_probability - alone[key].log_probability) for key in alone)
    print(f"  within {difference:.4f} nat of each other")
    if apart:
        isolated = replace(plan, mode="isolated")
        facts, took = timed(lambda: in_one_pass(model, open_context, isolated))
        report("isolated mode : in one pass", took, together)
        show("isolated mode", facts)


def show(name: str, cells: Cells) -> None:
    exact = sum(cell.exact for cell in cells.values())
    mean = sum(cell.log_probability for cell in cells.values()) / len(cells)
    print(f"  {name}: {exact}/{len(cells)} exact, {mean:.3f} nat")


if __name__ == "__main__":
    sys.exit(main())
