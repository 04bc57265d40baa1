"""Model files for the benchmarks, made in a second and equal every time."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 262_144
UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5
F16_MATRIX = (2048, 5632)


def big_vocabulary(
    path: Path, *, data_bytes: int, sparse: bool = False, vocabulary: int = VOCABULARY
) -> Path:
    """Write a file shaped like a Llama: its tokens, and about `data_bytes` of F16 matrices.

    With `sparse` the data of the matrices is a hole and takes no space on the disk.
    """
    size = F16_MATRIX[0] * F16_MATRIX[1] * 2
    count = max(data_bytes // size, 1)
    names = [f"blk.{n // 7}.tensor_{n % 7}.weight" for n in range(count)]
    metadata = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "a big vocabulary"),
        ("llama.context_length", UINT32, 8192),
        ("llama.embedding_length", UINT32, F16_MATRIX[0]),
        ("llama.block_count", UINT32, (count + 6) // 7),
        ("llama.feed_forward_length", UINT32, F16_MATRIX[1]),
        ("llama.attention.head_count", UINT32, 32),
        ("llama.rope.dimension_count", UINT32, 64),
        ("llama.rope.freq_base", FLOAT32, 10000.0),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [_token(n) for n in range(vocabulary)])),
        ("tokenizer.ggml.scores", ARRAY, (FLOAT32, [-float(n) for n in range(vocabulary)])),
        ("tokenizer.ggml.token_type", ARRAY, (INT32, [1] * vocabulary)),
    ]
    header = [b"GGUF", struct.pack("<IQQ", 3, count, len(metadata))]
    header += [_text(key) + struct.pack("<I", kind) + _value(kind, v) for key, kind, v in metadata]
    header += [
        _text(name) + struct.pack("<IQQIQ", 2, *F16_MATRIX, 1, n * size)
        for n, name in enumerate(names)
    ]
    head = b"".join(header)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        if sparse:
            file.truncate(file.tell() + count * size)
        else:
            block = bytes(range(256)) * (size // 256)
            for n in range(count):
                file.write(block[n:] + block[:n])
    return path


def make(
    path: Path, *, data_bytes: int, sparse: bool = False, vocabulary: int = VOCABULARY
) -> Path:
    """Call `big_vocabulary` in another process, so that this one stays small.

    The peak memory of a child process includes that of its parent.
    """
    arguments = [str(path), str(data_bytes), str(vocabulary), *(["sparse"] if sparse else [])]
    subprocess.run([sys.executable, "-m", "benchmarks.models", *arguments], check=True)
    return path


def _token(number: int) -> str:
    return f"▁w{number:x}" if number % 3 else f"tok{number}"


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        item, items = value
        head = struct.pack("<IQ", item, len(items))
        if item == STRING:
            return head + b"".join(map(_text, items))
        return head + struct.pack(f"<{len(items)}{'f' if item == FLOAT32 else 'i'}", *items)
    return struct.pack("<f" if kind == FLOAT32 else "<I", value)


if __name__ == "__main__":
    big_vocabulary(
        Path(sys.argv[1]),
        data_bytes=int(sys.argv[2]),
        vocabulary=int(sys.argv[3]),
        sparse="sparse" in sys.argv,
    )
