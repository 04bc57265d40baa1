"""Write GGUF files byte by byte for tests, from the specification, without the package."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

CODES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    data: bytes
    type: int = 0


@dataclass
class Model:
    """A GGUF file to write. `metadata` is (key, type, value); arrays are (item type, items)."""

    metadata: list[tuple[str, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    order: str = "<"
    version: int = 3
    alignment: int = 32
    trailing: bytes = b""
    final_padding: bool = True

    def header(self) -> bytes:
        o = self.order
        out = [b"GGUF", struct.pack(o + "IQQ", self.version, len(self.tensors), len(self.metadata))]
        for key, kind, value in self.metadata:
            out += [self.text(key), struct.pack(o + "I", kind), self.value(kind, value)]
        offset = 0
        for t in self.tensors:
            out.append(self.text(t.name))
            out.append(
                struct.pack(f"{o}I{len(t.shape)}QIQ", len(t.shape), *t.shape, t.type, offset)
            )
            offset += len(t.data) + -len(t.data) % self.alignment
        return b"".join(out)

    def data(self) -> bytes:
        out = b"".join(t.data + bytes(-len(t.data) % self.alignment) for t in self.tensors)
        if self.tensors and not self.final_padding:
            out = out[: len(out) - -len(self.tensors[-1].data) % self.alignment]
        return out + self.trailing

    def encoded(self) -> bytes:
        header, data = self.header(), self.data()
        return header + (bytes(-len(header) % self.alignment) + data if data else b"")

    def text(self, text: str) -> bytes:
        raw = text.encode("utf-8", "surrogateescape")
        return struct.pack(self.order + "Q", len(raw)) + raw

    def value(self, kind: int, value: Any) -> bytes:
        if kind == STRING:
            return self.text(value)
        if kind == ARRAY:
            item_type, items = value
            head = struct.pack(self.order + "IQ", item_type, len(items))
            return head + b"".join(self.value(item_type, item) for item in items)
        return struct.pack(self.order + CODES[kind], value)


def small_model(**changes: Any) -> Model:
    """Return a tiny file with each kind of key and tensor that real ones have."""
    model = Model(
        metadata=[
            ("general.architecture", STRING, "llama"),
            ("general.name", STRING, "a tiny one"),
            ("llama.context_length", 4, 2048),
            ("llama.rope.freq_base", 6, 10000.0),
            ("llama.block_count", 4, 2),
            ("llama.attention.head_count_kv", ARRAY, (5, [3, 4])),
            ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "", "a\n", "\udcff\udcfe", "é"])),
            ("tokenizer.ggml.scores", ARRAY, (6, [0.5, -1.0, 2.0, 0.0, 0.25])),
            ("general.quantized", 7, True),
        ],
        tensors=[
            Tensor("token_embd.weight", (4, 5), bytes(range(80))),
            Tensor("rope_freqs.weight", (4,), struct.pack("<4f", 1.0, 1.0, 2.0, 4.0)),
            Tensor("blk.0.attn_q.weight", (32, 2), bytes(range(100, 136)), 2),
            Tensor("output_norm.weight", (4,), bytes(range(200, 216))),
        ],
    )
    for name, value in changes.items():
        setattr(model, name, value)
    return model
