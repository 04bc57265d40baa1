"""The keys of one cached token, read back out of a sequence's saved state.

The layout is that of `llama_kv_cache::state_write` (src/llama-kv-cache.cpp); what precedes it is
the magic and the sequence (src/llama-context.cpp). A model with sliding-window layers writes two
caches one after the other, first that of its other layers. The state does not say which layers a
cache holds; the log of its construction does.
"""

from __future__ import annotations

import ctypes
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import RuntimeFailure
from ggufrope.runtime import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MAGIC_AND_SEQUENCE = 8
_F32 = 0
_LAYER_LINE = re.compile(r"^llama_kv_cache: layer +(\d+): (dev =|filtered|does not have KV)")


def cache_layers(log_lines: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The layers of each cache that a context's debug log says were made, in their order."""
    caches: list[list[int]] = []
    previous = None
    for line in log_lines:
        found = _LAYER_LINE.match(line)
        if not found:
            continue
        layer = int(found[1])
        if previous is None or layer <= previous:
            caches.append([])
        if found[2] == "dev =":
            caches[-1].append(layer)
        previous = layer
    return tuple(map(tuple, caches))


def key_rows(
    handle: Any, sequence: int, caches: Sequence[Sequence[int]], *, cell_extra: int
) -> dict[int, NDArray[np.float32]]:
    """The K row of the one token in `sequence`, by layer, each `[kv_heads * head_size]`.

    `cell_extra` is the bytes a cell has beside position and sequences: 12 with M-RoPE. Raises
    RuntimeFailure where the state is not laid out as this was written for.
    """
    state = _Reader(_state(handle, sequence))
    state.skip(_MAGIC_AND_SEQUENCE)
    rows: dict[int, NDArray[np.float32]] = {}
    for layers in caches:
        state.expect("streams", 1)
        state.expect("cells", 1)
        state.skip(4)  # position
        state.expect("sequences of the cell", 1)
        state.skip(cell_extra + 4)
        transposed = state.word()
        state.expect("layers", len(layers))
        for layer in layers:
            rows[layer] = state.row()
        for _ in layers:
            state.skip_value_row(transposed=bool(transposed))
    return rows


def _state(handle: Any, sequence: int) -> bytes:
    llama = library.load()
    size = llama.llama_state_seq_get_size(handle, sequence)
    buffer = (ctypes.c_uint8 * size)()
    if llama.llama_state_seq_get_data(handle, buffer, size, sequence) != size:
        raise RuntimeFailure("llama.cpp did not give the state of a sequence")
    return bytes(buffer)


class _Reader:
    """Walks the state; anything unexpected means another version of llama.cpp wrote it."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._offset = 0

    def word(self) -> int:
        return int(self._take("<i"))

    def expect(self, what: str, value: int) -> None:
        found = self.word()
        if found != value:
            raise RuntimeFailure(
                f"the saved state has {found} {what} where {value} was expected: this version of "
                f"llama.cpp lays it out differently"
            )

    def skip(self, count: int) -> None:
        self._offset += count

    def row(self) -> NDArray[np.float32]:
        self.expect("as the type of K", _F32)
        size = int(self._take("<Q"))
        start = self._offset
        self.skip(size)
        return np.frombuffer(self._state[start : self._offset], dtype=np.float32)

    def skip_value_row(self, *, transposed: bool) -> None:
        self.skip(4)  # type
        if transposed:
            element = self.word()
            self.skip(element * self.word())
        else:
            size = int(self._take("<Q"))
            self.skip(size)

    def _take(self, layout: str) -> Any:
        try:
            (value,) = struct.unpack_from(layout, self._state, self._offset)
        except struct.error:
            raise RuntimeFailure(
                "the saved state ends early: this version of llama.cpp lays it out differently"
            ) from None
        self._offset += struct.calcsize(layout)
        return value
