"""Saved states: rows of the format that is known, and a named refusal of any other."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.errors import BackendError
from ggufrope.runtime.batch import decode
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.states import (
    KNOWN_STATES,
    StateLayout,
    cache_layers,
    key_rows,
    saved_state,
    saved_version,
    state_version,
)

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


@pytest.mark.llama
def test_the_installed_llama_cpp_writes_a_known_version(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf")
    with Model.open(path) as model, Context(model, ContextSettings(n_ctx=256)) as context:
        assert state_version(context.handle) in KNOWN_STATES


def test_without_the_lines_of_the_cache_no_state_is_read() -> None:
    with pytest.raises(BackendError, match="does not list the layers of its cache"):
        cache_layers(["llama_kv_cache: layer 0 lives on CPU", "llama_context: n_ctx = 256"])


STATES = json.loads((Path(__file__).parents[2] / "fixtures" / "states.json").read_text())
"""States that llama.cpp wrote, by the version of their format (tools/saved_states.py)."""
WIDTHS = {"nano": 128, "gemma3": 16}


def read_fixture(version: int, name: str) -> dict[int, np.ndarray]:
    saved = STATES[str(version)][name]
    caches = tuple(map(tuple, saved["caches"]))
    widths = {layer: WIDTHS[name] for layers in caches for layer in layers}
    known = StateLayout(
        version=version, caches=caches, cell_extra=0, row_widths=widths, recurrent=False
    )
    return key_rows(bytes.fromhex(saved["memory"]), known)


def test_there_is_a_saved_state_of_each_version_that_is_known() -> None:
    assert tuple(map(int, STATES)) == KNOWN_STATES
    for version, saved in STATES.items():
        assert {saved_version(bytes.fromhex(saved[name]["file"])) for name in WIDTHS} == {
            int(version)
        }


@pytest.mark.parametrize("name", WIDTHS)
def test_all_versions_have_the_same_keys(name: str) -> None:
    """The same model in two versions of llama.cpp: what is read from the states must agree."""
    first, *others = [read_fixture(version, name) for version in KNOWN_STATES]
    assert len(first) == {"nano": 2, "gemma3": 6}[name]
    assert len({rows.tobytes() for rows in first.values()}) == len(first)
    assert all(np.abs(rows).max() > 0.01 for rows in first.values())
    for other in others:
        assert other.keys() == first.keys()
        for layer, rows in first.items():
            np.testing.assert_allclose(other[layer], rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("written", "read"), [(3, 4), (4, 3)])
@pytest.mark.parametrize("name", WIDTHS)
def test_what_llama_cpp_wrote_is_not_read_as_the_other_version(
    name: str, written: int, read: int
) -> None:
    saved = STATES[str(written)][name]
    caches = tuple(map(tuple, saved["caches"]))
    known = StateLayout(version=read, caches=caches, cell_extra=0, row_widths={}, recurrent=False)
    with pytest.raises(BackendError, match="a state format that ggufrope does not know"):
        key_rows(bytes.fromhex(saved["memory"]), known)


@pytest.mark.llama
def test_the_installed_llama_cpp_has_the_keys_of_the_fixture(nano: Path) -> None:
    settings = ContextSettings(n_ctx=256, type_k="f32", type_v="f32", n_threads=1)
    with Model.open(nano, gpu_layers=0) as model, Context(model, settings) as context:
        token, position = np.array([7], dtype=np.int32), np.array([5], dtype=np.int32)
        decode(context.handle, token, position, [(0,)], np.zeros(1, dtype=np.int8))
        version = state_version(context.handle)
        known = layout((0, 1), version=version, widths_known=False)
        found = key_rows(saved_state(context.handle, 0), known)
    for layer, rows in read_fixture(version, "nano").items():
        np.testing.assert_allclose(found[layer], rows, rtol=1e-4, atol=1e-6)
    assert len(found) == 2
