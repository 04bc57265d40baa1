"""How a space is searched: generations of vectors, and what each of them came to.

An optimizer is a function of its seed and of the losses it is given, so a search that was
interrupted is resumed by giving it the same losses again. `Evolution` is LongRoPE's; `CmaEs` is
CMA-ES (Hansen and Ostermeier, 2001) from the `cma` package.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from ggufrope.errors import MissingDependencyError, RequestError
from ggufrope.search.spaces import Space, Vector, contains

if TYPE_CHECKING:
    from collections.abc import Sequence

OptimizerName: TypeAlias = Literal["evolution", "cma"]

_REACH = 0.08 * math.sqrt(3)
"""How far the first candidates lie from the mean, all coordinates together, in units of the
logarithm of each coordinate's range."""


class Optimizer(Protocol):
    """How a space is searched. Smaller losses are better."""

    @property
    def planned(self) -> int:
        """Evaluations in all."""
        ...

    def ask(self) -> tuple[Vector, ...]:
        """Return the next generation; empty when there is no more to try."""
        ...

    def tell(self, vectors: Sequence[Vector], losses: Sequence[float]) -> None:
        """Take the losses of a generation."""
        ...


def make_optimizer(name: OptimizerName, space: Space, *, evaluations: int, seed: int) -> Optimizer:
    """Return the optimizer called `name` with about that many evaluations.

    Raises RequestError where there is none, MissingDependencyError where its package is not
    installed.
    """
    if name == "evolution":
        return Evolution(space, evolution_within(evaluations), np.random.default_rng(seed))
    if name == "cma":
        return CmaEs(space, evaluations=evaluations, rng=np.random.default_rng(seed))
    raise RequestError(f"unknown optimizer {name!r}: expected evolution or cma")


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
    """Return the paper's settings where they fit, else smaller ones in the same proportions."""
    if evaluations < 8:
        raise RequestError(f"{evaluations} candidates are too few to search with: 8 or more")
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

    A mutation draws each coordinate anew with probability 0.3, within what its neighbors allow;
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


class CmaEs:
    """The seeds first, then CMA-ES from the best of them, in the logarithms of the coordinates.

    Last comes the mean it has arrived at, which owes less to luck on a few samples than the best
    single vector. What leaves the space is repaired, and the repaired vector is what the strategy
    learns from. Only the order of the better half of a generation shapes the next one.
    """

    def __init__(self, space: Space, *, evaluations: int, rng: np.random.Generator) -> None:
        if evaluations < 8:
            raise RequestError(f"{evaluations} candidates are too few to search with: 8 or more")
        self.planned = evaluations
        self._space = space
        self._rng = rng
        self._left = evaluations
        self._strategy: Any = None

    def ask(self) -> tuple[Vector, ...]:
        if self._strategy is None:
            return self._space.seeds()[: self._left]
        if self._left == 0:
            return ()
        asked = [self._strategy.mean]
        if self._left > self._strategy.popsize and not self._strategy.stop():
            asked = self._strategy.ask()
        return tuple(self._space.repair(self._from_unit(unit)) for unit in asked)

    def tell(self, vectors: Sequence[Vector], losses: Sequence[float]) -> None:
        self._left -= len(vectors)
        if self._strategy is None:
            self._strategy = self._start(vectors[int(np.argmin(losses))])
        elif len(vectors) == self._strategy.popsize:
            self._strategy.tell([self._to_unit(vector) for vector in vectors], list(losses))
        else:  # the mean
            self._left = 0

    def _start(self, vector: Vector) -> Any:
        return _package().CMAEvolutionStrategy(
            self._to_unit(vector),
            _REACH / math.sqrt(len(vector)),
            {
                "CMA_active": False,
                "randn": lambda *shape: self._rng.standard_normal(shape),
                "seed": math.nan,  # leaves numpy's global generator alone
                "verbose": -9,
                "verb_log": 0,
            },
        )

    def _to_unit(self, vector: Vector) -> Vector:
        """Coordinates between 0 and 1, so that one step size suits all."""
        low, high = np.log(self._space.lower), np.log(self._space.upper)
        unit: Vector = (np.log(vector) - low) / np.where(high > low, high - low, 1.0)
        return unit

    def _from_unit(self, unit: Vector) -> Vector:
        low, high = np.log(self._space.lower), np.log(self._space.upper)
        vector: Vector = np.exp(low + np.asarray(unit) * (high - low))
        return vector


def require_optimizer(name: OptimizerName) -> None:
    """Raise MissingDependencyError where the package of an optimizer is not installed."""
    if name == "cma":
        _package()


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when it finds nothing to plot with
        try:
            import cma
        except ImportError as error:
            raise MissingDependencyError(
                "CMA-ES needs the cma package: pip install 'ggufrope[search]'"
            ) from error
    return cma
