"""Models of a few kilobytes with random weights, written by the `gguf` package, for llama.cpp.

Shapes differ between architectures only where llama.cpp wants other tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, WIDTH, HEADS, HEADS_KV, HEAD, FEED_FORWARD = 96, 128, 4, 2, 32, 96
NORMS = ("attn_norm", "ffn_norm")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an architecture wants beside the tensors of llama."""

    norms: tuple[str, ...] = NORMS
    head_norms: tuple[str, ...] = ()
    qkv_bias: bool = False
    norm_bias: bool = False
    fused: bool = False
    tied: bool = False
    head: int = HEAD
    n_rot: int = HEAD
    keys: dict[str, int | float] = field(default_factory=dict)


SHAPES = {
    "llama": Shape(),
    "llama with heads of 48": Shape(head=48, n_rot=48),
    "qwen2": Shape(qkv_bias=True),
    "qwen3": Shape(head_norms=("attn_q_norm", "attn_k_norm")),
    "gemma3": Shape(
        norms=(*NORMS, "post_attention_norm", "post_ffw_norm"),
        head_norms=("attn_q_norm", "attn_k_norm"),
        keys={"attention.sliding_window": 16},
    ),
    "phi3": Shape(fused=True),
    "stablelm": Shape(norm_bias=True, n_rot=HEAD // 4),
    "cohere2": Shape(
        norms=("attn_norm",),
        tied=True,
        keys={"attention.sliding_window": 16, "logit_scale": 0.5},
    ),
}


def write(
    path: Path,
    architecture: str,
    *,
    layers: int = 2,
    settings: dict[str, int | float | str] | None = None,
    factors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model; `settings` are keys after the architecture's name, `factors` tensors.

    `architecture` is a key of SHAPES, whose first word is the architecture.
    """
    shape = SHAPES[architecture]
    architecture = architecture.split()[0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("none")
    keys = {
        "vocab_size": VOCABULARY,
        "context_length": 512,
        "embedding_length": WIDTH,
        "block_count": layers,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS_KV,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": shape.n_rot,
        **shape.keys,
        **(settings or {}),
    }
    for key, value in keys.items():
        _add(writer, f"{architecture}.{key}", value)
    for name, array in (_tensors(shape, layers) | (factors or {})).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: float | str) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _tensors(shape: Shape, layers: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    def near_one(length: int) -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(length)).astype(np.float32)

    norms = {"output_norm": WIDTH}
    tensors = {"token_embd.weight": matrix(VOCABULARY, WIDTH)}
    for layer in range(layers):
        block = f"blk.{layer}."
        norms |= {block + name: WIDTH for name in shape.norms}
        norms |= {block + name: shape.head for name in shape.head_norms}
        if shape.fused:
            tensors[block + "attn_qkv.weight"] = matrix((HEADS + 2 * HEADS_KV) * shape.head, WIDTH)
            tensors[block + "ffn_up.weight"] = matrix(2 * FEED_FORWARD, WIDTH)
        else:
            for name, heads in (("q", HEADS), ("k", HEADS_KV), ("v", HEADS_KV)):
                tensors[f"{block}attn_{name}.weight"] = matrix(heads * shape.head, WIDTH)
                if shape.qkv_bias:
                    tensors[f"{block}attn_{name}.bias"] = near_one(heads * shape.head)
            tensors[block + "ffn_gate.weight"] = matrix(FEED_FORWARD, WIDTH)
            tensors[block + "ffn_up.weight"] = matrix(FEED_FORWARD, WIDTH)
        tensors[block + "attn_output.weight"] = matrix(WIDTH, HEADS * shape.head)
        tensors[block + "ffn_down.weight"] = matrix(WIDTH, FEED_FORWARD)
    if not shape.tied:
        tensors["output.weight"] = matrix(VOCABULARY, WIDTH)
    for name, length in norms.items():
        tensors[f"{name}.weight"] = near_one(length)
        if shape.norm_bias:
            tensors[f"{name}.bias"] = near_one(length)
    return tensors
