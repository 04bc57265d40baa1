"""Hypothesis strategies for GGUF files: regular ones, and unusual ones that occur in practice."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.container.writer import ARRAY, STRING, Model, Tensor

BITS = {0: 8, 1: 8, 2: 16, 3: 16, 4: 32, 5: 32, 10: 64, 11: 64}
SIGNED = (1, 3, 5, 11)
SIZES = {0: 4, 1: 2, 24: 1, 26: 4, 28: 8}
"""Bytes of an element of ggml types without blocks: F32, F16, I8, I32, F64."""


def _integers(kind: int) -> st.SearchStrategy[int]:
    low = -(1 << (BITS[kind] - 1)) if kind in SIGNED else 0
    return st.integers(low, low + (1 << BITS[kind]) - 1)


def raw_text(max_size: int = 24) -> st.SearchStrategy[str]:
    """Draw any bytes, decoded as the package does."""
    return st.binary(max_size=max_size).map(lambda data: data.decode("utf-8", "surrogateescape"))


def scalars(kind: int) -> st.SearchStrategy[Any]:
    if kind in BITS:
        return _integers(kind)
    if kind == 7:
        return st.booleans()
    if kind == STRING:
        return raw_text()
    return st.floats(width=32 if kind == 6 else 64, allow_nan=False)


SCALARS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, STRING, 10, 11, 12])


@st.composite
def values(draw: st.DrawFn, *, nested: bool = True) -> tuple[int, Any]:
    """Draw a value type and a value; arrays may be empty, of strings, or of arrays."""
    kind = draw(SCALARS)
    shape = draw(st.integers(0, 5 if nested else 4))
    if shape < 3:
        return kind, draw(scalars(kind))
    if shape < 5:
        return ARRAY, (kind, draw(st.lists(scalars(kind), max_size=6)))
    inner = st.lists(scalars(kind), max_size=3).map(lambda items: (kind, items))
    return ARRAY, (ARRAY, draw(st.lists(inner, max_size=3)))


@st.composite
def models(draw: st.DrawFn, *, plain: bool = False) -> Model:
    """Draw a file; `plain` ones have nothing that llama.cpp or `gguf` refuse."""
    key = st.from_regex(r"[a-z]{1,6}(\.[a-z_]{1,6}){0,2}", fullmatch=True) if plain else raw_text()
    keys = draw(st.lists(key, max_size=8, unique=plain))
    reserved = ("general.alignment", "ggufrope.padding")
    metadata = [(name, *draw(values(nested=not plain))) for name in keys if name not in reserved]
    alignment = draw(st.sampled_from([8, 16, 32, 32, 32, 64, 256]))
    if alignment != 32:
        at = draw(st.integers(0, len(metadata)))
        metadata.insert(at, ("general.alignment", 4, alignment))
    names = draw(
        st.lists(st.text("abcxyz._0123", min_size=1, max_size=20), max_size=6, unique=True)
    )
    return Model(
        metadata=metadata,
        tensors=[draw(tensors(name)) for name in names],
        order=draw(st.sampled_from("<>")),
        version=draw(st.sampled_from([2, 3])),
        alignment=alignment,
        trailing=draw(st.sampled_from([b"", b"", b"trailing bytes"])) if names else b"",
        final_padding=True,
    )


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    kind = draw(st.sampled_from(sorted(SIZES)))
    shape = tuple(draw(st.lists(st.integers(0 if draw(st.booleans()) else 1, 5), max_size=3)))
    count = 1
    for size in shape:
        count *= size
    seed = draw(st.integers(0, 255))
    data = bytes((seed + n) % 256 for n in range(count * SIZES[kind]))
    return Tensor(name, shape, data, kind)
