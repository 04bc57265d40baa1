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
    KNOWN_STATES,
    StateLayout,
    cache_layers,
    key_rows,
    saved_version,
    state_version,
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


def layout(
    *caches: tuple[int, ...], version: int = 3, recurrent: bool = False, widths_known: bool = True
) -> StateLayout:
    widths = {layer: WIDTH for layers in caches for layer in layers}
    return StateLayout(
        version=version,
        caches=caches,
        cell_extra=0,
        row_widths=widths if widths_known else {},
        recurrent=recurrent,
    )


def assert_rows(rows: dict[int, np.ndarray], layers: list[int]) -> None:
    assert sorted(rows) == layers
    assert all(np.array_equal(rows[layer], value_of(layer)) for layer in layers)


@pytest.mark.parametrize("version", KNOWN_STATES)
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_read_by_layer_from_each_cache(transposed: bool, version: int) -> None:
    blob = state(
        cache(0, 2, version=version, transposed=transposed),
        cache(1, version=version, transposed=transposed),
    )
    assert_rows(key_rows(blob, layout((0, 2), (1,), version=version)), [0, 1, 2])


def test_a_recurrent_state_after_the_caches_is_left_alone() -> None:
    blob = state(cache(0)) + bytes(100)
    assert_rows(key_rows(blob, layout((0,), recurrent=True)), [0])
    with pytest.raises(BackendError, match="has 100 more bytes than expected"):
        key_rows(blob, layout((0,)))


@pytest.mark.parametrize("caches", [((0,),), ((0, 1),), ((0, 1), (2,))])
@pytest.mark.parametrize("widths_known", [True, False])
@pytest.mark.parametrize(("written", "read"), [(3, 4), (4, 3)])
def test_a_state_read_as_the_other_version_is_refused(
    caches: tuple[tuple[int, ...], ...], widths_known: bool, written: int, read: int
) -> None:
    """Version 4 has two more numbers behind the number of layers.

    In a one-layer cache whose keys are not rotated these are two zeros. A reader of version 3
    takes them for the type F32 and a row of length 0.
    """
    blob = state(*(cache(*layers, version=written) for layers in caches))
    known = layout(*caches, version=read, widths_known=widths_known)
    with pytest.raises(
        BackendError, match=f"a state format that ggufrope does not know.*{REINSTALL}"
    ):
        key_rows(blob, known)


@pytest.mark.parametrize("version", KNOWN_STATES)
@pytest.mark.parametrize("widths_known", [True, False])
def test_an_empty_row_is_an_error(version: int, widths_known: bool) -> None:
    rotated = (0, 0) if version == 4 else ()
    blob = state(words(1, 1, 5, 1, 0, 0, 1, *rotated, F32) + bytes(8) + words(F16) + bytes(8))
    with pytest.raises(BackendError, match="has a K row of 0 bytes where "):
        key_rows(blob, layout((0,), version=version, widths_known=widths_known))


def test_a_rotation_that_no_matrix_has_is_refused() -> None:
    blob = bytearray(state(cache(0, version=4)))
    struct.pack_into("<I", blob, 36, 128)
    assert_rows(key_rows(bytes(blob), layout((0,), version=4)), [0])
    struct.pack_into("<I", blob, 36, 3)
    with pytest.raises(BackendError, match="has 3 as the size of K's rotation"):
        key_rows(bytes(blob), layout((0,), version=4))


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
    assert [saved_version(words(FILE_MAGIC, number, 0)) for number in KNOWN_STATES] == [3, 4]
    with pytest.raises(
        BackendError, match=rf"versions 3 and 4, .* writes version 5 of it; .*{REINSTALL}"
    ):
        saved_version(words(FILE_MAGIC, 5, 0))
    for saved in (b"", words(FILE_MAGIC), words(MAGIC, 3)):
        with pytest.raises(BackendError, match="writes another one; use"):
            saved_version(saved)


def test_the_installed_llama_cpp_writes_a_known_version(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf")
    with Model.open(path) as model, Context(model, ContextSettings(n_ctx=256)) as context:
        assert state_version(context.handle) in KNOWN_STATES


def test_without_the_lines_of_the_cache_no_state_is_read() -> None:
    with pytest.raises(BackendError, match="does not list the layers of its cache"):
        cache_layers(["llama_kv_cache: layer 0 lives on CPU", "llama_context: n_ctx = 256"])
