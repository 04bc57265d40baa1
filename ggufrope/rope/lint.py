"""Contradictions and settings without effect in a file, each with what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.container.ggml import F32
from ggufrope.errors import FileError
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.effective import LLAMA_FLAGS, YARN_PARAMETERS
from ggufrope.rope.factors import first_descent
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, SCALING_TYPES
from ggufrope.rope.layers import layer_kinds
from ggufrope.rope.llamacpp import rotary_dimensions, sliding_dimensions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.rope.metadata import FactorTensor, RopeMetadata

Severity: TypeAlias = Literal["error", "warning", "info"]

_EXTENDED_RATIO = 1.001
"""A context this much longer than what the scaling covers is more than a rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or has no effect.

    An error keeps llama.cpp from loading the file or makes the result nonsense. A warning changes
    quality or is not what it seems. An info is harmless.
    """

    code: str
    severity: Severity
    key: str
    message: str


def lint(metadata: RopeMetadata) -> tuple[Finding, ...]:
    """Return everything wrong with the declared settings, errors first."""
    try:
        arch = architecture(metadata.architecture)
    except FileError as error:
        return (_error("unknown-architecture", "general.architecture", str(error)),)
    checks = (_types, _numbers, _lengths, _scaling, _dead_keys, _factor_tensors, _reach, _attention)
    found = [finding for check in checks for finding in check(metadata, arch)]
    order = ("error", "warning", "info")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _types(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    for wrong in metadata.mistyped:
        found, expected = wrong.found.name.lower(), wrong.expected.name.lower()
        yield _error(
            "wrong-type",
            wrong.key,
            f"{wrong.key} is stored as {found}: llama.cpp reads {expected} and refuses the file; "
            "set it again with the right type",
        )


def _numbers(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    for field in ("freq_base", "freq_base_swa"):
        value = getattr(metadata, field)
        if value is not None and not (math.isfinite(value) and value > 1):
            yield _bad_number(metadata, field, value, "above 1")
    for field in ("factor", "scale_linear"):
        value = getattr(metadata, field)
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield _bad_number(metadata, field, value, "above 0")
    if metadata.attn_factor is not None and not metadata.attn_factor > 0:
        yield _bad_number(metadata, "attn_factor", metadata.attn_factor, "above 0")
    try:
        rotary_dimensions(metadata, arch)
    except FileError as error:
        yield _error("rotary-dimensions", metadata.n_rot_key, str(error))
        return
    try:
        if arch.sliding is not None:
            sliding_dimensions(metadata, arch)
    except FileError as error:
        yield _error("rotary-dimensions", metadata.key("dimension_count_swa"), str(error))


def _lengths(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    key = metadata.key("context_length")
    if not metadata.context_length:
        missing = f"{key} is missing: llama.cpp refuses the file"
        zero = f"{key} is 0: set the length the model was trained with"
        yield _error("no-context-length", key, missing if metadata.context_length is None else zero)
        return
    original = metadata.original_context
    if original is not None and metadata.scaling_type in ("yarn", "longrope"):
        ratio = metadata.context_length / original if original else math.inf
        if original == 0:
            yield _warning(
                "original-context-zero",
                metadata.key("original_context"),
                f"{metadata.key('original_context')} is 0: llama.cpp takes the context length; "
                "set the length the model was trained with",
            )
        elif ratio <= 1:
            yield _warning(
                "original-not-below-context",
                metadata.key("original_context"),
                f"{metadata.key('original_context')} {original} is not below {key} "
                f"{metadata.context_length}: set it to the length the model was trained with",
            )


def _scaling(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    kind = metadata.scaling_type
    key = metadata.key("scaling_type")
    if kind is not None and kind not in SCALING_TYPES:
        yield _error(
            "unknown-scaling-type",
            key,
            f"{key} is {kind!r}, on which llama.cpp aborts: set {', '.join(SCALING_TYPES)}",
        )
        return
    yield from _factor_of_type(metadata)
    if kind == "yarn" and metadata.original_context is None:
        yield _warning(
            "yarn-without-original-context",
            metadata.key("original_context"),
            f"YaRN takes {metadata.key('context_length')} for the original context: set "
            f"{metadata.key('original_context')} to the length the model was trained with",
        )


def _factor_of_type(metadata: RopeMetadata) -> Iterator[Finding]:
    """Check the scaling factor against the scaling type."""
    kind, factor = metadata.scaling_type, metadata.factor
    scale = _scale(metadata)
    if factor is not None and metadata.scale_linear is not None:
        yield _warning(
            "scale-linear-beside-factor",
            metadata.key("scale_linear"),
            f"{metadata.key('scale_linear')} has no effect beside {metadata.key('factor')}: "
            "remove it",
        )
    if kind == "none" and scale not in (None, 0, 1):
        yield _warning(
            "factor-without-scaling",
            metadata.key("factor"),
            f"a factor of {scale:g} has no effect with scaling type none: set the type, or remove "
            "the factor",
        )
    if kind == "yarn" and scale in (None, 0, 1):
        yield _warning(
            "yarn-without-factor",
            metadata.key("factor"),
            f"YaRN without a factor does nothing: set {metadata.key('factor')}",
        )
    if kind == "longrope" and scale not in (None, 0, 1):
        yield _warning(
            "longrope-with-factor",
            metadata.key("factor"),
            f"llama.cpp divides all frequencies by {scale:g} on top of the long factors: "
            f"remove {metadata.key('factor')}",
        )
    if kind is None and scale not in (None, 0, 1):
        yield _info(
            "implicit-linear",
            metadata.key("scaling_type"),
            f"without {metadata.key('scaling_type')} llama.cpp scales linearly by {scale:g}: "
            "set the type to say so",
        )


def _dead_keys(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    for field in YARN_PARAMETERS:
        value = getattr(metadata, field)
        if value is None or field in arch.reads:
            continue
        bake = ", or bake it into factors" if arch.loads_factors else ""
        flag = LLAMA_FLAGS[field]
        yield _warning(
            "dead-key",
            metadata.key(field),
            f"llama.cpp does not read {metadata.key(field)} for {arch.name}: "
            f"pass llama.cpp's {flag} {value:g} at run time{bake}",
        )
    for field in ("yarn_log_multiplier", "alpha"):
        if getattr(metadata, field) is not None and field not in arch.reads:
            key = metadata.key(field)
            yield _info(
                "dead-key", key, f"llama.cpp does not read {key} for {arch.name}: remove it"
            )
    swa = metadata.freq_base_swa is not None
    if swa and not (arch.sliding is not None and arch.sliding.reads_base):
        key = metadata.key("freq_base_swa")
        yield _info("dead-key", key, f"llama.cpp does not use {key} for {arch.name}: remove it")


def _factor_tensors(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    kind = metadata.scaling_type or "linear"
    for tensor in metadata.factor_tensors:
        if tensor.name not in arch.tensors:
            yield _error(
                "refused-factor-tensor",
                tensor.name,
                f"llama.cpp loads no {tensor.name} for {arch.name} and refuses the file: remove it",
            )
        elif not arch.loads(tensor.name, kind):
            wanted = "another type than longrope" if tensor.name == ROPE_FREQS else "longrope"
            yield _error(
                "refused-factor-tensor",
                tensor.name,
                f"{arch.name} loads {tensor.name} only with {wanted}: "
                f"set {metadata.key('scaling_type')}, or remove the tensor",
            )
        else:
            yield from _factor_layout(tensor, metadata, arch)
            yield from _factor_values(tensor)
    yield from _factor_set(metadata)


def _factor_set(metadata: RopeMetadata) -> Iterator[Finding]:
    """Check which factor tensors are there together."""
    names = {tensor.name for tensor in metadata.factor_tensors}
    by_length = names & {ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT}
    if ROPE_FREQS in names and by_length:
        yield _warning(
            "shadowed-factors",
            ROPE_FREQS,
            f"{ROPE_FREQS} is always preferred: {', '.join(sorted(by_length))} has no effect; "
            "remove one of them",
        )
    if len(by_length) == 1:
        missing = ROPE_FACTORS_SHORT if ROPE_FACTORS_LONG in by_length else ROPE_FACTORS_LONG
        side = "up to" if missing == ROPE_FACTORS_SHORT else "above"
        yield _warning(
            "lone-factors",
            missing,
            f"{missing} is missing: {side} the original context no factors are applied; add it",
        )
    if metadata.scaling_type == "longrope" and not names:
        yield _warning(
            "longrope-without-factors",
            metadata.key("scaling_type"),
            "scaling type longrope does nothing without factor tensors: add them",
        )


def _factor_layout(
    tensor: FactorTensor, metadata: RopeMetadata, arch: Architecture
) -> Iterator[Finding]:
    try:
        pairs = rotary_dimensions(metadata, arch) // 2
    except FileError:
        return
    if tensor.length != pairs:
        yield _error(
            "factor-length",
            tensor.name,
            f"{tensor.name} has {tensor.length} values: llama.cpp loads only {pairs}, "
            "one per pair of rotary dimensions",
        )
    if tensor.type != F32:
        yield _error(
            "factor-type",
            tensor.name,
            f"{tensor.name} is of type {tensor.type_name}: llama.cpp needs F32 factors; "
            "write it again as F32",
        )
    if arch.factors_on == "none":
        yield _warning(
            "unused-factor-tensor",
            tensor.name,
            f"llama.cpp loads {tensor.name} for {arch.name} but its graph never applies it: "
            "scale by metadata instead",
        )


def _factor_values(tensor: FactorTensor) -> Iterator[Finding]:
    if tensor.values is None:
        return
    values = tensor.values
    bad = next((i for i, v in enumerate(values) if not (math.isfinite(v) and v > 0)), None)
    if bad is not None:
        yield _error(
            "factor-value",
            tensor.name,
            f"{tensor.name}[{bad}] is {values[bad]:g}: expected a finite number above 0",
        )
        return
    descent = first_descent(values)
    if descent is not None:
        yield _warning(
            "factor-descent",
            tensor.name,
            f"{tensor.name} decreases at index {descent}: factors should not decrease from fast to "
            "slow pairs",
        )


def _reach(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    """Check that the scaling covers the declared context, and acts on most layers."""
    context, original = metadata.context_length, metadata.original_context
    scale = _scale(metadata)
    scaled = scale not in (None, 0, 1) and metadata.scaling_type != "none"
    if context and original and context > original * _EXTENDED_RATIO:
        if not scaled and not metadata.factor_tensors:
            yield _warning(
                "context-raised-without-scaling",
                metadata.key("context_length"),
                f"the context is {context / original:.3g} times the original {original} and "
                "nothing is scaled: set a scaling, or restore the context length",
            )
        elif scaled and scale is not None and scale * original * _EXTENDED_RATIO < context:
            yield _warning(
                "factor-below-context",
                metadata.key("factor"),
                f"a factor of {scale:g} over {original} reaches {scale * original:.0f} tokens, "
                f"not {context}: raise the factor to {context / original:.4g}",
            )
    if not scaled:
        return
    try:
        kinds = layer_kinds(metadata, arch)
    except FileError:
        return
    fixed = arch.sliding is not None and arch.sliding.scale == "1"
    inert = sum(
        kind in ("no-rope", "recurrent") or (kind == "sliding-window" and fixed) for kind in kinds
    )
    if 2 * inert > len(kinds):
        yield _warning(
            "scaling-mostly-inert",
            metadata.key("scaling_type"),
            f"the scaling acts on {len(kinds) - inert} of {len(kinds)} layers: the others use a "
            "sliding window or do not rotate, and need no scaling",
        )


def _attention(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    attn, scale = metadata.attn_factor, metadata.factor
    if attn is None or attn == 1 or metadata.scaling_type != "yarn" or not scale or scale <= 1:
        return
    implied = 1 + 0.1 * math.log(scale)
    if abs(attn - implied) < 0.01 * implied:
        yield _warning(
            "attention-factor-twice",
            metadata.key("attn_factor"),
            f"{metadata.key('attn_factor')} {attn:.4g} is the attention factor that llama.cpp "
            "applies for YaRN by itself, so it acts twice: remove it",
        )


def _scale(metadata: RopeMetadata) -> float | None:
    """The declared scaling factor: `factor`, else the old `scale_linear`."""
    return metadata.scale_linear if metadata.factor is None else metadata.factor


def _bad_number(metadata: RopeMetadata, field: str, value: float, bound: str) -> Finding:
    key = metadata.key(field)
    return _error("bad-number", key, f"{key} is {value:g}: set a finite number {bound}")


def _error(code: str, key: str, message: str) -> Finding:
    return Finding(code=code, severity="error", key=key, message=message)


def _warning(code: str, key: str, message: str) -> Finding:
    return Finding(code=code, severity="warning", key=key, message=message)


def _info(code: str, key: str, message: str) -> Finding:
    return Finding(code=code, severity="info", key=key, message=message)
