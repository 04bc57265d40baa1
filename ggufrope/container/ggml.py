"""The ggml types: their names, and how many bytes tensor data and KV cache rows take.

Figures from ggml/src/ggml.c (`type_traits`) and ggml/src/ggml-common.h. They are not imported from
`gguf`, because that import alone takes longer than reading a header; a test compares the two. A
tensor type missing here is not an error: such tensors are copied whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from ggufrope.errors import RequestError, UnsupportedCacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

F32, F16, F64 = 0, 1, 28

_K = 256


class TensorType(NamedTuple):
    """A storage format of values: `block_bytes` for each block of `block_size` values."""

    name: str
    block_size: int
    block_bytes: int


TYPES: dict[int, TensorType] = {
    F32: TensorType("F32", 1, 4),
    F16: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", _K, 84),
    11: TensorType("Q3_K", _K, 110),
    12: TensorType("Q4_K", _K, 144),
    13: TensorType("Q5_K", _K, 176),
    14: TensorType("Q6_K", _K, 210),
    15: TensorType("Q8_K", _K, 292),
    16: TensorType("IQ2_XXS", _K, 66),
    17: TensorType("IQ2_XS", _K, 74),
    18: TensorType("IQ3_XXS", _K, 98),
    19: TensorType("IQ1_S", _K, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", _K, 110),
    22: TensorType("IQ2_S", _K, 82),
    23: TensorType("IQ4_XS", _K, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    F64: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", _K, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", _K, 54),
    35: TensorType("TQ2_0", _K, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}
"""By ggml's number."""

NO_WEIGHTS = frozenset({9, 15, 24, 25, 27, F64})
"""Types that llama.cpp computes with inside and cannot multiply a matrix of weights of: it has no
`vec_dot` for them (type_traits_cpu in ggml/src/ggml-cpu/ggml-cpu.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheType:
    """A storage format of KV cache rows: `block_bytes` for each block of `block_size` values.

    `number` is the ggml type (ggml/include/ggml.h).
    """

    name: str
    number: int
    block_size: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        return self.block_size > 1

    def row_bytes(self, width: int) -> int:
        """Return the bytes of a row of `width` values, a multiple of the block size."""
        return width // self.block_size * self.block_bytes


def _cache_type(name: str, number: int) -> CacheType:
    kind = TYPES[number]
    return CacheType(
        name=name, number=number, block_size=kind.block_size, block_bytes=kind.block_bytes
    )


CACHE_TYPES = {
    name: _cache_type(name, number)
    for name, number in (
        ("f32", F32),
        ("f16", 1),
        ("bf16", 30),
        ("q8_0", 8),
        ("q5_1", 7),
        ("q5_0", 6),
        ("q4_1", 3),
        ("q4_0", 2),
        ("iq4_nl", 20),
    )
}
"""The types that llama.cpp's command line accepts for a K or V cache, by name."""


def cache_type(name: str) -> CacheType:
    """Return the cache type called `name`. Raises UnsupportedCacheError where there is none."""
    try:
        return CACHE_TYPES[name]
    except KeyError:
        raise UnsupportedCacheError(
            f"unknown cache type {name!r}; known: {', '.join(CACHE_TYPES)}"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTypes:
    """The types of the K and V caches, by name; `str()` gives the short form that plans use.

    Raises RequestError for an unknown name.
    """

    k: str
    v: str

    def __post_init__(self) -> None:
        for name in (self.k, self.v):
            if name not in CACHE_TYPES:
                raise RequestError(
                    f"unknown KV cache type {name!r} in {str(self)!r}; "
                    f"expected K or K/V of {', '.join(CACHE_TYPES)}"
                )

    @classmethod
    def parse(cls, text: str) -> KvTypes:
        """Read `K`, for both caches, or `K/V`. Raises RequestError for an unknown type."""
        k, _, v = text.partition("/")
        return cls(k=k, v=v or k)

    def __str__(self) -> str:
        return self.k if self.k == self.v else f"{self.k}/{self.v}"


def type_name(number: int) -> str:
    """Return the name of a type, or its number where the type is unknown."""
    kind = TYPES.get(number)
    return str(number) if kind is None else kind.name


def data_length(type_: int, shape: Sequence[int]) -> int | None:
    """Return the bytes of a tensor's data, or None where the type is unknown.

    `shape` is innermost first. Raises ValueError where a row is not a whole number of blocks.
    """
    kind = TYPES.get(type_)
    if kind is None:
        return None
    row = shape[0] if shape else 1
    if row % kind.block_size:
        raise ValueError(
            f"rows of {row} elements are not a multiple of the block size {kind.block_size}"
        )
    return prod(shape) // kind.block_size * kind.block_bytes
