"""Judges candidates: asks the record first, then the bench, and tells whoever watches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.search.fitness import Fitness, evaluate
from ggufrope.search.record import Candidate

if TYPE_CHECKING:
    from ggufrope.rope import RopeScaling
    from ggufrope.search.bench import Bench
    from ggufrope.search.record import Record, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress:
    """One more candidate judged, the `done`-th of about `planned` of its stage.

    `best` is the least loss of the stage so far, None before there is one. `left_seconds` is an
    estimate for this stage and what is known to follow.
    """

    candidate: Candidate
    done: int
    planned: int
    best: float | None
    elapsed_seconds: float
    left_seconds: float


Watch: TypeAlias = Callable[[SearchProgress], None]


class Judge:
    """`elapsed_seconds` counts what every candidate took, also those taken from the record."""

    def __init__(self, bench: Bench, record: Record, watch: Watch | None = None) -> None:
        self._bench = bench
        self._record = record
        self._watch = watch
        self.elapsed_seconds = 0.0

    def course(
        self,
        stage: Stage,
        fitness: Fitness,
        *,
        planned: int,
        later_seconds: float = 0.0,
        deadline_seconds: float = math.inf,
    ) -> Course:
        """A stage to judge about `planned` candidates in."""
        return Course(
            self,
            stage,
            fitness,
            planned=planned,
            later_seconds=later_seconds,
            deadline_seconds=deadline_seconds,
        )

    def candidate(
        self,
        stage: Stage,
        fitness: Fitness,
        scheme: RopeScaling,
        *,
        bar: float,
        floors: Mapping[str, float],
    ) -> Candidate:
        """The candidate of a scheme: the recorded one where there is one."""
        candidate = self._record.find(stage, fitness.name, scheme)
        if candidate is None:
            found = evaluate(scheme, fitness, self._bench, bar=bar, floors=floors)
            candidate = self._record.append(stage, fitness.name, scheme, found)
        self.elapsed_seconds += candidate.seconds
        return candidate

    def tell(self, progress: SearchProgress) -> None:
        if self._watch is not None:
            self._watch(progress)


class Course:
    """One stage as it goes. It is `over` when its deadline has passed, in seconds since the
    search began; `later_seconds` is what is known to follow it."""

    def __init__(
        self,
        judge: Judge,
        stage: Stage,
        fitness: Fitness,
        *,
        planned: int,
        later_seconds: float,
        deadline_seconds: float,
    ) -> None:
        self._judge = judge
        self._stage: Stage = stage
        self._fitness = fitness
        self._planned = planned
        self._later = later_seconds
        self._deadline = deadline_seconds
        self._done = 0
        self._seconds = 0.0
        self._floors: dict[str, float] = {}
        self.best: Candidate | None = None

    @property
    def over(self) -> bool:
        return self._judge.elapsed_seconds >= self._deadline

    def judge(self, scheme: RopeScaling, *, bar: float = math.inf) -> Candidate:
        """Judge one more candidate; early stopping counts on no better cells than the best any
        candidate of this stage had."""
        candidate = self._judge.candidate(
            self._stage, self._fitness, scheme, bar=bar, floors=self._floors
        )
        self._done += 1
        self._seconds += candidate.seconds
        for cell in candidate.evaluation.cells:
            self._floors[cell.key] = min(cell.loss, self._floors.get(cell.key, math.inf))
        if not candidate.evaluation.stopped and (
            self.best is None or candidate.loss < self.best.loss
        ):
            self.best = candidate
        self._judge.tell(
            SearchProgress(
                candidate=candidate,
                done=self._done,
                planned=self._planned,
                best=None if self.best is None else self.best.loss,
                elapsed_seconds=self._judge.elapsed_seconds,
                left_seconds=self._left(),
            )
        )
        return candidate

    def _left(self) -> float:
        each = self._seconds / self._done
        here = min(
            max(self._planned - self._done, 0) * each,
            max(self._deadline - self._judge.elapsed_seconds, 0.0),
        )
        return here + self._later
