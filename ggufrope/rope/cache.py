"""What llama.cpp's K/V cache holds for a model, and which pairs of types it runs the model with.

Follows `llama_init_from_model` (src/llama-context.cpp), `llama_hparams` (src/llama-hparams.cpp) and
the constructor of `llama_kv_cache` (src/llama-kv-cache.cpp) at the commit that
`architectures.source()` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container.ggml import cache_type
from ggufrope.errors import FileError
from ggufrope.rope.layers import layer_count, recurrent_layers, sliding_layers
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.metadata import first_layer, per_layer

if TYPE_CHECKING:
    from ggufrope.rope.architectures import Architecture
    from ggufrope.rope.metadata import RopeMetadata

NO_FLASH_ATTENTION = frozenset({"grok"})
"""Architectures for which llama.cpp turns flash attention off, whatever is set."""
KEYS_ALONE = frozenset({"deepseek4"})
"""Architectures that cache keys alone, without the keys of multi-head latent attention."""
_COMPRESSED_VALUES = frozenset({"glm5-next", "kimi-k3"})
"""Architectures whose value heads are as wide as the compressed row, whatever the file says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """What decides whether a pair of cache types runs on a model.

    `key_sizes` and `value_sizes` are the head sizes, one per kind of layer. `equal_types` is
    whether K and V must have the same type, as in multi-head latent attention, which keeps one
    compressed row for both.
    """

    architecture: str
    key_sizes: tuple[int, ...]
    value_sizes: tuple[int, ...]
    equal_types: bool

    def refusal(
        self, type_k: str, type_v: str, *, flash_attention: bool | None = None
    ) -> str | None:
        """Return why llama.cpp does not run the pair; None where it does.

        `flash_attention` None is llama.cpp's choice, which turns it on where the pair needs it.
        (Without flash attention llama.cpp does not check the head size of K, and ggml aborts or
        computes nonsense, so that rule holds always.) Raises UnsupportedCacheError for an unknown
        type.
        """
        k, v = cache_type(type_k), cache_type(type_v)
        if self.equal_types and k != v:
            return (
                f"K cache {k.name} and V cache {v.name} differ, and {self.architecture} needs the "
                "same type for both: one compressed row holds keys and values"
            )
        if v.quantized:
            needs = f"V cache {v.name} is quantized, which needs flash attention, and "
            if flash_attention is False:
                return f"{needs}that is off"
            if self.architecture in NO_FLASH_ATTENTION:
                return f"{needs}llama.cpp turns that off for {self.architecture}"
        for letter, kind, sizes in (("K", k, self.key_sizes), ("V", v, self.value_sizes)):
            for size in sizes:
                if size % kind.block_size:
                    return (
                        f"{letter} cache {kind.name} has blocks of {kind.block_size} values, which "
                        f"do not divide the head size {size}"
                    )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRow:
    """One layer's row of the cache: the values of K and of V for one token."""

    layer: int
    k_width: int
    v_width: int
    slides: bool


def cache_rules(metadata: RopeMetadata, arch: Architecture) -> CacheRules:
    """Return the rules for a file. Raises FileError where its head size is unknown."""
    sliding = set(sliding_layers(metadata, arch))
    sizes = [head_sizes(metadata, slides=slides) for slides in sorted(sliding)]
    return rules_of(
        arch.name,
        [k for k, _ in sizes],
        [v for _, v in sizes],
        latent=is_latent(metadata),
        kv_lora_rank=metadata.kv_lora_rank,
    )


def rules_of(
    name: str,
    key_sizes: list[int],
    value_sizes: list[int],
    *,
    latent: bool,
    kv_lora_rank: int | None = None,
) -> CacheRules:
    """Return the rules for declared head sizes; `latent` is multi-head latent attention."""
    if name in _COMPRESSED_VALUES and kv_lora_rank:
        value_sizes = [kv_lora_rank]
    return CacheRules(
        architecture=name,
        key_sizes=tuple(dict.fromkeys(key_sizes)),
        value_sizes=tuple(dict.fromkeys(value_sizes)),
        equal_types=latent or name in KEYS_ALONE,
    )


def is_latent(metadata: RopeMetadata) -> bool:
    """Return whether llama.cpp runs multi-head latent attention in its compressed form.

    Files converted before that form existed lack the keys, and cache whole heads.
    """
    return bool(metadata.key_length_mla and metadata.value_length_mla)


def cache_rows(metadata: RopeMetadata, arch: Architecture) -> tuple[CacheRow, ...]:
    """Return the row of each layer that has a cache of its own."""
    layers = layer_count(metadata)
    kv_heads = metadata.head_count if metadata.head_count_kv is None else metadata.head_count_kv
    heads = per_layer(kv_heads, layers, default=0)
    owning = layers - (metadata.shared_kv_layers or 0)
    recurrent = recurrent_layers(metadata, arch)
    keys_alone = is_latent(metadata) or arch.name in KEYS_ALONE
    rows = []
    for layer, slides in enumerate(sliding_layers(metadata, arch)):
        if recurrent[layer] or layer >= owning:
            continue
        k_size, v_size = head_sizes(metadata, slides=slides)
        if metadata.kv_lora_rank and heads[layer] == 1:
            k_width, v_width = metadata.kv_lora_rank + rotary_dimensions(metadata, arch), 0
        else:
            k_width = heads[layer] * k_size
            v_width = 0 if keys_alone else heads[layer] * v_size
        rows.append(CacheRow(layer=layer, k_width=k_width, v_width=v_width, slides=slides))
    return tuple(rows)


def head_sizes(metadata: RopeMetadata, *, slides: bool) -> tuple[int, int]:
    """Return the sizes of a key head and of a value head. Raises FileError where unknown."""
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
