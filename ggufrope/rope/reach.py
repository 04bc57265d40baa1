"""How far a file reaches, and findings about that: context lengths, factors, layers, the base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ggufrope.errors import FileError
from ggufrope.rope.findings import info, warning
from ggufrope.rope.layers import layer_kinds
from ggufrope.rope.llamacpp import base_field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.rope.architectures import Architecture
    from ggufrope.rope.findings import Finding
    from ggufrope.rope.layers import LayerKind
    from ggufrope.rope.metadata import RopeMetadata

_EXTENDED_RATIO = 1.001
"""A context this much longer than what the scaling covers is more than a rounding."""

_LONGEST_AT_10000 = 16384
"""Tokens beyond which no published model turns at base 10000 without a scaling."""

_USUAL_BASES = {
    "gemma3": 1e6,
    "gemma3n": 1e6,
    "gemma4": 1e6,
    "qwen3": 1e6,
    "qwen3moe": 1e6,
    "gpt-oss": 150000.0,
    "llama4": 500000.0,
    "cohere2": 50000.0,
    "olmo2": 500000.0,
    "seed_oss": 1e7,
    "glm4moe": 1e6,
    "exaone4": 1e6,
    "lfm2": 1e6,
    "ernie4_5": 500000.0,
    "minimax-m2": 5e6,
}
"""The base of published models, where all of them have another than llama.cpp's default."""


USUAL_REACH = 8.0
"""How many times longer than trained a context may become, up to which YaRN usually holds."""


def far_warning(growth: float) -> str | None:
    """Return a warning of a context that is `growth` times the trained one, None where it is near
    enough to hope for."""
    if growth <= USUAL_REACH:
        return None
    return (
        f"{growth:.3g} times the trained context is far: without training recall often fails, so "
        "measure every doubling on the way"
    )


def declared_scale(metadata: RopeMetadata) -> float | None:
    """Return the declared scaling factor: `factor`, else the old `scale_linear`."""
    return metadata.scale_linear if metadata.factor is None else metadata.factor


def is_scaled(metadata: RopeMetadata) -> bool:
    """Return whether the file declares a factor that acts."""
    return declared_scale(metadata) not in (None, 0, 1) and metadata.scaling_type != "none"


def covered_context(metadata: RopeMetadata) -> int | None:
    """Return the tokens that the file says it covers: its context length, or what YaRN's factor
    makes of the original context where that is more."""
    context, scale = metadata.context_length, declared_scale(metadata)
    if not (context and scale and metadata.original_context and math.isfinite(scale)):
        return context
    if metadata.scaling_type == "yarn":
        return max(context, round(scale * metadata.original_context))
    return context


def reach_findings(
    metadata: RopeMetadata, arch: Architecture, *, context_tokens: int | None
) -> Iterator[Finding]:
    """Yield what is wrong with the reach of the file, and with `context_tokens` where given."""
    yield from _lengths(metadata)
    yield from _factor(metadata)
    try:
        kinds = layer_kinds(metadata, arch)
    except FileError:
        return
    if is_scaled(metadata):
        yield from _layers(metadata, arch, kinds)
    if "global" in kinds and arch.settings_act:
        yield from _base(metadata, arch)
        yield from _beyond(metadata, context_tokens)


def _lengths(metadata: RopeMetadata) -> Iterator[Finding]:
    """Compare the context length with the original one, and with what the factor makes of it."""
    context, original = metadata.context_length, metadata.original_context
    key = metadata.key("original_context")
    if not context or original is None or metadata.scaling_type not in ("yarn", "longrope"):
        return
    if original == 0:
        yield warning(
            "original-context-zero",
            key,
            f"{key} is 0: llama.cpp takes the context length; "
            "set the length the model was trained with",
        )
        return
    reached = covered_context(metadata) if is_scaled(metadata) else context
    if reached is not None and reached > context * _EXTENDED_RATIO:
        context_key = metadata.key("context_length")
        message = (
            f"a factor of {declared_scale(metadata):g} over {original} reaches {reached} tokens, "
            f"but {context_key} is {context}, where servers stop: raise it to {reached}"
        )
        if context <= original:
            yield warning("original-not-below-context", context_key, message)
        else:
            yield warning("context-below-factor", context_key, message)
    elif context <= original:
        yield warning(
            "original-not-below-context",
            key,
            f"{key} {original} is not below {metadata.key('context_length')} {context}: set it to "
            "the length the model was trained with",
        )


def _factor(metadata: RopeMetadata) -> Iterator[Finding]:
    """Check that the scaling covers the declared context."""
    context, original = metadata.context_length, metadata.original_context
    scale, scaled = declared_scale(metadata), is_scaled(metadata)
    if not context or not original or context <= original * _EXTENDED_RATIO:
        return
    if not scaled and not metadata.factor_tensors:
        yield warning(
            "context-raised-without-scaling",
            metadata.key("context_length"),
            f"the context is {context / original:.3g} times the original {original} and "
            "nothing is scaled: set a scaling, or restore the context length",
        )
    elif scaled and scale is not None and scale * original * _EXTENDED_RATIO < context:
        yield warning(
            "factor-below-context",
            metadata.key("factor"),
            f"a factor of {scale:g} over {original} reaches {scale * original:.0f} tokens, "
            f"not {context}: raise the factor to {context / original:.4g}",
        )


def _layers(
    metadata: RopeMetadata, arch: Architecture, kinds: tuple[LayerKind, ...]
) -> Iterator[Finding]:
    """Name the layers that the scaling leaves out, or acts on in vain."""
    key = metadata.key("scaling_type")
    scales_windows = arch.sliding is not None and arch.sliding.scale != "1"
    whole = kinds.count("global") if arch.settings_act else 0
    windows = kinds.count("sliding-window") if scales_windows else 0
    rest = f"raise {metadata.key('context_length')} alone"
    if not whole and windows:
        seen = f" of {metadata.sliding_window}" if metadata.sliding_window else ""
        yield warning(
            "window-scaled",
            key,
            f"the scaling acts on {windows} sliding-window layers alone, which see a window{seen} "
            f"tokens in any context, and makes them turn as they were not trained: remove it, and "
            f"{rest}",
        )
    elif not whole:
        yield warning(
            "scaling-mostly-inert",
            key,
            f"the scaling acts on none of {len(kinds)} layers: remove it, and {rest}",
        )
    elif 2 * (whole + windows) < len(kinds):
        yield info(
            "scaling-mostly-inert",
            key,
            f"the scaling acts on {whole + windows} of {len(kinds)} layers: the others use a "
            "sliding window or do not rotate, and need no scaling",
        )


def _base(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    """Find a base that is missing where 10000 is not the base of the model."""
    key = metadata.key(base_field(arch))
    if getattr(metadata, base_field(arch)) is not None:
        return
    usual = _USUAL_BASES.get(arch.name)
    scaled = is_scaled(metadata) or bool(metadata.factor_tensors)
    long = (metadata.context_length or 0) > _LONGEST_AT_10000 and not scaled
    if usual is not None:
        why = f"published {arch.name} models have {usual:g}"
    elif long:
        why = f"a context of {metadata.context_length} tokens is trained with a larger base"
    else:
        return
    yield warning(
        "base-missing",
        key,
        f"without {key} llama.cpp turns at base 10000, and {why}: set the base of the model",
    )


def _beyond(metadata: RopeMetadata, context_tokens: int | None) -> Iterator[Finding]:
    covered = covered_context(metadata)
    if not context_tokens or not covered or context_tokens <= covered * _EXTENDED_RATIO:
        return
    ratio = context_tokens / covered
    yield warning(
        "beyond-trained-context",
        metadata.key("context_length"),
        f"a context of {context_tokens} tokens is {ratio:.4g} times the {covered} that the file "
        f"covers: scale the file to {context_tokens} tokens, or stay within {covered}",
    )
