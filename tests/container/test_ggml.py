"""The table of ggml types, compared with the one in the `gguf` package; pairs of cache types."""

from __future__ import annotations

import gguf
import pytest

from ggufrope.container import ggml
from ggufrope.errors import RequestError

KNOWN = {int(number): sizes for number, sizes in gguf.GGML_QUANT_SIZES.items()}


@pytest.mark.parametrize("number", sorted(KNOWN))
def test_types_are_those_of_gguf(number: int) -> None:
    kind = ggml.TYPES[number]
    assert kind.name == ggml.type_name(number) == gguf.GGMLQuantizationType(number).name
    assert (kind.block_size, kind.block_bytes) == KNOWN[number]


def test_an_unknown_type_goes_by_its_number() -> None:
    assert ggml.type_name(999) == "999"
    assert ggml.data_length(999, (32,)) is None


def test_rows_are_whole_blocks() -> None:
    assert ggml.data_length(8, (64, 3)) == 6 * 34
    with pytest.raises(ValueError, match="rows of 48 elements"):
        ggml.data_length(8, (48,))


@pytest.mark.parametrize(
    ("text", "k", "v", "short"),
    [
        ("q8_0", "q8_0", "q8_0", "q8_0"),
        ("q8_0/q8_0", "q8_0", "q8_0", "q8_0"),
        ("q8_0/f16", "q8_0", "f16", "q8_0/f16"),
    ],
)
def test_kv_types_have_a_short_form(text: str, k: str, v: str, short: str) -> None:
    types = ggml.KvTypes.parse(text)
    assert types == ggml.KvTypes(k=k, v=v)
    assert str(types) == short
    assert ggml.KvTypes.parse(str(types)) == types


@pytest.mark.parametrize("text", ["", "q9", "f16/q9", "q9/f16", "f16/f16/f16", "F16"])
def test_unknown_kv_types_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(RequestError, match=r"unknown KV cache type .*expected K or K/V of f32"):
        ggml.KvTypes.parse(text)
    with pytest.raises(RequestError, match="unknown KV cache type 'q9' in 'q9/f16'"):
        ggml.KvTypes(k="q9", v="f16")
