from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.container.types import ArrayValue, Header, Span, Value, ValueType
from ggufrope.errors import MalformedError
from ggufrope.rope.keys import KEYS
from ggufrope.rope.metadata import RopeMetadata, read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

U32, F32, STRING = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING
ARCH: dict[str, tuple[ValueType, Value]] = {"general.architecture": (STRING, "qwen2")}


def array(kind: ValueType, *items: int) -> ArrayValue:
    return ArrayValue(
        item_type=kind, count=len(items), span=Span(offset=0, length=0), items=tuple(items)
    )


def test_absent_keys_are_none(header: Callable[..., Header]) -> None:
    found = read_metadata(header(ARCH))
    assert found == RopeMetadata(architecture="qwen2")


def test_every_field_has_its_key(header: Callable[..., Header]) -> None:
    values = {
        f"qwen2.{spec.suffix}": (spec.type, "yarn" if spec.type is STRING else 1)
        for spec in KEYS.values()
    }
    found = read_metadata(header(ARCH | values))
    assert all(getattr(found, field) is not None for field in KEYS)
    assert found.key("original_context") == "qwen2.rope.scaling.original_context_length"


def test_values_per_layer(header: Callable[..., Header]) -> None:
    values = {
        "qwen2.attention.head_count_kv": (ValueType.ARRAY, array(ValueType.INT32, 2, 0, 2)),
        "qwen2.attention.head_count": (U32, 8),
        "qwen2.embedding_length": (U32, 512),
    }
    found = read_metadata(header(ARCH | values))
    assert found.head_count_kv == (2, 0, 2)
    assert found.head_size == found.n_rot == 64
    assert found.mistyped == ()


def test_a_number_of_another_type_is_accepted_and_noted(header: Callable[..., Header]) -> None:
    values = {"qwen2.rope.freq_base": (ValueType.FLOAT64, 1e6)}
    found = read_metadata(header(ARCH | values))
    assert found.freq_base == 1e6
    assert [(m.key, m.found, m.expected) for m in found.mistyped] == [
        ("qwen2.rope.freq_base", ValueType.FLOAT64, F32)
    ]


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("qwen2.rope.freq_base", STRING, "high"),
        ("qwen2.context_length", F32, 0.5),
        ("qwen2.context_length", ValueType.INT32, -1),
        ("qwen2.rope.scaling.type", U32, 2),
        ("qwen2.context_length", ValueType.ARRAY, array(U32, 1, 2)),
    ],
)
def test_a_value_that_cannot_be_read_is_malformed(
    header: Callable[..., Header], key: str, kind: ValueType, value: Value
) -> None:
    with pytest.raises(MalformedError, match=key):
        read_metadata(header({**ARCH, key: (kind, value)}))


def test_a_file_without_architecture_is_malformed(header: Callable[..., Header]) -> None:
    with pytest.raises(MalformedError, match=r"general\.architecture"):
        read_metadata(header({}))


def test_factor_tensors_with_and_without_values(header: Callable[..., Header]) -> None:
    tensors = {"rope_freqs.weight": (32,), "rope_factors_long.weight": (32, 1)}
    values = {"rope_freqs.weight": (1.0,) * 32}
    found = read_metadata(header(ARCH, tensors), values)
    freqs = found.tensor("rope_freqs.weight")
    long = found.tensor("rope_factors_long.weight")
    assert freqs is not None
    assert freqs.values == (1.0,) * 32
    assert long is not None
    assert (long.length, long.values) == (32, None)
    assert found.tensor("rope_factors_short.weight") is None
