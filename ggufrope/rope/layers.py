"""Which layers of a model use a sliding window, do not rotate, or have no attention at all.

Follows `load_hparams` and the graphs of llama.cpp's src/models at the commit that
`architectures.source()` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.errors import FileError
from ggufrope.rope.metadata import RopeMetadata, per_layer

if TYPE_CHECKING:
    from ggufrope.rope.architectures import Architecture, SlidingWindow

LayerKind: TypeAlias = Literal["global", "sliding-window", "no-rope", "recurrent"]

MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS; a model with more does not load."""


def layer_count(metadata: RopeMetadata) -> int:
    """Return the number of layers of the trunk, without the heads that draft further tokens.

    Raises FileError where the file declares no number from 1 to MAX_LAYERS.
    """
    blocks = metadata.block_count
    if blocks is None or not 0 < blocks <= MAX_LAYERS:
        raise FileError(
            f"{metadata.key('block_count')} is {blocks}: expected 1 to {MAX_LAYERS} layers"
        )
    return max(blocks - (metadata.nextn_predict_layers or 0), 0)


def sliding_layers(metadata: RopeMetadata, arch: Architecture) -> tuple[bool, ...]:
    """Return for each layer whether its attention is limited to a window."""
    layers = layer_count(metadata)
    window = arch.sliding
    if arch.compressed:
        ratios = per_layer(metadata.compress_ratios, layers, default=1)
        return tuple(ratio == 0 for ratio in ratios)
    if window is None or not _slides(metadata, window, layers):
        return (False,) * layers
    declared = metadata.sliding_window_pattern
    if isinstance(declared, tuple):
        return tuple(bool(flag) for flag in per_layer(declared, layers, default=0))
    period = window.pattern if declared is None else declared
    if period is None:
        return (False,) * layers
    is_global = 0 if window.dense_first else period - 1
    return tuple(period == 0 or layer % period != is_global for layer in range(layers))


def layer_kinds(metadata: RopeMetadata, arch: Architecture) -> tuple[LayerKind, ...]:
    """Return the kind of rotation of each layer."""
    sliding = sliding_layers(metadata, arch)
    recurrent = recurrent_layers(metadata, arch)
    unrotated = _unrotated(metadata, arch, sliding)
    if arch.dense_rotate:
        # cohere2moe.cpp: force_rope
        dense = metadata.leading_dense_blocks or 0
        unrotated = tuple(off and layer >= dense for layer, off in enumerate(unrotated))
    return tuple(
        "recurrent" if r else "no-rope" if u else "sliding-window" if s else "global"
        for r, u, s in zip(recurrent, unrotated, sliding, strict=True)
    )


def recurrent_layers(metadata: RopeMetadata, arch: Architecture) -> tuple[bool, ...]:
    """Return for each layer whether it has a recurrent state in place of attention."""
    layers = layer_count(metadata)
    if arch.recurrent == "none":
        return (False,) * layers
    if arch.recurrent == "all":
        return (True,) * layers
    if arch.recurrent == "no-kv-heads":
        heads = metadata.head_count if metadata.head_count_kv is None else metadata.head_count_kv
        return tuple(count == 0 for count in per_layer(heads, layers, default=0))
    if metadata.recurrent_layers is not None:
        flags = per_layer(metadata.recurrent_layers, layers, default=0)
        return tuple(bool(flag) for flag in flags)
    interval = metadata.full_attention_interval or arch.step
    return tuple((layer + 1) % interval != 0 for layer in range(layers))


def _slides(metadata: RopeMetadata, window: SlidingWindow, layers: int) -> bool:
    if window.when == "window":
        return bool(metadata.sliding_window)
    if window.when == "unless-zero":
        return metadata.sliding_window != 0
    return window.when == "always" or layers == 64


def _unrotated(
    metadata: RopeMetadata, arch: Architecture, sliding: tuple[bool, ...]
) -> tuple[bool, ...]:
    layers = len(sliding)
    if arch.rope == "none" or (arch.no_rope == "unless-finetuned" and metadata.finetuned is False):
        return (True,) * layers
    if arch.no_rope == "unless-32-layers":
        return (layers != 32,) * layers
    if arch.no_rope == "pattern":
        return tuple(flag == 0 for flag in per_layer(metadata.rope_pattern, layers, default=1))
    if arch.no_rope == "last":
        # Without sliding layers llama4 sets the step to the layer count: only the last is skipped.
        step = arch.step if arch.step_always or any(sliding) else layers
        return tuple((layer + 1) % step == 0 for layer in range(layers))
    if arch.no_rope == "global" and any(sliding):
        return tuple(not slides for slides in sliding)
    if arch.no_rope == "first" and any(sliding):
        return tuple(layer % arch.step == 0 for layer in range(layers))
    return (False,) * layers
