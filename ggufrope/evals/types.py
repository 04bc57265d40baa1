"""What every evaluation is made of: a task, the samples it asks, and scores.

A task is built from its plan alone and is run on any model. It yields one result a cell as the
cell finishes, so that the caller can store it before the next one is begun; given the keys of
results already stored, it yields only the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ggufrope.lm import LanguageModel, OpenContext, Progress

NOT_FINITE = "the model's logits are not finite numbers"
"""The reason of a score that a model gone wrong has not got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number, or None with the reason why there is none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt in tokens, and the answers that are right: alternatives or parts, as the task's
    metric has it."""

    prompt: tuple[int, ...]
    answers: tuple[str, ...]


class Result(Protocol):
    """One finished cell."""

    @property
    def key(self) -> str:
        """The cell, unique within its task and the same in every run of the same plan."""
        ...

    @property
    def score(self) -> Score:
        """The figure the task is judged by."""
        ...


R_co = TypeVar("R_co", bound=Result, covariant=True)


class Task(Protocol[R_co]):
    """A question put to a model in many cells."""

    @property
    def name(self) -> str: ...

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens that `run` will report to `progress`, known before the first is evaluated.

        Raises RequestError where the plan cannot be carried out with this tokenizer.
        """
        ...

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[R_co]:
        """Yield each result as it is known, but for the keys in `done`.

        A BackendError becomes the reason of the cells it concerns; RequestError is raised before
        anything is evaluated.
        """
        ...


def keys_of(part: str, done: Collection[str]) -> frozenset[str]:
    """Of the keys of a task made of parts, "part/key", those of one part as it knows them."""
    prefix = f"{part}/"
    return frozenset(key.removeprefix(prefix) for key in done if key.startswith(prefix))
