"""Contradictions and settings without effect in a file, each with what to do about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ggufrope.container.ggml import F32
from ggufrope.errors import FileError
from ggufrope.rope.architectures import Architecture, architecture, source, tables_with
from ggufrope.rope.attention import (
    attention_scale,
    idle_magnitude_reason,
    magnitude_acts,
    temperature,
)
from ggufrope.rope.factors import first_descent
from ggufrope.rope.findings import Finding, Severity, error, info, warning
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, SCALING_TYPES
from ggufrope.rope.layers import MAX_LAYERS
from ggufrope.rope.llamacpp import rotary_dimensions, sliding_dimensions, yarn_file_magnitude
from ggufrope.rope.reach import declared_scale, is_scaled, reach_findings
from ggufrope.rope.unread import dead_keys, near_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.rope.metadata import FactorTensor, RopeMetadata

__all__ = ["Finding", "Severity", "lint"]

_APPLIED = 1e-3
"""An attention factor this far from 1 is applied for a reason."""


def lint(metadata: RopeMetadata, *, context_tokens: int | None = None) -> tuple[Finding, ...]:
    """Return everything wrong with the declared settings, errors first.

    `context_tokens` is a context that the file is to be used in: it may be longer than the file
    covers.
    """
    arch = architecture(metadata.architecture)
    basic = (_known, _types, _numbers, _lengths, _scaling)
    checks = (*basic, _dead_keys, _unread_keys, _factor_tensors, _attention)
    found = [finding for check in checks for finding in check(metadata, arch)]
    found += reach_findings(metadata, arch, context_tokens=context_tokens)
    order = ("error", "warning", "info")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _known(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    if arch.known:
        return
    others = [f"llama.cpp {each.commit[:9]}" for each in tables_with(arch.name)]
    newer = f" (that of {', '.join(others)} has it)" if others else ""
    yield warning(
        "unknown-architecture",
        "general.architecture",
        f"{arch.name} is not in the table of llama.cpp {source().commit[:9]}{newer}: "
        "only the rules that all architectures share are applied, and no factor tensors are "
        "written; measure with `ggufrope probe`, or name a table that has it",
    )


def _types(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    for wrong in metadata.mistyped:
        found, expected = wrong.found.name.lower(), wrong.expected.name.lower()
        yield error(
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
    except FileError as refusal:
        yield error("rotary-dimensions", metadata.n_rot_key, str(refusal))
        return
    try:
        if arch.sliding is not None:
            sliding_dimensions(metadata, arch)
    except FileError as refusal:
        yield error("rotary-dimensions", metadata.key("dimension_count_swa"), str(refusal))


def _lengths(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    key = metadata.key("context_length")
    if not metadata.context_length:
        missing = f"{key} is missing: llama.cpp refuses the file"
        zero = f"{key} is 0: set the length the model was trained with"
        yield error("no-context-length", key, missing if metadata.context_length is None else zero)
    if metadata.block_count is not None and not 0 < metadata.block_count <= MAX_LAYERS:
        key = metadata.key("block_count")
        yield error(
            "layer-count",
            key,
            f"{key} is {metadata.block_count}, on which llama.cpp aborts: expected 1 to "
            f"{MAX_LAYERS} layers",
        )


def _scaling(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    kind = metadata.scaling_type
    key = metadata.key("scaling_type")
    if kind is not None and kind not in SCALING_TYPES:
        yield error(
            "unknown-scaling-type",
            key,
            f"{key} is {kind!r}, on which llama.cpp aborts: set {', '.join(SCALING_TYPES)}",
        )
        return
    yield from _factor_of_type(metadata)
    if kind == "yarn" and metadata.original_context is None:
        yield warning(
            "yarn-without-original-context",
            metadata.key("original_context"),
            f"YaRN takes {metadata.key('context_length')} for the original context: set "
            f"{metadata.key('original_context')} to the length the model was trained with",
        )


def _factor_of_type(metadata: RopeMetadata) -> Iterator[Finding]:
    """Check the scaling factor against the scaling type."""
    kind, factor = metadata.scaling_type, metadata.factor
    scale = declared_scale(metadata)
    if factor is not None and metadata.scale_linear is not None:
        yield warning(
            "scale-linear-beside-factor",
            metadata.key("scale_linear"),
            f"{metadata.key('scale_linear')} has no effect beside {metadata.key('factor')}: "
            "remove it",
        )
    if kind == "none" and scale not in (None, 0, 1):
        yield warning(
            "factor-without-scaling",
            metadata.key("factor"),
            f"a factor of {scale:g} has no effect with scaling type none: set the type, or remove "
            "the factor",
        )
    if kind != "none" and scale is not None and 0 < scale < 1:
        key = metadata.key("factor" if metadata.factor is not None else "scale_linear")
        yield warning(
            "factor-below-one",
            key,
            f"{key} is {scale:g}: a factor below 1 shortens the context; a factor is how many "
            f"times further the model is to reach, so {1 / scale:.4g} may be meant",
        )
    if kind == "yarn" and scale in (None, 0, 1):
        yield warning(
            "yarn-without-factor",
            metadata.key("factor"),
            f"YaRN without a factor does nothing: set {metadata.key('factor')}",
        )
    if kind == "longrope" and scale not in (None, 0, 1):
        yield warning(
            "longrope-with-factor",
            metadata.key("factor"),
            f"llama.cpp divides all frequencies by {scale:g} on top of the long factors: "
            f"remove {metadata.key('factor')}",
        )
    if kind is None and scale not in (None, 0, 1):
        yield info(
            "implicit-linear",
            metadata.key("scaling_type"),
            f"without {metadata.key('scaling_type')} llama.cpp scales linearly by {scale:g}: "
            "set the type to say so",
        )


def _dead_keys(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    if not arch.known:
        return
    for dead in dead_keys(metadata, arch):
        key = metadata.key(dead.field)
        message = f"llama.cpp does not read {key} {dead.value:g} for {arch.name}: {dead.remedy}"
        if dead.harmless:
            yield info("dead-key", key, message)
        else:
            yield warning("dead-key", key, message)
    for field in ("yarn_log_multiplier", "alpha"):
        if getattr(metadata, field) is not None and field not in arch.reads:
            key = metadata.key(field)
            yield info("dead-key", key, f"llama.cpp does not read {key} for {arch.name}: remove it")
    swa = metadata.freq_base_swa is not None
    if swa and not (arch.sliding is not None and arch.sliding.reads_base):
        key = metadata.key("freq_base_swa")
        yield info("dead-key", key, f"llama.cpp does not use {key} for {arch.name}: remove it")
    if metadata.attn_factor not in (None, 1) and not magnitude_acts(metadata, arch):
        key = metadata.key("attn_factor")
        yield info("dead-key", key, f"{key} has no effect: {idle_magnitude_reason(arch)}")


def _unread_keys(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    """Name keys about positions that no llama.cpp reads, with those they may stand for."""
    for unread in metadata.unread:
        near = " or ".join(near_keys(unread.key, metadata.architecture))
        yield warning(
            "unknown-key",
            unread.key,
            f"llama.cpp does not know {unread.key} ({unread.value}): did you mean {near}? "
            "Set that, or remove the key",
        )


def _factor_tensors(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    kind = metadata.scaling_type or "linear"
    for tensor in metadata.factor_tensors:
        if arch.known and tensor.name not in arch.tensors:
            yield error(
                "refused-factor-tensor",
                tensor.name,
                f"llama.cpp loads no {tensor.name} for {arch.name} and refuses the file: remove it",
            )
        elif not arch.loads(tensor.name, kind):
            wanted = "another type than longrope" if tensor.name == ROPE_FREQS else "longrope"
            yield error(
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
        yield warning(
            "shadowed-factors",
            ROPE_FREQS,
            f"{ROPE_FREQS} is always preferred: {', '.join(sorted(by_length))} has no effect; "
            "remove one of them",
        )
    if len(by_length) == 1:
        missing = ROPE_FACTORS_SHORT if ROPE_FACTORS_LONG in by_length else ROPE_FACTORS_LONG
        side = "up to" if missing == ROPE_FACTORS_SHORT else "above"
        yield warning(
            "lone-factors",
            missing,
            f"{missing} is missing: {side} the original context no factors are applied; add it",
        )
    if metadata.scaling_type == "longrope" and not names:
        yield warning(
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
        yield error(
            "factor-length",
            tensor.name,
            f"{tensor.name} has {tensor.length} values: llama.cpp loads only {pairs}, "
            "one per pair of rotary dimensions",
        )
    try:
        sliding = sliding_dimensions(metadata, arch) // 2 if arch.sliding is not None else 0
    except FileError:
        sliding = 0
    if arch.factors_on == "all" and sliding > tensor.length == pairs:
        yield error(
            "factor-length",
            tensor.name,
            f"{tensor.name} has {tensor.length} values, and the sliding-window layers rotate "
            f"{sliding} pairs: llama.cpp aborts",
        )
    if tensor.type != F32:
        yield error(
            "factor-type",
            tensor.name,
            f"{tensor.name} is of type {tensor.type_name}: llama.cpp needs F32 factors; "
            "write it again as F32",
        )
    if arch.factors_on == "none":
        yield warning(
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
        yield error(
            "factor-value",
            tensor.name,
            f"{tensor.name}[{bad}] is {values[bad]:g}: expected a finite number above 0",
        )
        return
    descent = first_descent(values)
    if descent is not None:
        yield warning(
            "factor-descent",
            tensor.name,
            f"{tensor.name} decreases at index {descent}: factors should not decrease from fast to "
            "slow pairs",
        )


def _attention(metadata: RopeMetadata, arch: Architecture) -> Iterator[Finding]:
    """Check what multiplies attention scores."""
    try:
        temperature(metadata, arch, "global")
    except FileError as refusal:
        yield error("attention-temperature", metadata.key("temperature_scale"), str(refusal))
    if not arch.settings_act or not is_scaled(metadata):
        return
    scale = declared_scale(metadata) or 1.0
    if not (math.isfinite(scale) and scale > 0):
        return
    if metadata.scaling_type == "yarn":
        yield from _attention_factor_twice(metadata, arch, scale)
    elif arch.scores_by_factor:
        multiplied = attention_scale(metadata, arch, attn_factor=1.0, freq_scale=1 / scale)
        yield warning(
            "attention-scale-by-factor",
            metadata.key("factor"),
            f"{arch.name} multiplies attention scores by {multiplied:.4g} for a factor of "
            f"{scale:g}, also where the scaling is not YaRN: scale by YaRN, as the model was made",
        )


def _attention_factor_twice(
    metadata: RopeMetadata, arch: Architecture, scale: float
) -> Iterator[Finding]:
    """Find an attn_factor that repeats what llama.cpp applies for YaRN by itself."""
    attn = metadata.attn_factor
    if attn is None or not magnitude_acts(metadata, arch):
        return
    try:
        implied = yarn_file_magnitude(metadata, arch, scale)
    except FileError:
        return
    if abs(implied - 1) > _APPLIED and abs(attn - implied) < 0.01 * implied:
        key = metadata.key("attn_factor")
        yield warning(
            "attention-factor-twice",
            key,
            f"{key} {attn:.4g} is the attention factor that llama.cpp applies for YaRN by itself, "
            "so it acts twice: remove it",
        )


def _bad_number(metadata: RopeMetadata, field: str, value: float, bound: str) -> Finding:
    key = metadata.key(field)
    return error("bad-number", key, f"{key} is {value:g}: set a finite number {bound}")
