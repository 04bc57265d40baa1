"""The saved state of a sequence, which has the keys of its tokens.

llama.cpp changes the format of that state without notice, so its version is read first, and each
size in it is checked.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggufrope._files import read_bytes, working_folder
from ggufrope.container.ggml import TYPES
from ggufrope.errors import BackendError
from ggufrope.runtime import library
from ggufrope.runtime.engine import INSTALL_COMMAND

if TYPE_CHECKING:
    from collections.abc import Sequence

Keys: TypeAlias = NDArray[np.float32]

KNOWN_STATES = (3, 4)
"""LLAMA_STATE_SEQ_VERSION, include/llama.h: 3 at 0c1e570; 4 from b11434, which has two more numbers
behind the number of layers."""
_STATE_FILE_MAGIC = 0x67677371  # LLAMA_STATE_SEQ_MAGIC
_STATE_MAGIC = 0xAF143CD8  # what precedes a state in memory, src/llama-context.cpp
_F32 = 0
_HADAMARD = 64  # the smallest matrix that rotates a cache, src/llama-kv-cache.cpp
_CURE = f"use a version that ggufrope was tested with: {INSTALL_COMMAND}"
_LAYER_LINE = re.compile(r"^llama_kv_cache: layer +(\d+): (dev =|filtered|does not have KV)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayout:
    """The format that a saved state must have.

    `version` is one of `KNOWN_STATES`. `caches` has the layers of each cache, in the order of the
    state: a model with sliding-window layers writes two caches, first that of its other layers.
    `cell_extra` is the bytes that a cell has besides position and sequences: 12 with M-RoPE.
    `row_widths` has the number of values of a K row, by layer. `recurrent` states follow the caches
    of a hybrid model. Without `values` there are only K rows, as with multi-head latent attention.
    """

    version: int
    caches: tuple[tuple[int, ...], ...]
    cell_extra: int
    row_widths: dict[int, int]
    recurrent: bool
    values: bool = True


def cache_layers(log_lines: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the layers of each cache, in the order in which a context's debug log lists them.

    Raises BackendError where the log lists none: without them a state cannot be read.
    """
    caches: list[list[int]] = []
    previous = None
    for line in log_lines:
        match = _LAYER_LINE.match(line)
        if not match:
            continue
        layer = int(match[1])
        if previous is None or layer <= previous:
            caches.append([])
        if match[2] == "dev =":
            caches[-1].append(layer)
        previous = layer
    if not caches:
        raise BackendError(
            f"llama.cpp's log does not list the layers of its cache, so keys cannot be read back; "
            f"{_CURE}"
        )
    return tuple(map(tuple, caches))


def state_version(context_handle: Any) -> int:
    """Return the version of the format in which this llama.cpp saves states.

    A state in memory does not carry it; a state in a file does. So an empty sequence is saved to a
    temporary file, which takes a few bytes. Raises BackendError for a version that is not known.
    """
    llama = library.load()
    with working_folder() as folder:
        path = folder / "state"
        if not llama.llama_state_seq_save_file(context_handle, os.fsencode(path), 0, None, 0):
            raise BackendError("llama.cpp could not save the state of a sequence to a file")
        return saved_version(read_bytes(path, most=path.stat().st_size))


def saved_version(saved: bytes) -> int:
    """Return the version of the format of a state saved to a file.

    Raises BackendError where it is not one of `KNOWN_STATES`.
    """
    magic, version = struct.unpack("<II", saved[:8]) if len(saved) >= 8 else (None, None)
    if magic == _STATE_FILE_MAGIC and version in KNOWN_STATES:
        return int(version)
    written = f"version {version} of it" if magic == _STATE_FILE_MAGIC else "another one"
    raise BackendError(
        f"the probe reads llama.cpp's state format in versions "
        f"{' and '.join(map(str, KNOWN_STATES))}, and this llama.cpp writes {written}; {_CURE}"
    )


def key_rows(state: bytes, layout: StateLayout) -> dict[int, Keys]:
    """Return the K row of the one token in a saved sequence, `[kv_heads * head_size]` by layer.

    The format is that of `llama_kv_cache::state_write` (src/llama-kv-cache.cpp), after a magic
    number and the sequence (src/llama-context.cpp). Raises BackendError where the state is not
    exactly so.
    """
    reader = _StateReader(state)
    reader.expect("as its magic number", _STATE_MAGIC)
    reader.skip(4)  # sequence
    rows: dict[int, Keys] = {}
    for layers in layout.caches:
        reader.expect("streams", 1)
        reader.expect("cells", 1)
        reader.skip(4)  # position
        reader.expect("sequences of the cell", 1)
        reader.skip(layout.cell_extra + 4)
        transposed = reader.word()
        reader.expect("layers", len(layers))
        if layout.version >= 4:
            reader.skip_rotation("K")
            reader.skip_rotation("V")
        for layer in layers:
            rows[layer] = reader.key_row(layout.row_widths.get(layer))
        for _ in layers if layout.values else ():
            reader.skip_value_row(transposed=bool(transposed))
    if not layout.recurrent:
        reader.expect_end()
    return rows


def saved_state(context_handle: Any, sequence: int) -> bytes:
    """Return the state of a sequence as llama.cpp writes it to memory."""
    llama = library.load()
    size = llama.llama_state_seq_get_size(context_handle, sequence)
    buffer = (ctypes.c_uint8 * size)()
    if llama.llama_state_seq_get_data(context_handle, buffer, size, sequence) != size:
        raise BackendError("llama.cpp did not give the state of a sequence")
    return bytes(buffer)


class _StateReader:
    """Reads a saved state from its begin to its end, and refuses what it does not expect."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._offset = 0

    def word(self) -> int:
        return self._number("<I")

    def expect(self, what: str, value: int) -> None:
        number = self.word()
        if number != value:
            raise self._unknown(f"has {number} {what} where {value} was expected")

    def skip(self, count: int) -> None:
        if count > len(self._state) - self._offset:
            raise self._unknown(f"ends {count - len(self._state) + self._offset} bytes early")
        self._offset += count

    def key_row(self, width: int | None) -> Keys:
        """Return a row of F32 values; `width` is how many there must be, where that is known."""
        self.expect("as the type of K", _F32)
        size = self._number("<Q")
        if size == 0 or size % 4 or (width is not None and size != 4 * width):
            wanted = "whole F32 values" if width is None else f"{4 * width} bytes"
            raise self._unknown(f"has a K row of {size} bytes where {wanted} were expected")
        start = self._offset
        self.skip(size)
        return np.frombuffer(self._state[start : self._offset], dtype="<f4")

    def skip_rotation(self, which: str) -> None:
        """Skip the size of the Hadamard matrix that rotates what is stored, 0 for none."""
        number = self.word()
        if number % _HADAMARD:
            raise self._unknown(f"has {number} as the size of {which}'s rotation")

    def skip_value_row(self, *, transposed: bool) -> None:
        number = self.word()
        if number not in TYPES:
            raise self._unknown(f"has {number} as the type of V, which is no ggml type")
        if transposed:
            element = self.word()
            self.skip(element * self.word())
        else:
            self.skip(self._number("<Q"))

    def expect_end(self) -> None:
        left = len(self._state) - self._offset
        if left:
            raise self._unknown(f"has {left} more bytes than expected")

    def _number(self, layout: str) -> int:
        start = self._offset
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self._state, start)[0])

    def _unknown(self, what: str) -> BackendError:
        return BackendError(
            f"llama.cpp's saved state {what} (at byte {self._offset}): this llama.cpp writes a "
            f"state format that ggufrope does not know; {_CURE}"
        )
