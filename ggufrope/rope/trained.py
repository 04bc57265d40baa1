"""What a model was trained with: the context it knows, and the rotation that it has there.

A file does not say this in one place. A linear factor, YaRN keys or factor tensors may be what the
model was trained with (Gemma 3, DeepSeek, Phi), and then its trained context is the one that they
reach. Or they were put there by a patch of ours, which leaves a record: keys of our own under
`ggufrope.rope.`, with the trained context, base, scaling keys and factors as they were before.
llama.cpp and other readers of GGUF pass over keys that they do not know. The next patch starts from
the record, and takes it with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggufrope.container.types import ArrayValue, TypedValue, ValueType
from ggufrope.rope.keys import FACTOR_TENSORS, KEYS, ROPE_FREQS, SCALING_FIELDS
from ggufrope.rope.metadata import FactorTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.container.types import Header, KeyValue, Scalar
    from ggufrope.rope.metadata import RopeMetadata

PREFIX = "ggufrope.rope."
"""What our own keys begin with."""

TRAINED_CONTEXT = f"{PREFIX}trained_context_length"

_MOST_TOKENS = 2**32 - 1
"""What a context length holds."""

STATE_FIELDS = (
    "freq_base",
    "freq_base_swa",
    "compress_freq_base",
    *SCALING_FIELDS,
    "yarn_log_multiplier",
)
"""The fields of a file that a scaling may change, besides the context length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedContext:
    """The context a model was trained for, in tokens.

    `original` is the context that its own scaling factor starts from: the same where there is no
    factor. `source` says in words where both come from.
    """

    tokens: int
    original: int
    source: str


def trained_state(metadata: RopeMetadata) -> RopeMetadata:
    """Return what the file declared before our own patches, or what it declares where there were
    none."""
    return metadata if metadata.trained is None else metadata.trained


def trained_context(metadata: RopeMetadata) -> TrainedContext | None:
    """Return the context that a further scaling of this file starts from, None where it declares
    none.

    YaRN reaches its factor times its original context. A linear factor reaches the declared
    context, and starts from that share of it. Factor tensors reach the declared context, and so
    does a model that is not scaled.
    """
    state = trained_state(metadata)
    found = _inferred(state)
    if found is None or metadata.trained is None:
        return found
    return replace(found, source=f"{TRAINED_CONTEXT}, which an earlier patch left")


def _inferred(metadata: RopeMetadata) -> TrainedContext | None:
    context, factor = metadata.context_length, declared_factor(metadata)
    key = metadata.key("context_length")
    if not context:
        return None
    if metadata.scaling_type == "yarn" and factor > 1:
        original = metadata.original_context or context
        reach = round(min(original * factor, _MOST_TOKENS))
        source = f"YaRN's factor {factor:g} times the original {original}"
        if reach < context:
            source += f", which is less than {key} {context}"
        return TrainedContext(tokens=max(reach, 1), original=original, source=source)
    if factor > 1:
        original = max(round(context / factor), 1)
        source = f"{key}, which linear {factor:g} reaches from {original}"
        return TrainedContext(tokens=context, original=original, source=source)
    tensor = next((each.name for each in metadata.factor_tensors), None)
    source = key if tensor is None else f"{key}, which {tensor} reaches"
    return TrainedContext(tokens=context, original=context, source=source)


def declared_factor(metadata: RopeMetadata) -> float:
    """Return the factor that acts: 1 where there is none, or none that llama.cpp would load."""
    if metadata.scaling_type == "none":
        return 1.0
    declared = metadata.scale_linear if metadata.factor is None else metadata.factor
    return declared if declared and math.isfinite(declared) and declared > 0 else 1.0


def declared_scaling(metadata: RopeMetadata) -> str | None:
    """Return in words how the file is scaled, None where it is not."""
    factor = declared_factor(metadata)
    kind = metadata.scaling_type or "linear"
    parts = []
    if factor != 1 and kind in ("linear", "yarn"):
        over = f" over {metadata.original_context}" if metadata.original_context else ""
        parts.append(f"{'YaRN' if kind == 'yarn' else kind} {factor:g}{over}")
    elif factor != 1 and kind == "longrope":
        parts.append(f"factor {factor:g}")
    parts += [tensor.name.removesuffix(".weight") for tensor in metadata.factor_tensors]
    if metadata.attn_factor not in (None, 1):
        parts.append(f"attn_factor {metadata.attn_factor:g}")
    if metadata.yarn_log_multiplier:
        parts.append(f"yarn_log_multiplier {metadata.yarn_log_multiplier:g}")
    return ", ".join(parts) or None


def scaling_in_words(metadata: RopeMetadata) -> str | None:
    """Return how the file is scaled, and a base that a patch of ours raised; None for neither."""
    scaled = declared_scaling(metadata)
    before = None if metadata.trained is None else metadata.trained.freq_base
    if before is None or metadata.freq_base in (None, before):
        return scaled
    base = f"base {metadata.freq_base:g} (trained: {before:g})"
    return base if scaled is None else f"{scaled}, {base}"


def published_original(metadata: RopeMetadata) -> int | None:
    """Return the context that the authors give YaRN over, where files declare another; else None.

    Qwen3's context length of 40960 is 32768 and room for an answer; its model cards scale 32768.
    """
    qwen3 = metadata.architecture in ("qwen3", "qwen3moe")
    if qwen3 and metadata.context_length == 40960 and declared_scaling(metadata) is None:
        return 32768
    return None


def record_keys(state: RopeMetadata, context_tokens: int) -> dict[str, TypedValue]:
    """Return the keys that record `state`, trained for `context_tokens`."""
    keys = {TRAINED_CONTEXT: TypedValue(type=ValueType.UINT32, value=context_tokens)}
    for field in STATE_FIELDS:
        value = getattr(state, field)
        if value is not None:
            keys[_field_key(field)] = TypedValue(type=KEYS[field].type, value=value)
    for tensor in state.factor_tensors:
        if tensor.values is not None:
            keys[_tensor_key(tensor.name)] = TypedValue(
                type=ValueType.ARRAY, value=tensor.values, item_type=ValueType.FLOAT32
            )
    return keys


def is_record(key: str) -> bool:
    """Return whether `key` is one of our own."""
    return key.startswith(f"{PREFIX}trained_")


def record_of(metadata: RopeMetadata) -> tuple[str, ...]:
    """Return the names of the keys that the record in the file consists of."""
    if metadata.trained is None:
        return ()
    return tuple(record_keys(metadata.trained, metadata.trained.context_length or 0))


def read_record(header: Header, metadata: RopeMetadata) -> RopeMetadata | None:
    """Return the state that our own keys in `header` record, None where there is no record or it is
    not one that we would have written."""
    context = _scalar(header.find(TRAINED_CONTEXT))
    if not isinstance(context, int) or isinstance(context, bool):
        return None
    if not 0 < context <= _MOST_TOKENS:
        return None
    changes: dict[str, Any] = {
        field: _state_value(field, _scalar(header.find(_field_key(field))))
        for field in STATE_FIELDS
    }
    tensors = []
    for name in FACTOR_TENSORS:
        values = _numbers(header.find(_tensor_key(name)))
        if values:
            tensors.append(_factor_tensor(name, values))
    return replace(
        metadata,
        context_length=context,
        factor_tensors=tuple(tensors),
        trained=None,
        **changes,
    )


def with_record(metadata: RopeMetadata, keys: Mapping[str, TypedValue | None]) -> RopeMetadata:
    """Return `metadata` with the record that `keys` write, or without one where they remove it."""
    if not any(map(is_record, keys)):
        return metadata
    context = keys.get(TRAINED_CONTEXT)
    if context is None:
        return replace(metadata, trained=None)
    changes: dict[str, Any] = {"context_length": context.value}
    for field in STATE_FIELDS:
        value = keys.get(_field_key(field))
        changes[field] = None if value is None else value.value
    tensors = []
    for name in FACTOR_TENSORS:
        found = keys.get(_tensor_key(name))
        if found is not None and isinstance(found.value, tuple):
            tensors.append(_factor_tensor(name, tuple(map(float, found.value))))
    state = replace(
        metadata,
        factor_tensors=tuple(tensors),
        trained=None,
        **changes,
    )
    return replace(metadata, trained=state)


def _factor_tensor(name: str, values: tuple[float, ...]) -> FactorTensor:
    return FactorTensor(name=name, length=len(values), values=values)


def _field_key(field: str) -> str:
    suffix = KEYS[field].suffix.removeprefix("rope.").replace(".", "_")
    return f"{PREFIX}trained_{suffix}"


def _tensor_key(name: str) -> str:
    words = "rope_freqs" if name == ROPE_FREQS else name.removesuffix(".weight")
    return f"{PREFIX}trained_{words.removeprefix('rope_')}"


def _scalar(found: KeyValue | None) -> Scalar | None:
    if found is None or isinstance(found.value, ArrayValue):
        return None
    return found.value


def _state_value(field: str, value: Scalar | None) -> Scalar | None:
    """The value where it has the type of the field, else None: the record is not trusted."""
    kind = KEYS[field].type
    if kind is ValueType.STRING:
        return value if isinstance(value, str) else None
    if isinstance(value, bool | str) or value is None:
        return None
    if kind is ValueType.UINT32:
        whole = isinstance(value, int) and 0 <= value <= _MOST_TOKENS
        return value if whole else None
    return float(value) if math.isfinite(value) else None


def _numbers(found: KeyValue | None) -> tuple[float, ...] | None:
    if found is None or not isinstance(found.value, ArrayValue) or found.value.items is None:
        return None
    items = found.value.items
    if any(isinstance(item, bool | str) for item in items):
        return None
    return tuple(map(float, items))
