"""Saved states: rows of the format that is known, and a named refusal of any other."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.errors import BackendError
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.probe import (
    StateLayout,
    check_state_version,
    key_rows,
    require_known_state,
)
from ggufrope.runtime.settings import ContextSettings

if TYPE_CHECKING:
    from pathlib import Path

MAGIC, FILE_MAGIC = 0xAF143CD8, 0x67677371
F32, F16 = 0, 1
WIDTH = 8
REINSTALL = r'pip install "ggufrope\[llama\]"'


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def value_of(layer: int) -> np.ndarray:
    return np.arange(WIDTH, dtype="<f4") + 100 * layer


def cache(*layers: int, version: int = 3, transposed: bool = False) -> bytes:
    """One cache with one cell, written as llama.cpp writes it in versions 3 and 4."""
    cell = words(1, 1, 5, 1, 0)  # streams, cells; position, sequences, sequence
    rotated = words(0, 0) if version == 4 else b""
    head = words(int(transposed), len(layers)) + rotated
    keys = b"".join(
        words(F32) + struct.pack("<Q", 4 * WIDTH) + value_of(layer).tobytes() for layer in layers
    )
    row = words(2, WIDTH) if transposed else struct.pack("<Q", 2 * WIDTH)
    values = (words(F16) + row + bytes(2 * WIDTH)) * len(layers)
    return cell + head + keys + values


def state(*caches: bytes) -> bytes:
    return words(MAGIC, 0) + b"".join(caches)


def layout(*caches: tuple[int, ...], recurrent: bool = False) -> StateLayout:
    widths = {layer: WIDTH for layers in caches for layer in layers}
    return StateLayout(caches=caches, cell_extra=0, row_widths=widths, recurrent=recurrent)


def assert_rows(rows: dict[int, np.ndarray], layers: list[int]) -> None:
    assert sorted(rows) == layers
    assert all(np.array_equal(rows[layer], value_of(layer)) for layer in layers)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_read_by_layer_from_each_cache(transposed: bool) -> None:
    blob = state(cache(0, 2, transposed=transposed), cache(1, transposed=transposed))
    assert_rows(key_rows(blob, layout((0, 2), (1,))), [0, 1, 2])


def test_a_recurrent_state_after_the_caches_is_left_alone() -> None:
    blob = state(cache(0)) + bytes(100)
    assert_rows(key_rows(blob, layout((0,), recurrent=True)), [0])
    with pytest.raises(BackendError, match="has 100 more bytes than expected"):
        key_rows(blob, layout((0,)))


@pytest.mark.parametrize("caches", [((0,),), ((0, 1),), ((0, 1), (2,))])
@pytest.mark.parametrize("widths_known", [True, False])
def test_a_state_of_version_4_is_refused(
    caches: tuple[tuple[int, ...], ...], widths_known: bool
) -> None:
    """Version 4 has two more numbers behind the number of layers.

    In a one-layer cache whose keys are not rotated these are two zeros. A reader of version 3
    takes them for the type F32 and a row of length 0.
    """
    blob = state(*(cache(*layers, version=4) for layers in caches))
    known = layout(*caches)
    if not widths_known:
        known = StateLayout(caches=caches, cell_extra=0, row_widths={}, recurrent=False)
    with pytest.raises(
        BackendError, match=f"a state format that ggufrope does not know.*{REINSTALL}"
    ):
        key_rows(blob, known)


def test_an_empty_row_is_an_error() -> None:
    blob = state(words(1, 1, 5, 1, 0, 0, 1, F32) + bytes(8) + words(F16) + bytes(8))
    with pytest.raises(BackendError, match="has a K row of 0 bytes where 32 bytes were expected"):
        key_rows(blob, layout((0,)))


def test_a_state_cut_off_anywhere_is_refused() -> None:
    blob = state(cache(0, 1), cache(2))
    for length in range(len(blob)):
        with pytest.raises(BackendError, match="state format that ggufrope does not know"):
            key_rows(blob[:length], layout((0, 1), (2,)))
    assert length == len(blob) - 1 > 100


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 1, "1 as its magic number"),
        (8, 2, "2 streams where 1 was expected"),
        (12, 3, "3 cells where 1 was expected"),
        (32, 2, "2 layers where 1 was expected"),
        (36, F16, "1 as the type of K where 0 was expected"),
        (40, 2 * WIDTH, "a K row of 16 bytes where 32 bytes were expected"),
        (80, 77, "77 as the type of V, which is no ggml type"),
    ],
)
def test_what_is_not_expected_is_named(offset: int, value: int, message: str) -> None:
    blob = bytearray(state(cache(0)))
    struct.pack_into("<I", blob, offset, value)
    with pytest.raises(BackendError, match=message):
        key_rows(bytes(blob), layout((0,)))


def test_the_version_is_read_from_a_saved_file() -> None:
    check_state_version(words(FILE_MAGIC, 3, 0))
    with pytest.raises(BackendError, match=rf"version 3, .* version 4 of it; .*{REINSTALL}"):
        check_state_version(words(FILE_MAGIC, 4, 0))
    for saved in (b"", words(FILE_MAGIC), words(MAGIC, 3)):
        with pytest.raises(BackendError, match="writes another one; install"):
            check_state_version(saved)


def test_the_installed_llama_cpp_writes_the_known_version(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf")
    with Model.open(path) as model, Context(model, ContextSettings(n_ctx=256)) as context:
        require_known_state(context.handle)
