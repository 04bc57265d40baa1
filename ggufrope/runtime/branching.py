"""How branches become batches: a pure plan, which a context then carries out.

Every candidate answer gets a sequence of its own, forked from the trunk: a prompt, then the answer
without its last token, which is only predicted. The sequences of a group make a tree: where they
begin alike, be it with a prompt, a part of one or of an answer too, their tokens belong to all of
them at once and are evaluated and stored once, however long the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.errors import DecodeError, WishError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.runtime.branch import Branch


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

    Raises WishError for an empty prompt or answer, DecodeError where a single answer needs more
    cells than the cache has left.
    """
    tree = _Tree(start)
    for index, branch in enumerate(branches):
        if not branch.prompt or not all(branch.answers):
            raise WishError(f"branch {index}: a prompt and each answer need at least one token")
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
