"""What a GGUF file declares about positions, and nothing about what that means.

Every field is the value of one key (`keys.KEYS` names it), or None where the key is absent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ggufrope.container.ggml import F32, TYPES
from ggufrope.container.types import ArrayValue, Header, KeyValue, Scalar, ValueType
from ggufrope.errors import MalformedError
from ggufrope.rope.keys import FACTOR_TENSORS, KEYS, KeySpec, key_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PerLayer: TypeAlias = int | tuple[int, ...]
"""One number for all layers, or one per layer."""

_OTHER_SUBJECTS = frozenset(
    {"general", "tokenizer", "split", "quantize", "clip", "ggufrope", "vision", "audio"}
)
"""Parts of the names of keys that are about other things than the positions of the text."""
_LONGEST_SHOWN = 60
"""Characters of a string that are kept of a key that nothing reads."""

_INTEGERS = {
    ValueType.UINT8,
    ValueType.INT8,
    ValueType.UINT16,
    ValueType.INT16,
    ValueType.UINT32,
    ValueType.INT32,
    ValueType.UINT64,
    ValueType.INT64,
}
_FLOATS = {ValueType.FLOAT32, ValueType.FLOAT64}
_MAX_TEXT = 256
"""Characters of a positional setting, far beyond the longest name of an architecture."""
_LAYER_ITEMS = {ValueType.BOOL, ValueType.INT32, ValueType.UINT32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistyped:
    """A key whose value has another type than llama.cpp reads there."""

    key: str
    found: ValueType
    expected: ValueType


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadKey:
    """A key about positions under a name that no llama.cpp reads; `value` in words for an array."""

    key: str
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorTensor:
    """A factor tensor of the file: its `length`, and its `values` where they were read.

    `type` is its ggml type; llama.cpp rotates with F32 factors alone.
    """

    name: str
    length: int
    values: tuple[float, ...] | None = None
    type: int = F32

    @property
    def type_name(self) -> str:
        """The ggml type by name, or by number where it is unknown."""
        known = TYPES.get(self.type)
        return str(self.type) if known is None else known.name


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeMetadata:
    """The declared settings of one model. Lengths are tokens, counts are layers or dimensions.

    `trained` is what an earlier patch of ours recorded: the settings as they were before it, with
    the trained context as `context_length`.
    """

    architecture: str
    context_length: int | None = None
    block_count: int | None = None
    nextn_predict_layers: int | None = None
    embedding_length: int | None = None
    head_count: PerLayer | None = None
    head_count_kv: PerLayer | None = None
    key_length: int | None = None
    value_length: int | None = None
    key_length_mla: int | None = None
    value_length_mla: int | None = None
    key_length_swa: int | None = None
    value_length_swa: int | None = None
    kv_lora_rank: int | None = None
    expert_count: int | None = None
    leading_dense_blocks: int | None = None
    temperature_scale: float | None = None
    temperature_length: int | None = None
    compress_ratios: PerLayer | None = None
    compress_freq_base: float | None = None
    sliding_window: int | None = None
    sliding_window_pattern: PerLayer | None = None
    shared_kv_layers: int | None = None
    full_attention_interval: int | None = None
    recurrent_layers: PerLayer | None = None
    causal: bool | None = None
    pooling_type: int | None = None
    rope_pattern: PerLayer | None = None
    dimension_count: int | None = None
    dimension_count_swa: int | None = None
    dimension_sections: PerLayer | None = None
    freq_base: float | None = None
    freq_base_swa: float | None = None
    scaling_type: str | None = None
    factor: float | None = None
    scale_linear: float | None = None
    original_context: int | None = None
    attn_factor: float | None = None
    finetuned: bool | None = None
    alpha: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_log_multiplier: float | None = None
    factor_tensors: tuple[FactorTensor, ...] = ()
    mistyped: tuple[Mistyped, ...] = ()
    unread: tuple[UnreadKey, ...] = ()
    trained: RopeMetadata | None = None

    def key(self, field: str) -> str:
        """The GGUF key that `field` is read from."""
        return key_name(self.architecture, field)

    def tensor(self, name: str) -> FactorTensor | None:
        """The factor tensor named `name`, or None where the file has none."""
        return next((tensor for tensor in self.factor_tensors if tensor.name == name), None)

    @property
    def head_size(self) -> int | None:
        """Dimensions of a key head: `key_length`, else embedding length over head count."""
        if self.key_length is not None:
            return self.key_length
        heads = first_layer(self.head_count)
        if not heads or self.embedding_length is None:
            return None
        return self.embedding_length // heads

    @property
    def n_rot(self) -> int | None:
        """Rotary dimensions of a head: `dimension_count`, else the whole head."""
        return self.head_size if self.dimension_count is None else self.dimension_count

    @property
    def n_rot_key(self) -> str:
        """The GGUF key that decides `n_rot`, for messages."""
        decides = {"dimension_count": self.dimension_count, "key_length": self.key_length}
        found = next((field for field, value in decides.items() if value is not None), None)
        default = "dimension_count" if self.n_rot is None else "embedding_length"
        return self.key(found or default)


def read_metadata(
    header: Header, factor_tensors: Mapping[str, Sequence[float]] | None = None
) -> RopeMetadata:
    """Read the positional settings that `header` declares.

    `factor_tensors` holds the values of the factor tensors by name, where the caller read them.
    Raises MalformedError where the architecture is missing, a key holds what cannot be its value,
    or a factor tensor has other than as many values as its shape says. A number of another width
    or kind is accepted and noted in `mistyped`.
    """
    architecture = header.architecture
    if architecture is None:
        raise MalformedError("general.architecture is missing or no string: not a model file")
    if len(architecture) > _MAX_TEXT:
        raise MalformedError(
            f"general.architecture has {len(architecture)} characters, expected a name of at most "
            f"{_MAX_TEXT}: not a model file"
        )
    fields: dict[str, Any] = {}
    mistyped: list[Mistyped] = []
    for field, spec in KEYS.items():
        found = header.find(key_name(architecture, field))
        if found is None:
            continue
        fields[field] = _read(found, spec)
        kind = found.value.item_type if isinstance(found.value, ArrayValue) else found.type
        if kind is not spec.type and not (spec.per_layer and kind in _LAYER_ITEMS):
            mistyped.append(Mistyped(key=found.key, found=kind, expected=spec.type))
    return RopeMetadata(
        architecture=architecture,
        factor_tensors=_factor_tensors(header, factor_tensors or {}),
        mistyped=tuple(mistyped),
        unread=_unread_keys(header, architecture),
        **fields,
    )


def first_layer(value: PerLayer | None) -> int | None:
    """Return the value of layer 0, which llama.cpp uses where it needs one for the model."""
    if isinstance(value, tuple):
        return value[0] if value else None
    return value


def per_layer(value: PerLayer | None, layers: int, *, default: int) -> tuple[int, ...]:
    """Return `value` for each of `layers` layers; a short array is filled up with `default`."""
    if value is None:
        return (default,) * layers
    if isinstance(value, int):
        return (value,) * layers
    return (value + (default,) * layers)[:layers]


def _unread_keys(header: Header, architecture: str) -> tuple[UnreadKey, ...]:
    """Return the keys that speak of RoPE or YaRN under names that llama.cpp does not know."""
    known = {f"{architecture}.{spec.suffix}" for spec in KEYS.values()}
    found = []
    for record in header.key_values:
        name = record.key.lower()
        if record.key in known or not _OTHER_SUBJECTS.isdisjoint(name.split(".")[:-1]):
            continue
        if "rope" not in name.partition(".")[2] and "yarn" not in name and "rope." not in name:
            continue
        value = record.value
        shown = f"array of {value.count}" if isinstance(value, ArrayValue) else value
        if isinstance(shown, str):
            shown = shown[:_LONGEST_SHOWN]
        found.append(UnreadKey(key=record.key, value=shown))
    return tuple(found)


def _read(found: KeyValue, spec: KeySpec) -> Scalar | tuple[Scalar, ...]:
    value = found.value
    if isinstance(value, ArrayValue):
        if not (spec.per_layer and value.items):
            raise MalformedError(
                f"{found.key} is an array of {value.count}: expected {_expected(spec)}",
                offset=found.span.offset,
            )
        return tuple(_convert(found, item, value.item_type, spec) for item in value.items)
    return _convert(found, value, found.type, spec)


def _convert(found: KeyValue, value: Scalar, kind: ValueType, spec: KeySpec) -> Scalar:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise MalformedError(
            f"{found.key} is a string of {len(value)} characters: expected {_expected(spec)}",
            offset=found.span.offset,
        )
    if spec.type is ValueType.STRING and isinstance(value, str):
        return value
    if spec.type is ValueType.BOOL and kind in {*_INTEGERS, ValueType.BOOL}:
        return bool(value)
    if spec.type is ValueType.FLOAT32 and kind in {*_INTEGERS, *_FLOATS}:
        return float(value)
    whole = kind in {*_INTEGERS, ValueType.BOOL} or (kind in _FLOATS and float(value).is_integer())
    if spec.type is ValueType.UINT32 and whole and int(value) >= 0:
        return int(value)
    raise MalformedError(
        f"{found.key} is {value!r} ({kind.name.lower()}): expected {_expected(spec)}",
        offset=found.span.offset,
    )


def _expected(spec: KeySpec) -> str:
    per = " or an array with one value per layer" if spec.per_layer else ""
    return f"a {spec.type.name.lower()}{per}"


def _factor_tensors(
    header: Header, values: Mapping[str, Sequence[float]]
) -> tuple[FactorTensor, ...]:
    tensors = []
    for name in FACTOR_TENSORS:
        info = header.tensor(name)
        if info is None:
            continue
        length = math.prod(info.shape)
        read = values.get(name)
        if read is not None and len(read) != length:
            raise MalformedError(
                f"{name} holds {len(read)} values: its shape says {length}",
                offset=info.span.offset,
            )
        numbers = None if read is None else tuple(map(float, read))
        tensors.append(FactorTensor(name=name, length=length, values=numbers, type=info.type))
    return tuple(tensors)
