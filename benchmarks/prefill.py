"""Compare prefill through `Context` with a bare `llama_decode` loop, as a ratio of times.

    python -m benchmarks.prefill MODEL [--tokens 1024] [--rounds 5]

Both run in the same context, in turns, each from an empty cache; a ratio of 1.00 means that
`Context` costs nothing. The medians and the ratio go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.runtime import library
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def bare_loop(context: Context, tokens: list[int]) -> None:
    """Evaluate the whole prompt in batches of n_batch, as a C program would, and nothing else."""
    llama = library.load()
    array = (llama.llama_token * len(tokens))(*tokens)
    for start in range(0, len(tokens), context.n_batch):
        count = min(context.n_batch, len(tokens) - start)
        part = (llama.llama_token * count).from_buffer(array, 4 * start)
        if llama.llama_decode(context.handle, llama.llama_batch_get_one(part, count)):
            raise SystemExit("llama_decode failed")


def through_context(context: Context, tokens: list[int]) -> None:
    context.extend(tokens, progress=lambda _: None)


def seconds(
    run: Callable[[Context, list[int]], None], context: Context, tokens: list[int]
) -> float:
    llama = library.load()
    context.rewind(0)
    llama.llama_memory_clear(llama.llama_get_memory(context.handle), False)
    started = time.perf_counter()
    run(context, tokens)
    llama.llama_synchronize(context.handle)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"bare": [], "context": []}
    with Model.open(arguments.model) as model:
        tokens = [token % model.n_vocab for token in range(100, 100 + arguments.tokens)]
        settings = ContextSettings(n_ctx=arguments.tokens, n_batch=512)
        with Context(model, settings) as context:
            seconds(bare_loop, context, tokens)  # warms up
            for turn in range(arguments.rounds):
                pair = [("bare", bare_loop), ("context", through_context)]
                for name, run in pair if turn % 2 == 0 else reversed(pair):
                    times[name].append(seconds(run, context, tokens))
    medians = {name: statistics.median(found) for name, found in times.items()}
    result = {
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "bare_tokens_per_second": round(arguments.tokens / medians["bare"], 1),
        "context_tokens_per_second": round(arguments.tokens / medians["context"], 1),
        "ratio": round(medians["context"] / medians["bare"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
