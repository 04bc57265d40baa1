"""One `llama_decode` call: arrays in, logits out, its return code made an error."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import DecodeError
from ggufrope.runtime import library
from ggufrope.runtime.interrupt import deferred_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_INTERRUPTIBLE_TOKENS = 32
"""Batches this long ask at every graph node whether to stop; shorter ones would feel it."""

_MEANINGS = {
    1: "no free cells in the KV cache",
    2: "interrupted",
    -1: "the batch is invalid",
    -2: "memory for the batch could not be had",
    -3: "the computation failed",
}  # include/llama.h, llama_decode


def decode(
    handle: Any,
    tokens: NDArray[np.int32],
    positions: NDArray[np.int32],
    sequences: Sequence[Sequence[int]],
    outputs: NDArray[np.int8],
) -> None:
    """Evaluate one batch, each token at its position in each of its sequences.

    All arguments are as long as the batch; `outputs` is 1 where logits are wanted. Raises
    DecodeError, or KeyboardInterrupt where Ctrl-C came during a long batch. In either case some
    of the tokens may be in the cache: the caller removes them.
    """
    llama = library.load()
    lengths = np.fromiter((len(each) for each in sequences), np.int32, len(tokens))
    flat = np.fromiter((s for each in sequences for s in each), np.int32, int(lengths.sum()))
    offsets = np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))
    pointers = (flat.ctypes.data + offsets * flat.itemsize).astype(np.uintp)
    batch = llama.llama_batch(
        n_tokens=len(tokens),
        token=_pointer(tokens, ctypes.c_int32),
        pos=_pointer(positions, ctypes.c_int32),
        n_seq_id=_pointer(lengths, ctypes.c_int32),
        seq_id=_pointer(pointers, ctypes.POINTER(ctypes.c_int32)),
        logits=_pointer(outputs, ctypes.c_int8),
    )
    with library.capture() as log, _interruptible(handle, len(tokens)):
        code = llama.llama_decode(handle, batch)
    if code != 0:
        reason = log.reason or _MEANINGS.get(code, f"code {code}")
        raise DecodeError(
            f"evaluating {len(tokens)} tokens at position {positions[0]} failed: {reason} "
            f"(llama_decode returned {code})"
        )


def output_logits(handle: Any, rows: int, n_vocab: int) -> NDArray[np.float32]:
    """The logits of the last batch, `[rows, n_vocab]`, in the order of its outputs.

    A view of llama.cpp's buffer, overwritten by the next batch.
    """
    pointer = library.load().llama_get_logits(handle)
    return np.ctypeslib.as_array(pointer, shape=(rows, n_vocab))


def log_probabilities_of(
    logits: NDArray[np.float32], rows: NDArray[np.intp], tokens: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """log softmax of `logits[rows]` at `tokens`, in nat, and whether each token is the arg max.

    `logits` is `[n, n_vocab]`; `rows` and `tokens` are `[k]`. Of equal logits the first is the
    arg max.
    """
    best = logits.argmax(axis=1)
    highest = logits[np.arange(len(logits)), best]
    total = np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64)
    normalizer = highest + np.log(total)
    return logits[rows, tokens] - normalizer[rows], best[rows] == tokens


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


@contextmanager
def _interruptible(handle: Any, n_tokens: int) -> Iterator[None]:
    """Let Ctrl-C end a long batch; KeyboardInterrupt follows."""
    if n_tokens < _INTERRUPTIBLE_TOKENS:
        yield
        return
    llama = library.load()
    with deferred_interrupt() as interrupted:
        callback = llama.ggml_abort_callback(lambda _: interrupted())
        llama.llama_set_abort_callback(handle, callback, None)
        try:
            yield
        finally:
            llama.llama_set_abort_callback(handle, llama.ggml_abort_callback(), None)
