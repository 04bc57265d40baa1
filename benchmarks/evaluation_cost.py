"""What evaluations cost beyond evaluating the tokens, on one model.

    python -m benchmarks.evaluation_cost MODEL.gguf

Perplexity against a bare loop over the same tokens and logits; the divergence of a q8_0 cache
against those two prefills; the one-pass needle grid against one prompt a cell.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufrope.evals import (
    DivergencePlan,
    DivergenceTask,
    NeedlePlan,
    NeedleTask,
    OpenContext,
    PerplexityPlan,
    PerplexityTask,
    recall,
    reference_text,
)
from ggufrope.evals.needle import NeedleResult
from ggufrope.evals.texts import windows_of
from ggufrope.runtime import Context, ContextSettings, Model


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def opener(model: Model, cache_type: str = "f16") -> OpenContext:
    return lambda n: Context(model, ContextSettings(n_ctx=n, type_k=cache_type, type_v=cache_type))


def bare(model: Model, open_context: OpenContext, n_ctx: int, chunks: int) -> None:
    """The tokens of `chunks` windows and the logits of their second halves, and nothing else."""
    context = open_context(n_ctx)
    windows = windows_of(model, reference_text(), n_ctx=n_ctx, step=n_ctx, most=chunks)
    for window in windows:
        context.rewind(0)
        for _ in context.logits(window.tolist(), skip=n_ctx // 2):
            pass
    context.close()


def one_prompt_a_cell(
    model: Model, open_context: OpenContext, plan: NeedlePlan
) -> Iterator[NeedleResult]:
    """Every cell of the grid on its own, in a context of its own, sharing nothing."""
    for length in plan.all_lengths:
        for depth in plan.depths:
            cell = NeedlePlan(lengths=(length,), depths=(depth,), mode="isolated")
            yield from NeedleTask(cell).run(model, open_context)


def report(name: str, found: float, bare_seconds: float) -> None:
    print(f"{name:<34}{found:8.1f} s{bare_seconds:8.1f} s   x {found / bare_seconds:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--depths", type=int, default=5)
    options = parser.parse_args()
    n_ctx, chunks = options.ctx, options.chunks
    with Model.open(options.model) as model:
        plain, quantized = opener(model), opener(model, "q8_0")
        bare(model, plain, n_ctx, 1)
        loop = seconds(lambda: bare(model, plain, n_ctx, chunks))
        ppl = PerplexityTask(PerplexityPlan(n_ctx=n_ctx, chunks=chunks))
        report("perplexity : bare loop", seconds(lambda: list(ppl.run(model, plain))), loop)

        loop += seconds(lambda: bare(model, quantized, n_ctx, chunks))
        kld = DivergenceTask(DivergencePlan(n_ctx=n_ctx, chunks=chunks), plain)
        report(
            "divergence : two bare loops", seconds(lambda: list(kld.run(model, quantized))), loop
        )

        depths = tuple(100 * i / (options.depths - 1) for i in range(options.depths))
        plan = NeedlePlan(lengths=tuple(options.lengths), depths=depths)
        grid, apart = list[NeedleResult](), list[NeedleResult]()
        together = seconds(lambda: grid.extend(NeedleTask(plan).run(model, plain)))
        alone = seconds(lambda: apart.extend(one_prompt_a_cell(model, plain, plan)))
        report(f"{len(apart)} prompts : one-pass grid", alone, together)
        for name, results in (("one-pass grid", grid), ("one prompt a cell", apart)):
            found = recall(results)
            print(
                f"  {name}: {found.exact.successes}/{found.exact.n} exact, "
                f"{found.first.successes}/{found.first.n} first among distractors, "
                f"{found.log_probability.value:.3f} nat"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
