"""From logits to log-probabilities, for vocabularies of hundreds of thousands.

Rows are processed in blocks that fit a core's cache, in single precision and with no copy of the
whole batch. Blocks are spread over threads: numpy releases the interpreter lock meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""`[n, n_vocab]`, one row per position."""

_BLOCK_ELEMENTS = 1 << 18
_MOST_THREADS = 8
_EMPTY = np.empty(0, dtype=np.float32)
_kept = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same tokens: arrays `[n]`, log-probabilities in nat.

    `divergence` is KL(base || variant); `base` and `variant` are the log-probabilities of the token
    that came next; `same_top` is whether both rank the same token first.
    """

    divergence: NDArray[np.float64]
    base: NDArray[np.float64]
    variant: NDArray[np.float64]
    same_top: NDArray[np.bool_]


def log_probabilities(logits: Logits, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-probability of `tokens[i]` under row `i`, in nat, `[n]`."""
    out = np.empty(len(tokens), dtype=np.float64)

    def block(rows: slice) -> None:
        row_logits = logits[rows]
        maximum = row_logits.max(axis=1)
        (shifted,) = _workspace(1, row_logits.shape)
        np.subtract(row_logits, maximum[:, None], out=shifted)
        np.exp(shifted, out=shifted)
        log_sum = np.log(shifted.sum(axis=1).astype(np.float64))
        out[rows] = _chosen(row_logits, tokens[rows]) - maximum - log_sum

    _in_blocks(block, logits.shape)
    return out


def compare(base: Logits, variant: Logits, tokens: NDArray[np.int64]) -> Comparison:
    """Return both models' log-probabilities of `tokens`, and their divergence at each position.

    KL(p || q) = sum p (log p - log q) = sum p (a - b) + logsumexp(b) - logsumexp(a), with the
    logits a and b each shifted by their maximum, so that near-equal models lose no digits.
    """
    n = len(tokens)
    out = Comparison(
        divergence=np.empty(n), base=np.empty(n), variant=np.empty(n), same_top=np.empty(n, bool)
    )

    def block(rows: slice) -> None:
        a, b, chosen = base[rows], variant[rows], tokens[rows]
        top_a, top_b = a.argmax(axis=1), b.argmax(axis=1)
        max_a, max_b = a.max(axis=1), b.max(axis=1)
        shifted_a, shifted_b, weights = _workspace(3, a.shape)
        np.subtract(a, max_a[:, None], out=shifted_a, casting="same_kind")
        np.subtract(b, max_b[:, None], out=shifted_b, casting="same_kind")
        np.exp(shifted_a, out=weights)
        log_sum_a = np.log(weights.sum(axis=1).astype(np.float64))
        np.subtract(shifted_a, shifted_b, out=shifted_a)
        cross = np.einsum("ij,ij->i", weights, shifted_a).astype(np.float64)
        np.exp(shifted_b, out=shifted_b)
        log_sum_b = np.log(shifted_b.sum(axis=1).astype(np.float64))
        out.divergence[rows] = np.maximum(cross / np.exp(log_sum_a) + log_sum_b - log_sum_a, 0)
        out.base[rows] = _chosen(a, chosen) - max_a - log_sum_a
        out.variant[rows] = _chosen(b, chosen) - max_b - log_sum_b
        out.same_top[rows] = top_a == top_b

    _in_blocks(block, base.shape)
    return out


def _chosen(logits: Logits, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return column `tokens[i]` of row `i`."""
    return logits[np.arange(len(tokens)), tokens].astype(np.float64)


def _workspace(count: int, shape: tuple[int, ...]) -> tuple[Logits, ...]:
    """Return arrays to write into, kept by each thread: new ones cost more than the arithmetic."""
    size = count * shape[0] * shape[1]
    if getattr(_kept, "array", _EMPTY).size < size:
        _kept.array = np.empty(size, dtype=np.float32)
    return tuple(_kept.array[:size].reshape(count, *shape))


def _in_blocks(work: Callable[[slice], None], shape: tuple[int, ...]) -> None:
    """Call `work` for every block of rows. Logits that are not finite give NaN, not warnings."""

    def quietly(rows: slice) -> None:
        with np.errstate(invalid="ignore"):
            work(rows)

    blocks = list(_blocks(*shape))
    if len(blocks) == 1:
        quietly(blocks[0])
    else:
        for _ in _pool().map(quietly, blocks):
            pass


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    height = max(1, _BLOCK_ELEMENTS // columns)
    return (slice(start, start + height) for start in range(0, rows, height))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1))
