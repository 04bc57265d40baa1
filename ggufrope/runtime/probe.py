"""The rotation that llama.cpp really applies, measured in every layer through its public API.

A token that attends only to itself has the same key at any position but for the rotation. So one
token is evaluated at position 0 and at 1, 2, 4, … (each in a sequence of its own), and the keys
are read back from an F32 cache: with `z` a pair of values of a head as a complex number,
`z(p) · conj(z(0))`, summed over heads and tokens, has the argument `p · theta`. The argument is
unwrapped upward, where each doubling of `p` halves the error. The magnitude (the attention factor
of YaRN and LongRoPE) is the norm of the rotated values against a second context that does not
scale.

The keys come out of a sequence's saved state (`states.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import BackendError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.runtime import library
from ggufrope.runtime.batch import decode
from ggufrope.runtime.context import Context
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.states import (
    Keys,
    StateLayout,
    cache_layers,
    key_rows,
    saved_state,
    state_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.runtime.model import Model

PairStyle: TypeAlias = Literal["norm", "neox"]

# enum llama_rope_type, include/llama.h
_PAIR_STYLES: dict[int, PairStyle] = {0: "norm", 2: "neox", 8: "neox", 40: "neox"}
_MULTI_AXIS = (8, 40)
_MULTI_AXIS_CELL_EXTRA = 12  # struct llama_kv_cell_ext, src/llama-kv-cells.h

_TOKENS = 3
_DOUBLINGS = 24
"""Positions go up to 2^23, the last power of two below which float32 counts every integer."""
_MOST_TURN = 32.0
"""Radians beyond which float32 sines lose more than a larger position gains."""
_STILL = 1e-4
"""A turn, in radians at the largest position, below which a pair does not rotate."""
_RIGID = 1e-3
"""How far from a pure rotation keys may be; beyond it the method does not apply."""
_PARALLEL = 1e-9
"""How far from 1 the cosine of scaled and unscaled keys may be. The error of a norm is below its
square root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLayer:
    """The rotation measured in one layer.

    `inverse_frequencies` has `n_rot/2` numbers in rad/token, none where the layer does not rotate.
    `magnitude` multiplies rotated keys; None where the keys do not determine it.
    """

    layer: int
    inverse_frequencies: tuple[float, ...]
    magnitude: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The layers that have keys, in order, measured for a context of `context_tokens`."""

    pairs: PairStyle
    context_tokens: int
    layers: tuple[ProbeLayer, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A measurement compared with a prediction, in frequencies and magnitudes.

    `relative_errors` has each measured layer with its largest error, which is infinite where the
    numbers of rotary dimensions differ.
    """

    agrees: bool
    largest_relative_error: float
    relative_errors: tuple[tuple[int, float], ...]


def probe(
    model: Model, *, context_tokens: int | None = None, rope: RopeOverrides | None = None
) -> Probe:
    """Measure the rotation in a context of `context_tokens` under `rope`.

    None is the context length of the file. The length matters only for models with long and short
    factors, and a small context stands in for a large one on the same side of the original length.
    Raises BackendError with the reason where the method does not apply.
    """
    pairs = _require_applicable(model)
    rope = rope or RopeOverrides()
    tokens = context_tokens or model.n_ctx_train
    # Without flash attention: its kernels on GPUs let the rotation leak into the next layer's keys.
    settings = ContextSettings(
        n_ctx=_stand_in(model, tokens),
        type_k="f32",
        type_v="f32",
        flash_attention=False,
        rope=rope,
    )
    positions = (0, *(2**power for power in range(_DOUBLINGS)))
    measured = _measure(model, settings, positions)
    plain = _measure(model, replace(settings, rope=_unscaled(model, rope)), positions)
    if not measured:
        raise BackendError(f"{model.path.name}: nothing to measure: no layer keeps keys")
    layers, notes = [], []
    for layer, found in sorted(measured.items()):
        head_size, rotary = _rotary_part(model, layer, found, pairs)
        turned, still = (
            _as_complex(_heads(keys, head_size)[..., rotary], pairs)
            for keys in (found, plain[layer])
        )
        rotates = rotary.stop > rotary.start
        magnitude = _magnitude(turned[0], still[0]) if rotates else 1.0
        if magnitude is None:
            notes.append(f"layer {layer}: its keys depend on the magnitude in the layers before")
        layers.append(
            ProbeLayer(
                layer=layer,
                inverse_frequencies=tuple(_frequencies(turned, positions).tolist()),
                magnitude=magnitude,
            )
        )
    return Probe(pairs=pairs, context_tokens=tokens, layers=tuple(layers), notes=tuple(notes))


def compare(measured: Probe, predicted: EffectiveRope, *, tolerance: float = 1e-4) -> Agreement:
    """Compare a measurement with a prediction; relative errors up to `tolerance` agree.

    Whole positions show a turn only modulo 2π, so frequencies are compared modulo 2π too. What was
    measured in no layer agrees with nothing.
    """
    errors = []
    for layer in measured.layers:
        group = predicted.group(layer.layer)
        error = _relative_error(layer.inverse_frequencies, group.inverse_frequencies)
        if layer.magnitude is not None:
            error = max(error, abs(layer.magnitude / group.magnitude - 1))
        errors.append((layer.layer, error))
    largest = max((error for _, error in errors), default=0.0)
    return Agreement(
        agrees=bool(errors) and largest <= tolerance,
        largest_relative_error=largest,
        relative_errors=tuple(errors),
    )


def _require_applicable(model: Model) -> PairStyle:
    """Return the pair style; raise BackendError where keys do not show the rotation."""
    llama = library.load()
    name = f"{model.path.name} ({model.architecture})"
    style = _PAIR_STYLES.get(int(llama.llama_model_rope_type(model.handle)))
    if style is None:
        raise BackendError(f"{name}: the architecture has no rotary embedding to measure")
    if not model.purpose.keeps_cache:
        raise BackendError(
            f"{name}: nothing to measure: it is {model.purpose.reason}, and llama.cpp keeps no "
            "keys of it"
        )
    if llama.llama_model_has_encoder(model.handle):
        raise BackendError(f"{name}: an encoder keeps no keys to measure")
    if llama.llama_model_is_recurrent(model.handle):
        raise BackendError(f"{name}: a recurrent model keeps no keys to measure")
    return style


def _stand_in(model: Model, tokens: int) -> int:
    """Return the smallest context that llama.cpp gives the same factors as one of `tokens`."""
    declared = model.setting(f"{model.architecture}.rope.scaling.original_context_length")
    original = int(model.reported.get("n_ctx_orig_yarn") or declared or model.n_ctx_train)
    rounded = -(-tokens // 256) * 256
    return 256 if rounded <= original else original + 1


def _unscaled(model: Model, rope: RopeOverrides) -> RopeOverrides:
    """Return overrides under which keys keep their norm: no YaRN, the file's factor undone."""
    declared = model.setting(f"{model.architecture}.rope.scaling.attn_factor")
    return replace(
        rope,
        scaling_type="none",
        yarn_ext_factor=0.0,
        yarn_attn_factor=1.0 if declared is None else 1 / float(declared),
    )


# Measuring ----------------------------------------------------------------------------------------


def _measure(model: Model, settings: ContextSettings, positions: Sequence[int]) -> dict[int, Keys]:
    """Measure keys `[positions, tokens, kv_heads * head_size]` by layer."""
    with library.capture(debug=True) as log, Context(model, settings) as context:
        layout = _layout(model, log.lines, state_version(context.handle))
        measured = [
            rows
            for token in _probe_tokens(model)
            for rows in _keys_at(context, token, positions, layout)
        ]
    return {
        layer: np.stack([rows[layer] for rows in measured])
        .reshape(-1, len(positions), row.size)
        .swapaxes(0, 1)
        for layer, row in measured[0].items()
    }


def _keys_at(
    context: Context, token: int, positions: Sequence[int], layout: StateLayout
) -> Iterator[dict[int, Keys]]:
    """Yield the keys of one token at each position, by layer."""
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
            yield key_rows(saved_state(context.handle, sequence), layout)


def _probe_tokens(model: Model) -> tuple[int, ...]:
    """Return tokens spread over the vocabulary: a pair that is small in one is not in another."""
    return tuple(model.n_vocab * n // (_TOKENS + 1) for n in range(1, _TOKENS + 1))


def _layout(model: Model, log_lines: Sequence[str], version: int) -> StateLayout:
    rope_type = library.load().llama_model_rope_type(model.handle)
    return StateLayout(
        version=version,
        caches=cache_layers(log_lines),
        cell_extra=_MULTI_AXIS_CELL_EXTRA if rope_type in _MULTI_AXIS else 0,
        row_widths=_row_widths(model),
        recurrent=model.has_state,
        values=not model.attention_size("key_length_mla"),
    )


def _row_widths(model: Model) -> dict[int, int]:
    """Return the width of a K row by layer, as llama.cpp logged it: one number, or a list."""
    numbers = [int(word) for word in re.findall(r"\d+", model.reported.get("n_embd_k_gqa", ""))]
    if len(numbers) == 1:
        numbers *= model.n_layer
    return dict(enumerate(numbers))


# Keys to frequencies ------------------------------------------------------------------------------


def _rotary_part(model: Model, layer: int, keys: Keys, pairs: PairStyle) -> tuple[int, slice]:
    """Return the head size of a layer and which values of a head rotate, which may be none.

    They are the first ones, or with multi-head latent attention the last ones of the one row.
    """
    if np.allclose(keys, keys[0], rtol=0, atol=_STILL * np.abs(keys).max()):
        return model.head_size, slice(0, 0)
    reported = _reported(model, "n_embd_head_k", "n_embd_head_k_swa")
    for head_size in reported or (model.head_size,):
        if keys.shape[-1] % head_size:
            continue
        heads = _heads(keys, head_size)
        for n_rot in (*_reported(model, "n_rot", "n_rot_swa"), head_size):
            for start in dict.fromkeys((0, head_size - n_rot)):
                rotary = slice(start, start + n_rot)
                if start >= 0 and _is_rotation(heads, rotary, pairs):
                    return head_size, rotary
    raise BackendError(
        f"{model.path.name}: in layer {layer} the keys of one token at two positions are not "
        f"rotations of each other, so the probe does not apply to {model.architecture}"
    )


def _reported(model: Model, *names: str) -> tuple[int, ...]:
    """Return the numbers that llama.cpp logged under these names, each once."""
    words = (model.reported.get(name, "") for name in names)
    return tuple(dict.fromkeys(int(word) for word in words if word.isdigit()))


def _is_rotation(heads: Keys, rotary: slice, pairs: PairStyle) -> bool:
    """Return whether the values of `rotary` only rotate from position to position.

    `heads` is `[positions, tokens, heads, head_size]`. Each pair has to rotate alike in all heads
    and tokens, and the other values have to stay.
    """
    kept = np.delete(heads, rotary, axis=-1)
    if not np.allclose(kept, kept[0], rtol=0, atol=_STILL * np.abs(heads).max()):
        return False
    turned = _as_complex(heads[..., rotary], pairs)
    energy = float((np.abs(turned[0]) ** 2).sum())
    coherent = np.abs((turned * turned[0].conj()).sum(axis=(1, 2))).sum(axis=-1)
    return bool((np.abs(coherent / energy - 1) < _RIGID).all())


def _heads(keys: Keys, head_size: int) -> Keys:
    """Split `[positions, tokens, width]` into `[positions, tokens, heads, head_size]`."""
    return keys.reshape(*keys.shape[:2], -1, head_size)


def _as_complex(values: Keys, pairs: PairStyle) -> NDArray[np.complex128]:
    """Pair the values of the last axis, `[..., n_rot]` to `[..., n_rot/2]`."""
    wide = values.astype(np.float64)
    if pairs == "norm":
        return wide[..., 0::2] + 1j * wide[..., 1::2]
    half = wide.shape[-1] // 2
    return wide[..., :half] + 1j * wide[..., half:]


def _frequencies(turned: NDArray[np.complex128], positions: Sequence[int]) -> NDArray[np.float64]:
    """Return rad/token of each pair; `turned` is `[positions, tokens, heads, n_rot/2]`.

    Positions are 0, 1, 2, 4, …
    """
    angles = np.angle((turned * turned[0].conj()).sum(axis=(1, 2)))
    frequencies = angles[1].copy()
    for position, angle in zip(positions[2:], angles[2:], strict=True):
        expected = frequencies * position
        turns = np.round((expected - angle) / (2 * np.pi))
        refined = (angle + 2 * np.pi * turns) / position
        frequencies = np.where(np.abs(expected) <= _MOST_TURN, refined, frequencies)
    return np.where(np.abs(frequencies) * positions[-1] < _STILL, 0.0, frequencies)


def _magnitude(scaled: NDArray[np.complex128], plain: NDArray[np.complex128]) -> float | None:
    """Return the factor between two sets of keys; None where they differ by more than a factor."""
    norms = float(np.linalg.norm(scaled)), float(np.linalg.norm(plain))
    alike = float((scaled * plain.conj()).sum().real) / (norms[0] * norms[1])
    return norms[0] / norms[1] if alike > 1 - _PARALLEL else None


def _relative_error(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the largest relative error; a frequency of 0 agrees only with 0."""
    if len(measured) != len(predicted):
        return math.inf
    return max(map(_error, measured, predicted), default=0.0)


def _error(measured: float, predicted: float) -> float:
    apart = abs(math.remainder(measured - predicted, 2 * math.pi))
    if apart == 0:
        return 0.0
    return apart / abs(predicted) if predicted else math.inf
