"""One `llama_decode` call: arrays in, logits out, its return code made an error."""

from __future__ import annotations

import ctypes
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import DecodeError, RequestError
from ggufrope.runtime import library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ggufrope.lm import Branch


# How branches become batches: a pure plan, which a context then carries out.
#
# Every candidate answer gets a sequence of its own, forked from the trunk: a prompt, then the
# answer without its last token, which is only predicted. The sequences of a group make a tree:
# where they begin alike, be it with a prompt, a part of one or of an answer too, their tokens
# belong to all of them at once and are evaluated and stored once, however long the trunk.


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One token to evaluate: its position, the sequences it belongs to, whether logits are read.

    Sequences are numbered from 1 in each group; 0 is the trunk.
    """

    token: int
    position: int
    sequences: tuple[int, ...]
    output: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer of a group: token number i is predicted by entry number `entries[i]`."""

    branch: int
    answer: int
    entries: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Entries evaluated before their sequences are dropped together."""

    entries: tuple[Entry, ...]
    candidates: tuple[Candidate, ...]

    @property
    def sequences(self) -> range:
        """One for each candidate."""
        return range(1, len(self.candidates) + 1)


def plan(
    branches: Sequence[Branch], *, start: int, max_sequences: int, max_cells: int
) -> Iterator[Group]:
    """Groups that hold all answers of all branches, the first token of each at position `start`.

    Raises RequestError for an empty prompt or answer, DecodeError where a single answer needs more
    cells than the cache has left.
    """
    tree = _Tree(start)
    for index, branch in enumerate(branches):
        if not branch.prompt or not all(branch.answers):
            raise RequestError(f"branch {index}: a prompt and each answer need at least one token")
        for number, answer in enumerate(branch.answers):
            path = (*branch.prompt, *answer[:-1])
            if len(path) > max_cells:
                raise DecodeError(
                    f"a question of {len(path)} tokens does not fit after {start} tokens: the "
                    f"context has {max_cells} left; ask for a larger context"
                )
            known = tree.known(path)
            cells = tree.cells + len(path) - len(known)
            if len(tree.candidates) == max_sequences or cells > max_cells:
                yield tree.group()
                tree, known = _Tree(start), []
            read = tree.grow(path, known)[len(branch.prompt) - 1 :]
            tree.candidates.append(
                Candidate(branch=index, answer=number, entries=tuple(read), tokens=answer)
            )
    if tree.candidates:
        yield tree.group()


@dataclass(frozen=True, slots=True)
class _Node:
    """A token that comes after the same tokens in all of its sequences."""

    token: int
    position: int
    sequences: list[int]


_ROOT = -1


class _Tree:
    """A group in the making: its nodes numbered in the order of evaluation."""

    def __init__(self, start: int) -> None:
        self.candidates: list[Candidate] = []
        self._start = start
        self._nodes: list[_Node] = []
        self._children: dict[tuple[int, int], int] = {}  # (parent, token): child

    @property
    def cells(self) -> int:
        return len(self._nodes)

    def known(self, path: Sequence[int]) -> list[int]:
        """The nodes of as much of the path as there is."""
        nodes: list[int] = []
        node = _ROOT
        for token in path:
            child = self._children.get((node, token))
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes

    def grow(self, path: Sequence[int], known: Sequence[int]) -> list[int]:
        """The nodes of the path, of which some are `known`, in the next candidate's sequence."""
        nodes = list(known)
        for token in path[len(nodes) :]:
            child = len(self._nodes)
            self._children[nodes[-1] if nodes else _ROOT, token] = child
            self._nodes.append(_Node(token, self._start + len(nodes), []))
            nodes.append(child)
        for node in nodes:
            self._nodes[node].sequences.append(len(self.candidates) + 1)
        return nodes

    def group(self) -> Group:
        read = {node for candidate in self.candidates for node in candidate.entries}
        entries = (
            Entry(
                token=node.token,
                position=node.position,
                sequences=tuple(node.sequences),
                output=number in read,
            )
            for number, node in enumerate(self._nodes)
        )
        return Group(entries=tuple(entries), candidates=tuple(self.candidates))


# Ctrl-C during a long call into llama.cpp.


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C only makes the yielded function say True; leaving it raises
    KeyboardInterrupt.

    An exception cannot cross llama.cpp's frames, so its callbacks ask, and end the call. This
    needs the main thread, and does nothing where a program handles SIGINT its own way.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted.is_set():
            raise KeyboardInterrupt


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
