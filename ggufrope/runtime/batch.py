"""Batches of tokens: how branches are planned into batches, and how one batch is evaluated.

Planning is pure. Each candidate answer gets a sequence of its own, forked from the trunk: a
prompt, then the answer without its last token, which is only predicted. The sequences of a group
make a tree. Where they begin with the same tokens, whether those are of a prompt or of an answer,
these tokens belong to all of them, and are evaluated and stored once. Branches with different
splices see different trunks, and share nothing.

Evaluating is one call of `llama_decode`: arrays in, logits out, and an error for its return code.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ggufrope.errors import DecodeError, RequestError
from ggufrope.runtime import library

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ggufrope.lm import Branch, Splice


_INTERRUPTIBLE_TOKENS = 32
"""In batches at least this long, Ctrl-C is looked for at every graph node; a shorter batch would
be slowed down."""

_MEANINGS = {
    1: "no free cells in the KV cache",
    2: "interrupted",
    -1: "the batch is invalid",
    -2: "not enough memory for the batch",
    -3: "the computation failed",
}  # include/llama.h, llama_decode


# Planning -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One token to evaluate: its position, its sequences, and whether its logits are read.

    Sequences are numbered from 1 in each group; 0 is the trunk.
    """

    token: int
    position: int
    sequences: tuple[int, ...]
    output: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer of a group; `tokens[i]` is predicted by entry number `entries[i]`."""

    branch: int
    answer: int
    entries: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Sequences that see the trunk with the same splices."""

    splices: tuple[Splice, ...]
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Entries that are evaluated together, after the splices of their forks, and whose sequences
    are removed together."""

    forks: tuple[Fork, ...]
    entries: tuple[Entry, ...]
    candidates: tuple[Candidate, ...]


def plan(
    branches: Sequence[Branch], *, start: int, max_sequences: int, max_cells: int
) -> Iterator[Group]:
    """Yield groups that together hold all answers of all branches.

    The first token of each prompt is at position `start`. Raises RequestError for an empty prompt
    or answer and for splices outside the trunk or over each other, DecodeError where one answer
    alone needs more than `max_cells` KV cells.
    """
    tree = _Tree(start)
    for index, branch in enumerate(branches):
        if not branch.prompt or not all(branch.answers):
            raise RequestError(f"branch {index}: a prompt and each answer need at least one token")
        check_splices(branch.splices, start)
        spliced = sum(len(splice.tokens) for splice in branch.splices)
        for number, answer in enumerate(branch.answers):
            path = (*branch.prompt, *answer[:-1])
            if spliced + len(path) > max_cells:
                raise DecodeError(
                    f"a question of {spliced + len(path)} tokens does not fit after {start} "
                    f"tokens: the context has {max_cells} left; set n_ctx higher"
                )
            known = tree.known(path, branch.splices)
            new = len(path) - len(known) + (0 if tree.has(branch.splices) else spliced)
            if len(tree.candidates) == max_sequences or tree.cells + new > max_cells:
                yield tree.group()
                tree, known = _Tree(start), []
            read = tree.grow(path, known, branch.splices)[len(branch.prompt) - 1 :]
            tree.candidates.append(
                Candidate(branch=index, answer=number, entries=tuple(read), tokens=answer)
            )
    if tree.candidates:
        yield tree.group()


def check_splices(splices: Sequence[Splice], start: int) -> None:
    """Raise RequestError unless the splices are in order within a trunk of `start` tokens."""
    end = 0
    for splice in splices:
        if not splice.tokens or splice.position < end or splice.end > start:
            raise RequestError(
                f"a splice of {len(splice.tokens)} tokens at {splice.position} is not after "
                f"position {end} and within the {start} tokens of the trunk"
            )
        end = splice.end


@dataclass(frozen=True, slots=True)
class _Node:
    """A token that follows the same tokens in all of its sequences."""

    token: int
    position: int
    sequences: list[int]


_Splices: TypeAlias = "tuple[Splice, ...]"


class _Tree:
    """A group being built; its nodes are numbered in the order of evaluation.

    It has a root for each view of the trunk: for branches with the same splices.
    """

    def __init__(self, start: int) -> None:
        self.candidates: list[Candidate] = []
        self._start = start
        self._nodes: list[_Node] = []
        self._forks: dict[_Splices, list[int]] = {}  # the sequences of each view
        self._children: dict[tuple[int | _Splices, int], int] = {}  # (parent or root, token): child

    @property
    def cells(self) -> int:
        """KV cells that the group takes: one for each token that is evaluated."""
        spliced = sum(len(splice.tokens) for splices in self._forks for splice in splices)
        return len(self._nodes) + spliced

    def has(self, splices: _Splices) -> bool:
        """Return whether some candidate sees the trunk with these splices."""
        return splices in self._forks

    def known(self, path: Sequence[int], splices: _Splices) -> list[int]:
        """Return the nodes of the path, as far as they exist."""
        nodes: list[int] = []
        node: int | _Splices = splices
        for token in path:
            child = self._children.get((node, token))
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes

    def grow(self, path: Sequence[int], known: Sequence[int], splices: _Splices) -> list[int]:
        """Add the next candidate's sequence along the path; return the nodes of the path.

        `known` are those that exist.
        """
        nodes = list(known)
        for token in path[len(nodes) :]:
            child = len(self._nodes)
            self._children[nodes[-1] if nodes else splices, token] = child
            self._nodes.append(_Node(token, self._start + len(nodes), []))
            nodes.append(child)
        sequence = len(self.candidates) + 1
        for node in nodes:
            self._nodes[node].sequences.append(sequence)
        self._forks.setdefault(splices, []).append(sequence)
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
        forks = (
            Fork(splices=splices, sequences=tuple(sequences))
            for splices, sequences in self._forks.items()
        )
        return Group(forks=tuple(forks), entries=tuple(entries), candidates=tuple(self.candidates))


# Evaluating ---------------------------------------------------------------------------------------


def decode(
    handle: Any,
    tokens: NDArray[np.int32],
    positions: NDArray[np.int32],
    sequences: Sequence[Sequence[int]],
    outputs: NDArray[np.int8],
) -> None:
    """Evaluate one batch, each token at its position in each of its sequences.

    All arguments are as long as the batch; `outputs` is 1 where logits are read. Raises
    DecodeError, or KeyboardInterrupt for Ctrl-C during a long batch. In either case some of the
    tokens may be in the cache, and the caller has to remove them.
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
    """Return the logits of the last batch, `[rows, n_vocab]`, in the order of its outputs.

    The array is a view of llama.cpp's buffer, which the next batch overwrites.
    """
    pointer = library.load().llama_get_logits(handle)
    return np.ctypeslib.as_array(pointer, shape=(rows, n_vocab))


def log_probabilities_of(
    logits: NDArray[np.float32], rows: NDArray[np.intp], tokens: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return log softmax of `logits[rows]` at `tokens`, in nat, and whether each is the arg max.

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
    """Let Ctrl-C end a long batch inside the block, which then raises KeyboardInterrupt."""
    if n_tokens < _INTERRUPTIBLE_TOKENS:
        yield
        return
    llama = library.load()
    with library.deferred_interrupt() as interrupted:
        callback = llama.ggml_abort_callback(lambda _: interrupted())
        llama.llama_set_abort_callback(handle, callback, None)
        try:
            yield
        finally:
            llama.llama_set_abort_callback(handle, llama.ggml_abort_callback(), None)
