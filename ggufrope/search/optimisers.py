"""How a space is searched: generations of vectors asked for and told what they came to.

An optimiser is a function of its seed and of the losses it is told, so a search that was
interrupted is resumed by telling it again what it was told before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from ggufrope.errors import WishError
from ggufrope.search.spaces import Space, Vector, contains

if TYPE_CHECKING:
    from collections.abc import Sequence

OptimiserName: TypeAlias = Literal["evolution", "cma"]


class Optimiser(Protocol):
    """The seam between how and what is searched. Smaller losses are better."""

    @property
    def planned(self) -> int:
        """Evaluations in all."""
        ...

    def ask(self) -> tuple[Vector, ...]:
        """The next generation; empty when there is no more to try."""
        ...

    def bar(self, losses: Sequence[float]) -> float:
        """The loss above which it does not matter what a candidate came to, given those of its
        generation known so far."""
        ...

    def tell(self, vectors: Sequence[Vector], losses: Sequence[float]) -> None:
        """What a generation came to."""
        ...


def make_optimiser(name: OptimiserName, space: Space, *, evaluations: int, seed: int) -> Optimiser:
    """The optimiser called `name` with about that many evaluations.

    Raises WishError where there is none, MissingPartError where its package is not installed.
    """
    if name == "evolution":
        return Evolution(space, evolution_within(evaluations), np.random.default_rng(seed))
    if name == "cma":
        from ggufrope.search.cmaes import CmaEs

        return CmaEs(space, evaluations=evaluations, rng=np.random.default_rng(seed))
    raise WishError(f"unknown optimiser {name!r}: expected evolution or cma")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """LongRoPE's figures (section 4.1 and its published settings)."""

    population: int = 64
    iterations: int = 40
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    probability: float = 0.3
    crossover_tries: int = 20


def evolution_within(evaluations: int) -> EvolutionSettings:
    """The paper's settings where they fit, else the same proportions in as many iterations."""
    if evaluations < 8:
        raise WishError(f"{evaluations} candidates are too few to search with: 8 or more")
    full = EvolutionSettings()
    whole = full.population + full.iterations * (full.mutations + full.crossovers)
    share = math.sqrt(min(1.0, evaluations / whole))
    half = max(1, round(full.mutations * share))
    population = min(max(4, round(full.population * share)), evaluations)
    return EvolutionSettings(
        population=population,
        iterations=(evaluations - population) // (2 * half),
        mutations=half,
        crossovers=half,
        parents=max(2, population // 2),
    )


class Evolution:
    """LongRoPE's search (algorithm 1): the best of all so far are mutated and crossed.

    A mutation draws each coordinate anew with probability 0.3, within what its neighbours allow;
    a crossover takes each from either parent, and becomes a mutation where no attempt stays in
    the space.
    """

    def __init__(self, space: Space, settings: EvolutionSettings, rng: np.random.Generator) -> None:
        self._space = space
        self._settings = settings
        self._rng = rng
        self._iteration = 0
        self._parents: list[tuple[float, Vector]] = []
        self._seen: set[bytes] = set()

    @property
    def planned(self) -> int:
        each = self._settings.mutations + self._settings.crossovers
        return self._settings.population + self._settings.iterations * each

    def ask(self) -> tuple[Vector, ...]:
        if self._iteration > self._settings.iterations:
            return ()
        if self._iteration == 0:
            return tuple(self._first())
        chosen = self._rng.integers(len(self._parents), size=self._settings.mutations)
        mutated = [self._mutated(self._parents[index][1]) for index in chosen]
        return (*mutated, *(self._crossed() for _ in range(self._settings.crossovers)))

    def bar(self, losses: Sequence[float]) -> float:
        best = sorted([*losses, *(loss for loss, _ in self._parents)])
        return best[self._settings.parents - 1] if len(best) >= self._settings.parents else math.inf

    def tell(self, vectors: Sequence[Vector], losses: Sequence[float]) -> None:
        everyone = [*self._parents, *zip(losses, vectors, strict=True)]
        self._parents = sorted(everyone, key=lambda each: each[0])[: self._settings.parents]
        self._iteration += 1

    def _first(self) -> list[Vector]:
        """The seeds, and mutations of each in turn."""
        seeds = list(self._space.seeds())[: self._settings.population]
        self._seen.update(seed.tobytes() for seed in seeds)
        more = self._settings.population - len(seeds)
        return seeds + [self._mutated(seeds[index % len(seeds)]) for index in range(more)]

    def _mutated(self, vector: Vector) -> Vector:
        for _ in range(self._settings.crossover_tries):
            child = vector.copy()
            for index in np.flatnonzero(self._rng.random(len(child)) < self._settings.probability):
                child[index] = self._rng.uniform(*self._space.interval(child, int(index)))
            if self._is_new(child):
                break
        return child

    def _crossed(self) -> Vector:
        """A child of two parents, the better one giving the most."""
        one, two = sorted(self._rng.choice(len(self._parents), size=2, replace=False))
        better, other = self._parents[one][1], self._parents[two][1]
        for _ in range(self._settings.crossover_tries):
            taken = self._rng.random(len(better)) < self._settings.probability
            child: Vector = np.where(taken, other, better)
            if contains(self._space, child) and self._is_new(child):
                return child
        return self._mutated(better)

    def _is_new(self, vector: Vector) -> bool:
        known = vector.tobytes() in self._seen
        self._seen.add(vector.tobytes())
        return not known
