"""How branches become batches: a pure plan, which a context then carries out.

Every candidate answer gets a sequence of its own, forked from the trunk. The tokens of a prompt
belong to the sequences of all its answers at once, so they are evaluated and stored once; the
last token of an answer is only predicted, never evaluated. So one group costs
`len(prompt) + sum(len(answer) - 1)` cells a branch, however long the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope.errors import DecodeError, WishError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A branch with some or all of its answers."""

    branch: int
    first_answer: int
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def cells(self) -> int:
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


def plan(
    branches: Sequence[Branch], *, start: int, max_sequences: int, max_cells: int
) -> Iterator[Group]:
    """Groups that hold all answers of all branches, the first token of each at position `start`.

    Raises WishError for an empty prompt or answer, DecodeError where a single answer needs more
    cells than the cache has left.
    """
    parts = _parts(branches, start=start, max_sequences=max_sequences, max_cells=max_cells)
    together: list[_Part] = []
    for part in parts:
        grown = [*together, part]
        n_sequences = sum(len(each.answers) for each in grown)
        if n_sequences > max_sequences or sum(each.cells for each in grown) > max_cells:
            yield _group(together, start)
            grown = [part]
        together = grown
    if together:
        yield _group(together, start)


def _parts(
    branches: Sequence[Branch], *, start: int, max_sequences: int, max_cells: int
) -> Iterator[_Part]:
    """Each branch in as few parts as the limits allow."""
    for index, branch in enumerate(branches):
        if not branch.prompt or not all(branch.answers):
            raise WishError(f"branch {index}: a prompt and each answer need at least one token")
        part = _Part(branch=index, first_answer=0, prompt=branch.prompt, answers=())
        for answer in branch.answers:
            grown = replace(part, answers=(*part.answers, answer))
            if part.answers and (len(grown.answers) > max_sequences or grown.cells > max_cells):
                yield part
                first = part.first_answer + len(part.answers)
                grown = replace(part, first_answer=first, answers=(answer,))
            if grown.cells > max_cells:
                raise DecodeError(
                    f"a question of {grown.cells} tokens does not fit after {start} tokens: the "
                    f"context has {max_cells} left; ask for a larger context"
                )
            part = grown
        if part.answers:
            yield part


def _group(parts: Iterable[_Part], start: int) -> Group:
    entries: list[Entry] = []
    candidates: list[Candidate] = []
    for part in parts:
        first = len(candidates) + 1
        sequences = tuple(range(first, first + len(part.answers)))
        *unread, last = _run(part.prompt, start, sequences)
        entries += (*(replace(entry, output=False) for entry in unread), last)
        asked = len(entries) - 1
        for offset, (answer, own) in enumerate(zip(part.answers, sequences, strict=True)):
            candidates.append(
                Candidate(
                    branch=part.branch,
                    answer=part.first_answer + offset,
                    entries=(asked, *range(len(entries), len(entries) + len(answer) - 1)),
                    tokens=answer,
                )
            )
            entries += _run(answer[:-1], start + len(part.prompt), (own,))
    return Group(entries=tuple(entries), candidates=tuple(candidates))


def _run(tokens: Sequence[int], start: int, sequences: tuple[int, ...]) -> list[Entry]:
    """Tokens one after another, all of them read."""
    return [
        Entry(token=token, position=start + index, sequences=sequences, output=True)
        for index, token in enumerate(tokens)
    ]
