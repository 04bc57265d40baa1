"""What a model needs in memory at a context length: weights, KV cache, compute buffer.

The cache is exact for attention layers (src/llama-kv-cache.cpp: one row of keys and one of values
per layer and token, sliding-window layers holding their window and one batch only). The compute
buffer is llama.cpp's largest part of a graph, counted from the tensors alive at once: the logits
of a batch, or the attention scores and their mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufrope._bisect import largest
from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.container.types import ArrayValue, Header
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.layers import layer_count, recurrent_layers, sliding_layers
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, allocated_context, rotary_dimensions
from ggufrope.rope.metadata import RopeMetadata, first_layer, per_layer

BATCH_TOKENS = 512
"""llama.cpp's default n_ubatch."""
_MOST_GRANULES = (1 << 24) - 1
"""The longest context to look for, in allocation steps: positions are int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """The bytes that a context of `context_tokens` needs, all parts on one device."""

    context_tokens: int
    k_type: str
    v_type: str
    weight_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.compute_bytes


def memory_need(
    header: Header,
    metadata: RopeMetadata,
    *,
    context_tokens: int,
    k_type: str = "f16",
    v_type: str = "f16",
    flash_attention: bool = True,
    full_window: bool = False,
) -> MemoryNeed:
    """Estimate the memory of one context of one sequence.

    `full_window` keeps whole contexts in sliding-window layers: llama_context_default_params does,
    llama-server does not. Raises RequestError for an unknown cache type, or one whose
    block does not divide a row.
    """
    return MemoryNeed(
        context_tokens=context_tokens,
        k_type=k_type,
        v_type=v_type,
        weight_bytes=sum(tensor.length for tensor in header.tensors),
        kv_bytes=kv_bytes(
            metadata,
            context_tokens=context_tokens,
            k_type=k_type,
            v_type=v_type,
            full_window=full_window,
        ),
        compute_bytes=_compute_bytes(header, metadata, context_tokens, flash_attention),
    )


def kv_bytes(
    metadata: RopeMetadata,
    *,
    context_tokens: int,
    k_type: str = "f16",
    v_type: str = "f16",
    full_window: bool = False,
) -> int:
    """Return the bytes of the K and V caches of a context of one sequence."""
    if context_tokens < 1:
        raise RequestError(f"a context of {context_tokens} tokens: expected 1 or more")
    arch = architecture(metadata.architecture)
    cells = allocated_context(context_tokens)
    windowed = cells
    if not full_window and metadata.sliding_window:
        windowed = min(cells, allocated_context(metadata.sliding_window + BATCH_TOKENS))
    total = 0
    for k_width, v_width, slides in _rows(metadata, arch):
        row = _row_bytes(k_width, k_type) + _row_bytes(v_width, v_type)
        total += row * (windowed if slides else cells)
    return total


def longest_context(
    header: Header,
    metadata: RopeMetadata,
    *,
    budget_bytes: int,
    k_type: str = "f16",
    v_type: str = "f16",
) -> int:
    """Return the longest context, in whole allocation steps, that fits; 0 if none does."""

    def fits(granules: int) -> bool:
        tokens = granules * CONTEXT_GRANULE
        need = memory_need(header, metadata, context_tokens=tokens, k_type=k_type, v_type=v_type)
        return need.total_bytes <= budget_bytes

    return largest(fits, 0, _MOST_GRANULES) * CONTEXT_GRANULE


def _rows(metadata: RopeMetadata, arch: Architecture) -> list[tuple[int, int, bool]]:
    """Width of a key row, of a value row, and whether it slides, for each layer with a cache."""
    layers = layer_count(metadata)
    kv_heads = metadata.head_count if metadata.head_count_kv is None else metadata.head_count_kv
    heads = per_layer(kv_heads, layers, default=0)
    owning = layers - (metadata.shared_kv_layers or 0)
    recurrent = recurrent_layers(metadata, arch)
    rows = []
    for layer, slides in enumerate(sliding_layers(metadata, arch)):
        if recurrent[layer] or layer >= owning:
            continue
        k_size, v_size = _head_sizes(metadata, slides=slides)
        if metadata.kv_lora_rank and heads[layer] == 1:
            # Latent attention keeps one compressed row, from which the values are read too.
            rows.append((metadata.kv_lora_rank + rotary_dimensions(metadata, arch), 0, slides))
        else:
            rows.append((heads[layer] * k_size, heads[layer] * v_size, slides))
    return rows


def _head_sizes(metadata: RopeMetadata, *, slides: bool) -> tuple[int, int]:
    k_size = metadata.head_size
    if k_size is None:
        raise FileError(
            f"{metadata.key('key_length')} and {metadata.key('head_count')} are both missing: "
            "without one of them the size of the cache is unknown"
        )
    heads = first_layer(metadata.head_count)
    plain = (metadata.embedding_length or 0) // heads if heads else k_size
    v_size = plain if metadata.value_length is None else metadata.value_length
    if slides:
        return metadata.key_length_swa or k_size, metadata.value_length_swa or v_size
    return k_size, v_size


def _row_bytes(width: int, name: str) -> int:
    if name not in CACHE_TYPES:
        raise RequestError(
            f"cache type {name!r} is unknown: expected one of {', '.join(CACHE_TYPES)}"
        )
    kind = CACHE_TYPES[name]
    if width % kind.block_size:
        raise RequestError(
            f"cache type {name} holds blocks of {kind.block_size} values, which do not "
            f"divide this model's rows of {width}: use f16"
        )
    return kind.row_bytes(width)


def _compute_bytes(
    header: Header, metadata: RopeMetadata, context_tokens: int, flash_attention: bool
) -> int:
    cells = allocated_context(context_tokens)
    batch = min(BATCH_TOKENS, cells)
    width = metadata.embedding_length or 0
    logits = 4 * batch * (_vocabulary(header) + 2 * width)
    # A float mask and its half-precision copy; without flash attention, every head's scores too.
    per_cell = 6 if flash_attention else 4 + 4 * (first_layer(metadata.head_count) or 0)
    attention = batch * (cells * per_cell + 4 * 6 * width)
    return max(logits, attention)


def _vocabulary(header: Header) -> int:
    tokens = header.get("tokenizer.ggml.tokens")
    if isinstance(tokens, ArrayValue):
        return tokens.count
    embedding = header.tensor("token_embd.weight")
    return embedding.shape[-1] if embedding is not None and embedding.shape else 0
