"""The forward pass of small decoders in numpy, with the attention that a prediction describes.

It is written from the papers, not from llama.cpp: rotation, attention factor, attention scale and
temperature are taken from an `EffectiveRope`, so that equal logits prove the prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ggufrope.rope.effective import EffectiveRope, LayerGroup

Array = NDArray[np.float64]
EPSILON = 1e-5


def logits(path: Path, rope: EffectiveRope, tokens: Sequence[int], positions: Array) -> Array:
    """Return the logits after each token, `[tokens, vocabulary]`."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
    heads = int(reader.fields[f"{arch}.attention.head_count"].contents())
    layers = int(reader.fields[f"{arch}.block_count"].contents())
    state = weights["token_embd.weight"][list(tokens)]
    for layer in range(layers):
        own = {
            name.removeprefix(f"blk.{layer}.").removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        group = rope.group(layer)
        inputs = _norm(state, own["attn_norm"])
        if "attn_kv_a_mqa" in own:
            state = state + _latent(own, inputs, heads, group, positions)
        else:
            unit = arch == "llama4"
            state = state + _grouped(own, inputs, heads, group, positions, unit=unit)
        hidden = _norm(state, own["ffn_norm"])
        gate = hidden @ own["ffn_gate"].T
        state = (
            state + (gate / (1 + np.exp(-gate)) * (hidden @ own["ffn_up"].T)) @ own["ffn_down"].T
        )
    return _norm(state, weights["output_norm.weight"]) @ weights["token_embd.weight"].T


def _grouped(
    own: dict[str, Array],
    state: Array,
    heads: int,
    group: LayerGroup,
    positions: Array,
    *,
    unit: bool,
) -> Array:
    """Return grouped-query attention with one key head.

    With `unit`, queries and keys that rotate are normalized after it, as Llama 4's L2 norm does.
    """
    queries = (state @ own["attn_q"].T).reshape(len(state), heads, -1)
    key, value = state @ own["attn_k"].T, state @ own["attn_v"].T
    if group.inverse_frequencies:
        queries = np.stack([_turn(queries[:, h], group, positions) for h in range(heads)], axis=1)
        key = _turn(key, group, positions)
        if unit:
            queries, key = _norm(queries, np.ones(1)), _norm(key, np.ones(1))
    scores = np.einsum("qhd,kd->hqk", queries, key)
    weights = _softmax(scores / np.sqrt(key.shape[-1]), group, positions)
    values: Array = np.einsum("hqk,kd->qhd", weights, value)
    return _output(values, own)


def _latent(
    own: dict[str, Array], state: Array, heads: int, group: LayerGroup, positions: Array
) -> Array:
    """Return multi-head latent attention (DeepSeek-V2, section 2.1)."""
    rotary = 2 * len(group.inverse_frequencies)
    latent = own["attn_kv_a_norm"].size
    compressed = _norm(state @ own["attn_q_a"].T, own["attn_q_a_norm"])
    queries = (compressed @ own["attn_q_b"].T).reshape(len(state), heads, -1)
    still, turning = queries[..., :-rotary], queries[..., -rotary:]
    both = state @ own["attn_kv_a_mqa"].T
    key = _norm(both[:, :latent], own["attn_kv_a_norm"])
    rotated = _turn(both[:, latent:], group, positions)
    turning = np.stack([_turn(turning[:, h], group, positions) for h in range(heads)], axis=1)
    scores = np.einsum("qhn,hln,kl->hqk", still, own["attn_k_b"], key)
    scores += np.einsum("qhr,kr->hqk", turning, rotated)
    weights = _softmax(scores / np.sqrt(queries.shape[-1]), group, positions)
    values: Array = np.einsum("hqk,kl,hvl->qhv", weights, key, own["attn_v_b"])
    return _output(values, own)


def _output(values: Array, own: dict[str, Array]) -> Array:
    """Join the heads of `[tokens, heads, head_size]` and multiply by the output matrix."""
    joined: Array = values.reshape(len(values), -1) @ own["attn_output"].T
    return joined


def _turn(values: Array, group: LayerGroup, positions: Array) -> Array:
    """Rotate pairs of adjacent values, `[tokens, n_rot]`, and multiply by the attention factor."""
    angle = positions[:, None] * np.array(group.inverse_frequencies)
    turned = (values[:, 0::2] + 1j * values[:, 1::2]) * np.exp(1j * angle) * group.magnitude
    return np.stack([turned.real, turned.imag], axis=-1).reshape(values.shape)


def _softmax(scores: Array, group: LayerGroup, positions: Array) -> Array:
    scores = scores * (1.0 if group.attention_scale is None else group.attention_scale)
    if group.temperature is not None:
        scores = scores * np.array([group.temperature.at(int(p)) for p in positions])[None, :, None]
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    spread: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    spread /= spread.sum(axis=-1, keepdims=True)
    return spread


def _norm(state: Array, weight: Array) -> Array:
    lengths: Array = np.sqrt((state**2).mean(axis=-1, keepdims=True) + EPSILON)
    return state / lengths * weight
