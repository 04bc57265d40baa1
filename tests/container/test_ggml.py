"""The table of ggml types, held against the one in the `gguf` package."""

from __future__ import annotations

import gguf
import pytest

from ggufrope.container import ggml

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
