"""Print how fast a model runs with its layers and its K/V cache on the GPU or off it, as JSON.

    python -m tools.gpu_offload MODEL.gguf CONTEXT

The prompt and its length are those of the task kv-cache.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Literal

from ggufrope.errors import BackendError
from ggufrope.evals.kv_cache import measure_cache
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

LAYERS: tuple[Literal["all"] | int, ...] = ("all", 0)


def measure(path: Path, n_ctx: int) -> list[dict[str, object]]:
    """Return one row for each place of the layers and of the cache: tokens per second, and the
    devices that the weights and the cache really are on."""
    rows: list[dict[str, object]] = []
    for gpu_layers, offload_kqv in product(LAYERS, (True, False)):
        row: dict[str, object] = {"gpu_layers": gpu_layers, "offload_kqv": offload_kqv}
        rows.append(row)
        settings = ContextSettings(n_ctx=n_ctx, offload_kqv=offload_kqv)
        try:
            with Model.open(path, gpu_layers=gpu_layers) as model:
                row["weights_on"] = sorted({each.device for each in model.placement.buffers})
                with Context(model, settings) as context:
                    found = (re.search(r"(\S+) KV buffer size", line) for line in context.log)
                    row["cache_on"] = sorted({line[1] for line in found if line})
                score = measure_cache(n_ctx, model, lambda _, m=model, s=settings: Context(m, s))
        except BackendError as error:
            row["reason"] = str(error)
        else:
            row["prefill_tokens_per_second"] = score.prefill_speed
            row["decode_tokens_per_second"] = score.decode_speed
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.gpu_offload MODEL.gguf CONTEXT")
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
