"""The rotation llama.cpp really applies, measured in every layer through its public API.

A token that attends only to itself has the same key at any position but for the rotation. So one
token is evaluated at position 0 and at 1, 2, 4, … (each in a sequence of its own), and the keys
are read back from an F32 cache: with `z` a pair of values of a head as a complex number,
`z(p) · conj(z(0))`, summed over heads and tokens, has the argument `p · theta`. The argument is
unwrapped upward, where each doubling of `p` halves the error. The magnitude is the norm of the
rotated values against a second context that does not scale.
"""

from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.runtime import library
from ggufrope.runtime.batch import decode
from ggufrope.runtime.context import Context
from ggufrope.runtime.settings import ContextSettings

if TYPE_CHECKING:
    from collections.abc import Sequence


# The keys of one cached token, read back out of a sequence's saved state.
#
# The layout is that of `llama_kv_cache::state_write` (src/llama-kv-cache.cpp); what precedes it is
# the magic and the sequence (src/llama-context.cpp). A model with sliding-window layers writes two
# caches one after the other, first that of its other layers. The state does not say which layers a
# cache holds; the log of its construction does.

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
    BackendError where the state is not laid out as this was written for.
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
        raise BackendError("llama.cpp did not give the state of a sequence")
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
            raise BackendError(
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
            raise BackendError(
                "the saved state ends early: this version of llama.cpp lays it out differently"
            ) from None
        self._offset += struct.calcsize(layout)
        return value


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.runtime.model import Model

    Keys: TypeAlias = NDArray[np.float32]

PairStyle: TypeAlias = Literal["norm", "neox"]


# enum llama_rope_type, include/llama.h
_PAIR_STYLES: dict[int, PairStyle] = {0: "norm", 2: "neox", 8: "neox", 40: "neox"}
_MULTI_AXIS = (8, 40)
_MULTI_AXIS_CELL_EXTRA = 12  # struct llama_kv_cell_ext, src/llama-kv-cells.h

_TOKENS = 3
_DOUBLINGS = 24
"""Positions go up to 2^23, the last power of two below which float32 counts every one."""
_MOST_TURN = 32.0
"""Radians beyond which float32 sines lose more than a larger position gains."""
_STILL = 1e-4
"""A turn, in radians at the largest position, below which a pair does not rotate."""
_RIGID = 1e-3
"""How far from a pure rotation keys may be before the method does not apply."""
_PARALLEL = 1e-9
"""How far from 1 the cosine of scaled and unscaled keys may be: the error of a norm is below its
square root."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeLayer:
    """What was measured in one layer.

    `inverse_frequencies` is float64 `[n_rot/2]` in rad/token, empty where the layer does not
    rotate. `magnitude` multiplies rotated keys; None where it cannot be told from the keys.
    """

    layer: int
    inverse_frequencies: NDArray[np.float64]
    magnitude: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """The layers that keep keys, in order; `context_tokens` is the length they are valid for."""

    pairs: PairStyle
    context_tokens: int
    layers: tuple[ProbeLayer, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A measurement against a prediction, over frequencies and magnitudes.

    `relative_errors` has the largest of each layer measured, infinite where the numbers of
    rotary dimensions differ.
    """

    agrees: bool
    largest_relative_error: float
    relative_errors: tuple[tuple[int, float], ...]


def probe(
    model: Model, *, context_tokens: int | None = None, rope: RopeOverrides | None = None
) -> Probe:
    """Measure the rotation in a context of `context_tokens` (None: the file's) under `rope`.

    The length matters only for models with long and short factors, and a small context stands in
    for a large one on the same side of the original length. Raises BackendError where the method
    does not apply, and says why.
    """
    pairs = _require_applicable(model)
    rope = rope or RopeOverrides()
    tokens = context_tokens or model.n_ctx_train
    settings = ContextSettings(
        n_ctx=_stand_in(model, tokens), type_k="f32", type_v="f16", rope=rope
    )
    positions = (0, *(2**power for power in range(_DOUBLINGS)))
    measured = _measure(model, settings, positions)
    plain = _measure(model, replace(settings, rope=_unscaled(model, rope)), positions)
    layers, notes = [], []
    for layer, found in sorted(measured.items()):
        head_size, n_rot = _rotary_width(model, layer, found, pairs)
        turned, still = (
            _as_complex(_heads(keys, head_size)[..., :n_rot], pairs)
            for keys in (found, plain[layer])
        )
        magnitude = _magnitude(turned[0], still[0]) if n_rot else 1.0
        if magnitude is None:
            notes.append(f"layer {layer}: its keys depend on the magnitude in the layers before")
        layers.append(
            ProbeLayer(
                layer=layer,
                inverse_frequencies=_frequencies(turned, positions),
                magnitude=magnitude,
            )
        )
    return Probe(pairs=pairs, context_tokens=tokens, layers=tuple(layers), notes=tuple(notes))


def compare(measured: Probe, predicted: EffectiveRope, *, tolerance: float = 1e-4) -> Agreement:
    """Hold a measurement against a prediction; relative errors up to `tolerance` agree."""
    errors = []
    for layer in measured.layers:
        group = predicted.group(layer.layer)
        error = _relative_error(layer.inverse_frequencies, group.inverse_frequencies)
        if layer.magnitude is not None:
            error = max(error, abs(layer.magnitude / group.magnitude - 1))
        errors.append((layer.layer, error))
    largest = max((error for _, error in errors), default=0.0)
    return Agreement(
        agrees=largest <= tolerance,
        largest_relative_error=largest,
        relative_errors=tuple(errors),
    )


def _require_applicable(model: Model) -> PairStyle:
    """The pair style; BackendError, with the reason, where keys cannot tell the rotation."""
    llama = library.load()
    name = f"{model.path.name} ({model.architecture})"
    style = _PAIR_STYLES.get(int(llama.llama_model_rope_type(model.handle)))
    if style is None:
        raise BackendError(f"{name}: the architecture has no rotary embedding to measure")
    if llama.llama_model_has_encoder(model.handle):
        raise BackendError(f"{name}: an encoder keeps no keys to measure")
    if model.metadata(f"{model.architecture}.attention.kv_lora_rank"):
        raise BackendError(
            f"{name}: multi-head latent attention caches compressed keys, which the probe "
            f"cannot tell apart"
        )
    if llama.llama_model_is_recurrent(model.handle):
        raise BackendError(f"{name}: a recurrent model keeps no keys to measure")
    return style


def _stand_in(model: Model, tokens: int) -> int:
    """The smallest context that llama.cpp gives the same factors as one of `tokens`."""
    original = int(model.reported.get("n_ctx_orig_yarn", 0))
    rounded = -(-tokens // 256) * 256
    return 256 if rounded <= original else original + 1


def _unscaled(model: Model, rope: RopeOverrides) -> RopeOverrides:
    """Overrides under which keys keep their norm: no YaRN, and the file's factor undone."""
    declared = model.setting(f"{model.architecture}.rope.scaling.attn_factor")
    return replace(
        rope,
        scaling_type="none",
        yarn_ext_factor=0.0,
        yarn_attn_factor=1.0 if declared is None else 1 / float(declared),
    )


def _measure(model: Model, settings: ContextSettings, positions: Sequence[int]) -> dict[int, Keys]:
    """Keys `[positions, tokens, kv_heads * head_size]` by layer."""
    rope_type = library.load().llama_model_rope_type(model.handle)
    extra = _MULTI_AXIS_CELL_EXTRA if rope_type in _MULTI_AXIS else 0
    with library.capture(debug=True) as log, Context(model, settings) as context:
        caches = cache_layers(log.lines)
        measured = [
            rows
            for token in _probe_tokens(model)
            for rows in _keys_at(context, token, positions, caches, cell_extra=extra)
        ]
    return {
        layer: np.stack([rows[layer] for rows in measured])
        .reshape(-1, len(positions), row.size)
        .swapaxes(0, 1)
        for layer, row in measured[0].items()
    }


def _keys_at(
    context: Context,
    token: int,
    positions: Sequence[int],
    caches: Sequence[Sequence[int]],
    *,
    cell_extra: int,
) -> Iterator[dict[int, Keys]]:
    """The keys of one token at each position, by layer."""
    llama = library.load()
    for start in range(0, len(positions), context.n_sequences):
        batch = positions[start : start + context.n_sequences]
        llama.llama_memory_clear(llama.llama_get_memory(context.handle), False)
        decode(
            context.handle,
            np.full(len(batch), token, dtype=np.int32),
            np.array(batch, dtype=np.int32),
            [(sequence,) for sequence in range(len(batch))],
            np.zeros(len(batch), dtype=np.int8),
        )
        for sequence in range(len(batch)):
            yield key_rows(context.handle, sequence, caches, cell_extra=cell_extra)


def _probe_tokens(model: Model) -> tuple[int, ...]:
    """Tokens spread over the vocabulary: a pair that one leaves small, another does not."""
    return tuple(model.n_vocab * n // (_TOKENS + 1) for n in range(1, _TOKENS + 1))


def _rotary_width(model: Model, layer: int, keys: Keys, pairs: PairStyle) -> tuple[int, int]:
    """The head size of a layer and how many values of a head rotate, which may be none."""
    if np.allclose(keys, keys[0], rtol=0, atol=_STILL * np.abs(keys).max()):
        return model.head_size, 0
    for head_size in _reported(model, "n_embd_head_k", "n_embd_head_k_swa"):
        if keys.shape[-1] % head_size:
            continue
        heads = _heads(keys, head_size)
        for n_rot in (*_reported(model, "n_rot", "n_rot_swa"), head_size):
            if n_rot <= head_size and _is_rotation(heads, n_rot, pairs):
                return head_size, n_rot
    raise BackendError(
        f"{model.path.name}: in layer {layer} the keys of one token at two positions are not "
        f"rotations of each other, so the probe does not apply to {model.architecture}"
    )


def _reported(model: Model, *names: str) -> tuple[int, ...]:
    """What llama.cpp printed under these names, each number once."""
    words = (model.reported.get(name, "") for name in names)
    return tuple(dict.fromkeys(int(word) for word in words if word.isdigit()))


def _is_rotation(heads: Keys, n_rot: int, pairs: PairStyle) -> bool:
    """Whether, from position to position, the first `n_rot` values of `[positions, tokens, heads,
    head_size]` only turn, each pair alike in all heads and tokens, and the others stay."""
    kept = heads[..., n_rot:]
    if not np.allclose(kept, kept[0], rtol=0, atol=_STILL * np.abs(heads).max()):
        return False
    turned = _as_complex(heads[..., :n_rot], pairs)
    energy = float((np.abs(turned[0]) ** 2).sum())
    coherent = np.abs((turned * turned[0].conj()).sum(axis=(1, 2))).sum(axis=-1)
    return bool((np.abs(coherent / energy - 1) < _RIGID).all())


def _heads(keys: Keys, head_size: int) -> Keys:
    """`[positions, tokens, width]` to `[positions, tokens, heads, head_size]`."""
    return keys.reshape(*keys.shape[:2], -1, head_size)


def _as_complex(values: Keys, pairs: PairStyle) -> NDArray[np.complex128]:
    """Pairs of the last axis, `[..., n_rot]` to `[..., n_rot/2]`."""
    wide = values.astype(np.float64)
    if pairs == "norm":
        return wide[..., 0::2] + 1j * wide[..., 1::2]
    half = wide.shape[-1] // 2
    return wide[..., :half] + 1j * wide[..., half:]


def _frequencies(turned: NDArray[np.complex128], positions: Sequence[int]) -> NDArray[np.float64]:
    """rad/token of each pair, from `[positions, tokens, heads, n_rot/2]`, positions 0, 1, 2, 4 …"""
    angles = np.angle((turned * turned[0].conj()).sum(axis=(1, 2)))
    frequencies = angles[1].copy()
    for position, angle in zip(positions[2:], angles[2:], strict=True):
        expected = frequencies * position
        turns = np.round((expected - angle) / (2 * np.pi))
        refined = (angle + 2 * np.pi * turns) / position
        frequencies = np.where(np.abs(expected) <= _MOST_TURN, refined, frequencies)
    return np.where(np.abs(frequencies) * positions[-1] < _STILL, 0.0, frequencies)


def _magnitude(scaled: NDArray[np.complex128], plain: NDArray[np.complex128]) -> float | None:
    """The factor between two sets of keys, None where they differ by more than a factor."""
    norms = float(np.linalg.norm(scaled)), float(np.linalg.norm(plain))
    alike = float((scaled * plain.conj()).sum().real) / (norms[0] * norms[1])
    return norms[0] / norms[1] if alike > 1 - _PARALLEL else None


def _relative_error(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """The largest relative error; a frequency of 0 is met only by 0."""
    if measured.shape != predicted.shape:
        return float("inf")
    difference = np.abs(measured - predicted)
    errors = np.divide(
        difference,
        np.abs(predicted),
        out=np.where(difference > 0, np.inf, 0.0),
        where=predicted != 0,
    )
    return float(errors.max(initial=0.0))
