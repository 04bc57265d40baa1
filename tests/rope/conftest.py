"""Models as headers and metadata, and edits applied to them in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container.types import Header, KeyValue, Span, TensorInfo, Value, ValueType
from ggufrope.rope.keys import KEYS
from ggufrope.rope.metadata import FactorTensor, RopeMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.rope.encode import Expression

NOWHERE = Span(offset=0, length=0)


def make_metadata(architecture: str = "llama", **fields: Any) -> RopeMetadata:
    """A model of 8 layers with heads of 64 dimensions and a context of 2048 tokens."""
    common: dict[str, Any] = {
        "context_length": 2048,
        "block_count": 8,
        "embedding_length": 256,
        "head_count": 4,
        "freq_base": 10000.0,
    }
    factors = fields.pop("factors", {})
    tensors = tuple(
        FactorTensor(name=name, length=len(values), values=tuple(map(float, values)))
        for name, values in factors.items()
    )
    return RopeMetadata(architecture=architecture, factor_tensors=tensors, **common | fields)


def make_header(
    values: dict[str, tuple[ValueType, Value]], tensors: dict[str, tuple[int, ...]] | None = None
) -> Header:
    """A header of these records, at no particular place."""
    infos = tuple(
        TensorInfo(name=name, shape=shape, type=0, offset=0, length=0, span=NOWHERE)
        for name, shape in (tensors or {}).items()
    )
    records = tuple(
        KeyValue(key=key, type=kind, value=value, span=NOWHERE)
        for key, (kind, value) in values.items()
    )
    return Header(
        version=3,
        byte_order="<",
        key_values=records,
        tensors=infos,
        alignment=32,
        data_offset=0,
        file_size=0,
    )


def apply_expression(expression: Expression, metadata: RopeMetadata) -> RopeMetadata:
    """What the file would say after the edits of `expression`."""
    names = {metadata.key(field): field for field in KEYS}
    fields: dict[str, Any] = {
        names[key]: None if value is None else value.value for key, value in expression.keys.items()
    }
    tensors = {tensor.name: tensor for tensor in metadata.factor_tensors}
    for name, values in expression.tensors.items():
        if values is None:
            tensors.pop(name, None)
        else:
            tensors[name] = FactorTensor(name=name, length=len(values), values=values)
    return replace(metadata, factor_tensors=tuple(tensors.values()), **fields)


@pytest.fixture(scope="session")
def metadata() -> Callable[..., RopeMetadata]:
    return make_metadata


@pytest.fixture(scope="session")
def header() -> Callable[..., Header]:
    return make_header


@pytest.fixture(scope="session")
def applied() -> Callable[[Expression, RopeMetadata], RopeMetadata]:
    return apply_expression
