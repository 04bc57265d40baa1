"""The damage tasks and their puzzles: questions whose answers suffer where a cache is damaged.

All wording is our own, and everything is drawn from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING

from ggufrope.evals.puzzles.arithmetic import arithmetic
from ggufrope.evals.puzzles.code_bugs import code_bugs
from ggufrope.evals.puzzles.graph_walks import graph_walks
from ggufrope.evals.puzzles.ordered_copies import ordered_copies
from ggufrope.evals.puzzles.tool_calls import tool_calls

if TYPE_CHECKING:
    from ggufrope.evals.puzzles.puzzle import Group
    from ggufrope.evals.task import TaskName

_GROUPS: Mapping[str, Callable[[Random], Iterator[Group]]] = {
    "arithmetic": arithmetic,
    "tool-call": tool_calls,
    "ordered-copies": ordered_copies,
    "graph-walk": graph_walks,
    "code-bug": code_bugs,
}
DAMAGE_TASKS: tuple[TaskName, ...] = tuple(_GROUPS)  # type: ignore[arg-type]
"""The tasks that are made of puzzles."""


def groups(task: TaskName, rng: Random) -> Iterator[Group]:
    """Yield the groups of a task without end. Raises KeyError for a task without puzzles."""
    return _GROUPS[task](rng)
