"""Time a model with its K/V cache full: pairs of cache types, and layers on the GPU or off it.

    python -m tools.gpu_speeds MODEL.gguf OUT.jsonl CASE…

A case is KV:TOKENS:LAYERS:CACHE, such as q8_0/q4_0:32768:all:gpu or f16:2048:0:cpu. All but the
last tokens of the context are evaluated at once, and the last one by one. Each case is a line of
OUT as soon as it is measured.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

from ggufrope.container.ggml import KvTypes
from ggufrope.errors import BackendError
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

DECODED = 16
_WARM_UP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair of cache types, the tokens of the context, and where layers and cache are put."""

    kv: KvTypes
    tokens: int
    layers: int | Literal["all"]
    offload_kqv: bool

    @classmethod
    def parse(cls, text: str) -> Case:
        kv, tokens, layers, place = text.split(":")
        return cls(
            kv=KvTypes.parse(kv),
            tokens=int(tokens),
            layers="all" if layers == "all" else int(layers),
            offload_kqv={"gpu": True, "cpu": False}[place],
        )


def measure(model: Model, case: Case) -> dict[str, object]:
    """Return the speeds in tokens per second, and where weights and cache really are."""
    settings = ContextSettings(
        n_ctx=case.tokens, type_k=case.kv.k, type_v=case.kv.v, offload_kqv=case.offload_kqv
    )
    prompt = model.tokenize("One and two and three. " * (case.tokens // 4))[: case.tokens - DECODED]
    with Context(model, settings) as context:
        context.extend(prompt[:_WARM_UP])
        context.rewind(0)
        start = perf_counter()
        context.extend(prompt[:-1])
        _last_logits(context, prompt[-1])  # waits until the device is done
        prefill = len(prompt) / (perf_counter() - start)
        times = []
        for token in prompt[:DECODED]:
            start = perf_counter()
            _last_logits(context, token)
            times.append(perf_counter() - start)
        found = (re.search(r"(\S+) KV buffer size", line) for line in context.log)
        cache_on = sorted({line[1] for line in found if line})
    return {
        "weights_on": sorted({each.device for each in model.placement.buffers}),
        "cache_on": cache_on,
        "prefill": prefill,
        "decode": 1 / median(times),
    }


def _last_logits(context: Context, token: int) -> None:
    for _ in context.logits([token]):
        pass


def main(path: Path, out: Path, cases: list[Case]) -> None:
    """Measure the cases, those with the same layers on one loaded model."""
    for layers in dict.fromkeys(case.layers for case in cases):
        with Model.open(path, gpu_layers=layers) as model, out.open("a") as stream:
            for case in (each for each in cases if each.layers == layers):
                row: dict[str, object] = {
                    "kv": f"{case.kv.k}/{case.kv.v}",
                    "tokens": case.tokens,
                    "gpu_layers": layers,
                    "offload_kqv": case.offload_kqv,
                    "reason": None,
                }
                try:
                    row |= measure(model, case)
                except BackendError as error:
                    row["reason"] = str(error)
                print(json.dumps(row), file=stream, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python -m tools.gpu_speeds MODEL.gguf OUT.jsonl KV:TOKENS:LAYERS:CACHE…")
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Case.parse(text) for text in sys.argv[3:]])
