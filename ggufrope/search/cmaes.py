"""CMA-ES (Hansen and Ostermeier, 2001) from the `cma` package, behind the optimisers' seam."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import MissingPartError, WishError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.search.spaces import Space, Vector

_REACH = 0.08 * math.sqrt(3)
"""How far the first candidates lie from the mean, all coordinates together, in units of the
logarithm of each coordinate's range."""


class CmaEs:
    """The seeds first, then CMA-ES from the best of them, in the logarithms of the coordinates.

    Last comes the mean it has arrived at: less of a lucky shot at a few samples than the best
    single vector. What leaves the space is repaired, and the repaired vector is what the strategy
    learns from. Only the better half of a generation shapes the next one, so the rest may stay
    unranked.
    """

    def __init__(self, space: Space, *, evaluations: int, rng: np.random.Generator) -> None:
        _package()  # a missing package shows before anything is evaluated
        if evaluations < 8:
            raise WishError(f"{evaluations} candidates are too few to search with: 8 or more")
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

    def bar(self, losses: Sequence[float]) -> float:
        if self._strategy is None:
            return math.inf
        kept = self._strategy.popsize // 2
        return sorted(losses)[kept - 1] if len(losses) >= kept else math.inf

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


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when it finds nothing to plot with
        try:
            import cma
        except ImportError as error:
            raise MissingPartError(
                "CMA-ES needs the cma package: pip install 'ggufrope[search]'"
            ) from error
    return cma
