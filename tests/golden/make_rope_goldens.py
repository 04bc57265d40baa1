"""Write rope.json: inverse frequencies and attention factors from transformers, for real models.

    pip install torch==2.13.0 transformers==5.23.0    (the CPU build of torch)
    python tests/golden/make_rope_goldens.py > tests/golden/rope.json

The settings are those of published models; factor arrays are made by a formula of like shape, as
the published ones belong to their authors. transformers computes in float32.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def rising(pairs: int, first: float, last: float) -> list[float]:
    """Factors that rise as searched ones do: slowly over the fast pairs, steeply in the middle."""
    steps = [(j / (pairs - 1)) ** 2 for j in range(pairs)]
    return [round(first * (last / first) ** step, 6) for step in steps]


def config(head_dim: int, length: int, theta: float, **rope: Any) -> dict[str, Any]:
    heads = 8
    return {
        "head_dim": head_dim,
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "rope_theta": theta,
        "rope_parameters": rope,
    }


def yarn(factor: float, original: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **more,
    }


def longrope(original: int, pairs: int, last: float, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        "long_factor": rising(pairs, 1.05, last),
        "short_factor": rising(pairs, 1.0, 2.5),
        **more,
    }


def llama3(factor: float, original: int = 8192) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": config(128, 131072, 5e5, **llama3(8.0)),
    "llama-3.2-1b": config(64, 131072, 5e5, **llama3(32.0)),
    "qwen2.5-7b-yarn": config(128, 131072, 1e6, **yarn(4.0, 32768)),
    "qwen3-8b-yarn": config(128, 131072, 1e6, **yarn(4.0, 32768)),
    "qwen3-30b-2507-1m": config(128, 1010000, 1e7, **yarn(4.0, 262144)),
    "smollm2-135m-yarn": config(64, 65536, 1e5, **yarn(8.0, 8192)),
    "yarn-llama-2-7b-128k": config(128, 131072, 1e4, **yarn(32.0, 4096)),
    "yarn-betas": config(128, 65536, 1e6, **yarn(2.0, 32768, beta_fast=16, beta_slow=2)),
    "yarn-attention-factor": config(128, 65536, 1e6, **yarn(8.0, 8192, attention_factor=1.5)),
    "yarn-short-original": config(64, 2048, 1e4, **yarn(16.0, 128)),
    "deepseek-v2": config(
        64,
        163840,
        1e4,
        **yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707, beta_fast=32, beta_slow=1),
    ),
    "deepseek-v3": config(64, 163840, 1e4, **yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)),
    "mscale-pair": config(64, 163840, 1e4, **yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.707)),
    "gpt-oss": config(
        64, 131072, 1.5e5, **yarn(32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False)
    ),
    "gemma-3-global": config(256, 131072, 1e6, rope_type="linear", factor=8.0),
    "deepseek-coder-linear": config(128, 16384, 1e5, rope_type="linear", factor=4.0),
    "gemma-4-proportional": config(
        512, 131072, 1e6, rope_type="proportional", partial_rotary_factor=0.25
    ),
    "phi-3-mini-128k": config(96, 131072, 1e4, **longrope(4096, 48, 64.0)),
    "phi-3-medium-128k": config(128, 131072, 1e4, **longrope(4096, 64, 60.0)),
    "phi-4-mini": config(128, 131072, 1e4, **longrope(4096, 48, 48.0, partial_rotary_factor=0.75)),
    "longrope-attention-factor": config(
        96, 131072, 1e4, **longrope(4096, 48, 64.0, attention_factor=1.3)
    ),
    "glm-4-yarn": config(128, 131072, 1e4, **yarn(4.0, 32768, partial_rotary_factor=0.5)),
    "stablelm-linear": config(
        160, 8192, 1e4, rope_type="linear", factor=2.0, partial_rotary_factor=0.25
    ),
    "phi-2-dynamic": config(
        80, 2048, 1e4, rope_type="dynamic", factor=4.0, partial_rotary_factor=0.4
    ),
    "internlm2-dynamic": config(128, 32768, 1e6, rope_type="dynamic", factor=2.0),
}
LENGTHS = {"dynamic": (None, 2048, 16384, 65536), "longrope": (None, 4096, 131072)}


def compute(settings: dict[str, Any], seq_len: int | None) -> dict[str, Any]:
    rope = dict(settings["rope_parameters"], rope_theta=settings["rope_theta"])
    fields = {name: value for name, value in settings.items() if not name.startswith("rope_")}
    model = transformers.LlamaConfig(**fields, rope_parameters=rope)
    function = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    frequencies, magnitude = function(model, torch.device("cpu"), seq_len=seq_len)
    digits = [float(f"{value:.9g}") for value in frequencies.tolist()]
    return {"context_tokens": seq_len, "inverse_frequencies": digits, "magnitude": magnitude}


def main() -> None:
    transformers.logging.set_verbosity_error()
    cases = []
    for name, settings in SETTINGS.items():
        kind = settings["rope_parameters"]["rope_type"]
        results = [compute(settings, length) for length in LENGTHS.get(kind, (None,))]
        cases.append({"name": name, "config": settings, "results": results})
    about = {"transformers": transformers.__version__, "torch": torch.__version__}
    made = json.dumps({"made_with": about, "cases": cases}, separators=(",", ":"))
    sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main()
