"""What a model needs in memory at a context length: weights, KV cache, compute buffer.

The cache is exact for attention layers (src/llama-kv-cache.cpp: one row of keys and one of values
per layer and token, sliding-window layers holding their window and one batch only). The compute
buffer is llama.cpp's largest part of a graph, counted from the tensors alive at once: the logits
of a batch, or the attention scores and their mask.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ggufrope._bisect import largest
from ggufrope.container.ggml import CACHE_TYPES, cache_type
from ggufrope.container.types import ArrayValue, Header
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.cache import cache_rows, cache_rules
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, allocated_context
from ggufrope.rope.metadata import RopeMetadata, first_layer

Risk: TypeAlias = Literal["none", "low", "moderate", "high"]

BATCH_TOKENS = 512
"""llama.cpp's default n_ubatch."""
_MOST_GRANULES = (1 << 24) - 1
"""The longest context to look for, in allocation steps: positions are int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChoice:
    """A pair of cache types worth proposing, and the risk that it loses quality.

    The risks follow what was measured (benchmarks/results/cache_types_smollm2.md: q4_0 alone has a
    loss that is surely not zero); `notes` are what to know before choosing it.
    """

    k_type: str
    v_type: str
    risk: Risk
    notes: tuple[str, ...] = ()


_NEEDS_FLASH = "needs flash attention"
_MIXED = "may be slow on CUDA builds without GGML_CUDA_FA_QUANTS=all: measure the speed"
CACHE_CHOICES = (
    CacheChoice(k_type="f16", v_type="f16", risk="none"),
    CacheChoice(k_type="q8_0", v_type="q8_0", risk="low", notes=(_NEEDS_FLASH,)),
    CacheChoice(k_type="q8_0", v_type="q4_0", risk="moderate", notes=(_NEEDS_FLASH, _MIXED)),
    CacheChoice(k_type="q4_0", v_type="q4_0", risk="high", notes=(_NEEDS_FLASH,)),
)
"""The pairs that advice looks at, largest first."""
_KEYS_ALONE = CacheChoice(k_type="q8_0", v_type="f16", risk="low", notes=(_MIXED,))
"""Where no quantized V runs: for want of flash attention, or for the size of the value heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """The bytes that a context of `context_tokens` needs, all parts on one device.

    `risk` is that of the cache types, None where it was not measured; `notes` belong to them.
    """

    context_tokens: int
    k_type: str
    v_type: str
    weight_bytes: int
    kv_bytes: int
    compute_bytes: int
    risk: Risk | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.compute_bytes


def cache_needs(
    header: Header,
    metadata: RopeMetadata,
    *,
    context_tokens: int,
    slow_pairs: Container[tuple[str, str]] | None = None,
) -> tuple[MemoryNeed, ...]:
    """Return the need with each of CACHE_CHOICES that llama.cpp runs this model with.

    `slow_pairs` are the pairs, K and V, whose attention the build at hand does not run on the GPU,
    and which are left out; None where that is not known.
    """
    rules = cache_rules(metadata, architecture(metadata.architecture))

    def runs(choice: CacheChoice) -> bool:
        pair = choice.k_type, choice.v_type
        return rules.refusal(*pair) is None and (slow_pairs is None or pair not in slow_pairs)

    choices = [each for each in CACHE_CHOICES if runs(each)]
    if len(choices) == 1 and runs(_KEYS_ALONE):
        choices.append(_KEYS_ALONE)
    needs = []
    for choice in choices:
        need = memory_need(
            header,
            metadata,
            context_tokens=context_tokens,
            k_type=choice.k_type,
            v_type=choice.v_type,
        )
        notes = [each for each in choice.notes if each != _MIXED or slow_pairs is None]
        needs.append(replace(need, risk=choice.risk, notes=tuple(notes)))
    return tuple(needs)


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
    llama-server does not. Raises RequestError for an unknown cache type, and for a pair that
    llama.cpp does not run the model with.
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
    """Return the bytes of the K and V caches of a context of one sequence.

    Raises RequestError as `memory_need` does.
    """
    for name in (k_type, v_type):
        if name not in CACHE_TYPES:
            raise RequestError(
                f"cache type {name!r} is unknown: expected one of {', '.join(CACHE_TYPES)}"
            )
    if context_tokens < 1:
        raise RequestError(f"a context of {context_tokens} tokens: expected 1 or more")
    arch = architecture(metadata.architecture)
    refused = cache_rules(metadata, arch).refusal(k_type, v_type)
    if refused is not None:
        raise RequestError(refused)
    k, v = cache_type(k_type), cache_type(v_type)
    cells = allocated_context(context_tokens)
    windowed = cells
    if not full_window and metadata.sliding_window:
        windowed = min(cells, allocated_context(metadata.sliding_window + BATCH_TOKENS))
    total = 0
    for row in cache_rows(metadata, arch):
        row_bytes = k.row_bytes(row.k_width) + v.row_bytes(row.v_width)
        total += row_bytes * (windowed if row.slides else cells)
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
