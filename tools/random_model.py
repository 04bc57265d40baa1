"""Write a Llama of a real size with random weights, to measure speed and memory; with `experts` it
is a mixture of experts.

    python -m tools.random_model OUT.gguf 8b

Tensors are written one after the other, so memory stays that of the largest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

_BLOCK = 32
_Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", _BLOCK)])  # block_q8_0, ggml-common.h
_DEVIATION = 127 / np.sqrt(3)
"""The standard deviation of values spread evenly over a signed byte."""
_RANDOM_BYTES = 16 * 1024 * 1024
"""Bytes drawn once and repeated. Drawing all would take minutes, and no speed depends on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama; each that is the inner dimension of a tensor is a multiple of 32."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    experts: int = 0
    context: int = 8192
    rope_base: float = 500_000.0

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes in numpy's order, the inner dimension last."""
        width, kv_width = self.width, self.kv_heads * self.head_size
        yield "token_embd.weight", (self.vocabulary, width)
        yield "output_norm.weight", (width,)
        yield "output.weight", (self.vocabulary, width)
        for layer in range(self.layers):
            for name, shape in (
                ("attn_norm", (width,)),
                ("attn_q", (width, width)),
                ("attn_k", (kv_width, width)),
                ("attn_v", (kv_width, width)),
                ("attn_output", (width, width)),
                ("ffn_norm", (width,)),
                *self._feed_forward(),
            ):
                yield f"blk.{layer}.{name}.weight", shape

    def _feed_forward(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        up, down = (self.hidden, self.width), (self.width, self.hidden)
        shapes = (("ffn_gate", up), ("ffn_up", up), ("ffn_down", down))
        if not self.experts:
            yield from shapes
            return
        yield "ffn_gate_inp", (self.experts, self.width)
        for name, shape in shapes:
            yield f"{name}_exps", (self.experts, *shape)


SHAPES = {
    "8b": Shape(layers=32, width=4096, heads=32, kv_heads=8, hidden=14336, vocabulary=128256),
    "tiny": Shape(layers=2, width=64, heads=2, kv_heads=1, hidden=96, vocabulary=320, context=256),
    "tiny-experts": Shape(
        layers=2, width=64, heads=2, kv_heads=1, hidden=96, vocabulary=320, context=256, experts=4
    ),
}
"""Shapes by name: "8b" is that of Llama 3 8B, those of "tiny" are for tests."""


def write(path: Path, shape: Shape, *, seed: int = 0, hollow: bool = False) -> None:
    """Write a model of `shape` to `path`: matrices in q8_0, norms in f32.

    A `hollow` model has a hole in place of weights: the size of a model, and no space on the disk.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, shape)
    for name, dimensions in shape.tensors():
        if len(dimensions) == 1:
            writer.add_tensor_info(name, dimensions, np.dtype("f4"), _size(dimensions))
        else:
            *rows, columns = dimensions
            stored = (*rows, columns // _BLOCK * _Q8_0.itemsize)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor_info(name, stored, np.dtype("u1"), _size(dimensions), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if not hollow:
        random = np.frombuffer(np.random.default_rng(seed).bytes(_RANDOM_BYTES), np.int8)
        for _, dimensions in shape.tensors():
            writer.write_tensor_data(_weights(random.reshape(-1, _BLOCK), dimensions))
    writer.close()
    if hollow:
        sizes = [path.stat().st_size, *(_size(dimensions) for _, dimensions in shape.tensors())]
        alignment = gguf.GGUF_DEFAULT_ALIGNMENT
        os.truncate(path, sum(gguf.GGUFWriter.ggml_pad(size, alignment) for size in sizes))


def _size(shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor."""
    if len(shape) == 1:
        return 4 * shape[0]
    return prod(shape) // _BLOCK * _Q8_0.itemsize


def _weights(random: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return one tensor: ones, or the random blocks repeated, of deviation 1/sqrt(inputs)."""
    if len(shape) == 1:
        return np.ones(shape, "<f4")
    blocks = np.empty(len(random), _Q8_0)
    blocks["scale"] = 1 / (_DEVIATION * np.sqrt(shape[-1]))
    blocks["values"] = random
    return np.resize(blocks, prod(shape) // _BLOCK)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(min(2, shape.experts))
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer, shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """Add byte-level BPE with a single merge: nearly one token per byte; the rest is unused."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    symbols = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    tokens = ["<bos>", "<eos>", *symbols, "th"]
    tokens += [f"<unused {number}>" for number in range(vocabulary - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control = [gguf.TokenType.CONTROL] * 2
    writer.add_token_types(control + [gguf.TokenType.NORMAL] * (vocabulary - 2))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in SHAPES:
        sys.exit(f"usage: python -m tools.random_model OUT.gguf {'|'.join(SHAPES)}")
    write(Path(sys.argv[1]), SHAPES[sys.argv[2]])
