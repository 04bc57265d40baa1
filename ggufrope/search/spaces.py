"""What is searched: the numbers an optimizer may choose, and the scheme they come to.

A space is a box with a constraint. Its vectors are float64 `[n]`, every coordinate positive; the
last one is the attention factor where that is free. Its seeds are the known schemes, which are
always candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ggufrope.errors import RequestError
from ggufrope.patching.rotation import Rotation, single
from ggufrope.rope.frequencies import ntk_base, yarn_mscale
from ggufrope.rope.scaling import FrequencyFactors, Linear, NtkAware, RopeScaling, Unscaled, Yarn
from ggufrope.search.schemes import Scheme, plain_scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Attention: TypeAlias = Literal["formula", "free", "none"]
"""The attention factor: what the space's paper prescribes, searched for as well, or left at 1."""

Vector: TypeAlias = NDArray[np.float64]
SpaceName: TypeAlias = Literal[
    "yarn", "yarn-factor", "base", "base-linear", "attention", "longrope", "longrope2"
]
FACTOR_SPACES: tuple[SpaceName, ...] = ("longrope", "longrope2")
"""Spaces whose schemes exist only as factor tensors."""
UNIFORM_SPACES: tuple[SpaceName, ...] = ("base", "base-linear", "attention")
"""Spaces whose schemes act alike in every context, so that run-time flags say them."""

_LEAST_ATTENTION = 0.8
_BETA_RATIO = 1.05
_FACTOR_REACH = 4.0
"""How far beyond the factor of the target to look."""
_RAMPS = tuple((fast, slow) for slow in (1.0, 2.0, 5.0) for fast in (8.0, 16.0, 32.0))
"""Betas of more YaRN ramps to begin with: between two good ones may lie bad ones, so that a local
search finds only what is near a seed."""


def baselines(rotation: Rotation) -> Mapping[str, Scheme]:
    """Return the schemes that a searched one is compared with, by name: within the trained context
    the model as it stands."""
    factor, original = rotation.factor, rotation.original_context
    known: dict[str, RopeScaling] = {"unscaled": Unscaled()}
    if factor > 1:
        known["linear"] = Linear(factor=factor)
        known["ntk"] = NtkAware(factor=factor)
        known["yarn"] = Yarn(factor=factor, original_context=original)
    return MappingProxyType({name: Scheme(scaling=scaling) for name, scaling in known.items()})


def to_beat(rotation: Rotation) -> str:
    """Return the name of the baseline that a search has to beat."""
    return "yarn" if rotation.factor > 1 else "unscaled"


def longrope_attention(rotation: Rotation) -> float:
    """Return sqrt(1 + ln s / ln L0) (LongRoPE, section 3.3)."""
    return math.sqrt(1 + math.log(rotation.factor) / math.log(rotation.original_context))


def yarn_attention(rotation: Rotation) -> float:
    """Return 1 + 0.1 ln s (YaRN, equation 22)."""
    return yarn_mscale(rotation.factor)


class Space(Protocol):
    """The seam between what is searched and how."""

    @property
    def lower(self) -> Vector: ...

    @property
    def upper(self) -> Vector: ...

    def seeds(self) -> tuple[Vector, ...]:
        """Return where to begin: the known schemes as near as the space has them, YaRN first."""
        ...

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        """Return what coordinate `index` may be while the others stay."""
        ...

    def repair(self, vector: Vector) -> Vector:
        """Return the vector itself where it is in the space, else one near it that is."""
        ...

    def scheme(self, vector: Vector) -> Scheme:
        """Return the scheme that a vector of the space stands for."""
        ...


def make_space(name: SpaceName, rotation: Rotation, attention: Attention) -> Space:
    """Return the space called `name`. Raises RequestError where there is none."""
    made: Mapping[str, Callable[[], Space]] = {
        "yarn": lambda: YarnSpace(rotation=rotation, attention=attention),
        "yarn-factor": lambda: YarnSpace(rotation=rotation, attention=attention, free_factor=True),
        "base": lambda: BaseSpace(rotation=rotation, attention=attention, linear=False),
        "base-linear": lambda: BaseSpace(rotation=rotation, attention=attention, linear=True),
        "attention": lambda: AttentionSpace(rotation=rotation),
        "longrope": lambda: LongRopeSpace(rotation=rotation, attention=attention),
        "longrope2": lambda: LongRope2Space(rotation=rotation, attention=attention),
    }
    if name not in made:
        raise RequestError(f"unknown space {name!r}: expected one of {', '.join(made)}")
    return made[name]()


def contains(space: Space, vector: Vector) -> bool:
    """Return whether a vector keeps the constraints of a space."""
    return bool(np.allclose(space.repair(vector), vector, rtol=1e-12, atol=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeSpace:
    """Every pair free: λ_j in [1, 1.25 s], non-decreasing (LongRoPE, section 3.2).

    The paper's other variable, how many first tokens stay as they are, is left out: llama.cpp
    rotates all positions alike.
    """

    rotation: Rotation
    attention: Attention = "formula"

    @property
    def lower(self) -> Vector:
        return _with_attention(np.ones(self.rotation.pairs), self.attention, _LEAST_ATTENTION)

    @property
    def upper(self) -> Vector:
        highest = np.full(self.rotation.pairs, 1.25 * self.rotation.factor)
        return _with_attention(highest, self.attention, _most_attention(self.rotation.factor))

    def seeds(self) -> tuple[Vector, ...]:
        rotation, known = self.rotation, baselines(self.rotation)
        ramps = (
            Yarn(
                factor=rotation.factor,
                original_context=rotation.original_context,
                beta_fast=fast,
                beta_slow=slow,
            )
            for fast, slow in _RAMPS
        )
        schemes = (*(known[name].scaling for name in ("yarn", "linear", "ntk")), *ramps)
        seeds = map(self._vector, schemes)
        return tuple({seed.tobytes(): seed for seed in seeds}.values())  # each once, in order

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        return _between_neighbors(self, vector, index, first=0, end=self.rotation.pairs)

    def repair(self, vector: Vector) -> Vector:
        return _repaired(self, vector, first=0, end=self.rotation.pairs)

    def scheme(self, vector: Vector) -> Scheme:
        formula = longrope_attention(self.rotation)
        return _factors(vector[: self.rotation.pairs], _attention(vector, self.attention, formula))

    def _vector(self, scheme: RopeScaling) -> Vector:
        factors, magnitude = self.rotation.relative_factors(scheme), self.rotation.magnitude(scheme)
        return self.repair(_with_attention(factors, self.attention, magnitude))


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRope2Space:
    """A critical pair c, NTK-like below it, free in [s, 2 s] from it on (LongRoPE2, section 3.3).

    Coordinates: c + 1, λ from the earliest possible critical pair on, the attention factor. Below
    c, λ_j = λ_c^(j/c).
    """

    rotation: Rotation
    attention: Attention = "formula"

    @property
    def earliest(self) -> int:
        return min(self.rotation.critical_pair(10.0), self.latest)

    @property
    def latest(self) -> int:
        return self.rotation.critical_pair()

    @property
    def lower(self) -> Vector:
        return self._vector(self.earliest, self.rotation.factor, _LEAST_ATTENTION)

    @property
    def upper(self) -> Vector:
        most = _most_attention(self.rotation.factor)
        return self._vector(self.latest, 2 * self.rotation.factor, most)

    def seeds(self) -> tuple[Vector, ...]:
        return tuple(
            self._vector(pair, self.rotation.factor, longrope_attention(self.rotation))
            for pair in range(self.latest, self.earliest - 1, -1)
        )

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        return _between_neighbors(self, vector, index, first=1, end=self._end)

    def repair(self, vector: Vector) -> Vector:
        return _repaired(self, vector, first=1, end=self._end)

    def scheme(self, vector: Vector) -> Scheme:
        critical = round(float(vector[0])) - 1
        above = vector[1 + critical - self.earliest : self._end]
        below = above[0] ** (np.arange(critical) / max(critical, 1))
        attention = _attention(vector, self.attention, longrope_attention(self.rotation))
        return _factors(np.concatenate((below, above)), attention)

    @property
    def _end(self) -> int:
        return 1 + self.rotation.pairs - self.earliest

    def _vector(self, critical: int, factor: float, attention: float) -> Vector:
        free = np.full(self.rotation.pairs - self.earliest, factor)
        return _with_attention(np.concatenate(([critical + 1.0], free)), self.attention, attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnSpace:
    """YaRN's own parameters: beta_fast, beta_slow, the attention factor, and before them with
    `free_factor` the factor.

    Works on every architecture, as context parameters where no factor tensor loads. A model may
    recall less far than it was trained for; then a factor above that of the target brings more.
    """

    rotation: Rotation
    attention: Attention = "formula"
    free_factor: bool = False

    @property
    def lower(self) -> Vector:
        return self._vector(self.rotation.factor, (1.0, 0.1), _LEAST_ATTENTION)

    @property
    def upper(self) -> Vector:
        most = _FACTOR_REACH * self.rotation.factor if self.free_factor else self.rotation.factor
        return self._vector(most, (256.0, 32.0), _most_attention(most))

    def seeds(self) -> tuple[Vector, ...]:
        factor = self.rotation.factor
        betas = ((32.0, 1.0), (32.0, 2.0), (16.0, 1.0), (8.0, 0.5))
        own = [(factor, each) for each in betas]
        more = [(times * factor, betas[0]) for times in (1.25, 1.5, 2.0, 3.0)]
        seeds = [own[0], *more, *own[1:]] if self.free_factor else own
        return tuple(self._vector(f, pair, yarn_mscale(f)) for f, pair in seeds)

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        low, high = float(self.lower[index]), float(self.upper[index])
        fast = int(self.free_factor)
        if index == fast:
            low = max(low, float(vector[fast + 1]) * _BETA_RATIO)
        if index == fast + 1:
            high = min(high, float(vector[fast]) / _BETA_RATIO)
        return low, high

    def repair(self, vector: Vector) -> Vector:
        repaired = np.clip(vector, self.lower, self.upper)
        fast = int(self.free_factor)
        repaired[fast + 1] = min(repaired[fast + 1], repaired[fast] / _BETA_RATIO)
        return repaired

    def scheme(self, vector: Vector) -> Scheme:
        factor = float(vector[0]) if self.free_factor else self.rotation.factor
        fast, slow = map(float, vector[int(self.free_factor) :][:2])
        scaling = Yarn(
            factor=factor,
            original_context=self.rotation.original_context,
            beta_fast=fast,
            beta_slow=slow,
            attention_factor=_attention(vector, self.attention, yarn_mscale(factor)),
        )
        return Scheme(scaling=scaling)

    def _vector(self, factor: float, betas: tuple[float, float], attention: float) -> Vector:
        numbers = (factor, *betas) if self.free_factor else betas
        return _with_attention(numbers, self.attention, attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSpace:
    """The base alone, or the base and a linear factor on top of it.

    Coordinates: the factor by which the base slows down the slowest pair (NTK-aware scaling has the
    factor of the target there), where `linear` the linear factor, and the attention factor, for
    which there is no formula.
    """

    rotation: Rotation
    attention: Attention = "formula"
    linear: bool = False

    @property
    def lower(self) -> Vector:
        ones = np.ones(2 if self.linear else 1)
        return _with_attention(ones, self.attention, _LEAST_ATTENTION)

    @property
    def upper(self) -> Vector:
        factor = self.rotation.factor
        highest = np.array([_FACTOR_REACH * factor, factor][: 2 if self.linear else 1])
        return _with_attention(highest, self.attention, _most_attention(self.rotation.factor))

    def seeds(self) -> tuple[Vector, ...]:
        factor = self.rotation.factor
        root = factor**0.5
        alone = ((factor,), (1.5 * factor,), (2 * factor,), (0.75 * factor,))
        both = ((factor, 1.0), (1.5 * factor, 1.0), (factor, root), (root, root), (1.0, factor))
        seeds: tuple[tuple[float, ...], ...] = both if self.linear else alone
        return tuple(
            self.repair(_with_attention(seed, self.attention, attention))
            for seed in seeds
            for attention in self._attentions
        )

    @property
    def _attentions(self) -> tuple[float, ...]:
        return (1.0, yarn_attention(self.rotation)) if self.attention == "free" else (1.0,)

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        return float(self.lower[index]), float(self.upper[index])

    def repair(self, vector: Vector) -> Vector:
        return np.clip(vector, self.lower, self.upper)

    def scheme(self, vector: Vector) -> Scheme:
        rotation = self.rotation
        (base,) = single([ntk_base(rotation.base, float(vector[0]), rotation.n_rot)])
        scaling = plain_scheme(
            factor=float(vector[1]) if self.linear else 1.0,
            attention=_attention(vector, self.attention, 1.0),
            original_context=rotation.original_context,
        )
        return Scheme(scaling=scaling, freq_base=base)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpace:
    """The attention factor alone: of YaRN, or within the trained context of the model as it is."""

    rotation: Rotation

    @property
    def lower(self) -> Vector:
        return np.array([_LEAST_ATTENTION])

    @property
    def upper(self) -> Vector:
        return np.array([max(_most_attention(self.rotation.factor), 2 - _LEAST_ATTENTION)])

    def seeds(self) -> tuple[Vector, ...]:
        """YaRN's own or 1, and some to both sides of it."""
        middle = yarn_attention(self.rotation)
        seeds = [middle, *(middle * (1 + 0.04 * step) for step in (1, -1, 2, -2, 3, -3))]
        return tuple(self.repair(np.array([seed])) for seed in seeds)

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        return float(self.lower[index]), float(self.upper[index])

    def repair(self, vector: Vector) -> Vector:
        return np.clip(vector, self.lower, self.upper)

    def scheme(self, vector: Vector) -> Scheme:
        rotation, attention = self.rotation, _attention(vector, "free", 1.0)
        scaling: RopeScaling = plain_scheme(
            factor=1.0, attention=attention, original_context=rotation.original_context
        )
        if rotation.factor > 1:
            scaling = Yarn(
                factor=rotation.factor,
                original_context=rotation.original_context,
                attention_factor=attention,
            )
        return Scheme(scaling=scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortSpace:
    """The short factors: factors around 1, non-decreasing. Their attention factor is that of the
    long factors, because a file holds one for both."""

    rotation: Rotation
    attention_factor: float
    reach: float = 1.5

    @property
    def lower(self) -> Vector:
        return np.full(self.rotation.pairs, 1 / self.reach)

    @property
    def upper(self) -> Vector:
        return np.full(self.rotation.pairs, self.reach)

    def seeds(self) -> tuple[Vector, ...]:
        return (self.repair(np.array(self.rotation.relative_factors(Unscaled()))),)

    def interval(self, vector: Vector, index: int) -> tuple[float, float]:
        return _between_neighbors(self, vector, index, first=0, end=self.rotation.pairs)

    def repair(self, vector: Vector) -> Vector:
        return _repaired(self, vector, first=0, end=self.rotation.pairs)

    def scheme(self, vector: Vector) -> Scheme:
        return _factors(vector, self.attention_factor)


def _factors(vector: Vector, attention: float) -> Scheme:
    return Scheme(scaling=FrequencyFactors(factors=single(vector), attention_factor=attention))


def _most_attention(factor: float) -> float:
    """Three times what YaRN adds."""
    return 1 + 0.3 * math.log(max(factor, 1.0))


def _with_attention(vector: Iterable[float], attention: Attention, value: float) -> Vector:
    free = (value,) if attention == "free" else ()
    return np.array([*vector, *free], dtype=np.float64)


def _attention(vector: Vector, attention: Attention, formula: float) -> float:
    if attention == "free":
        return float(np.float32(vector[-1]))
    return formula if attention == "formula" else 1.0


def _between_neighbors(
    space: Space, vector: Vector, index: int, *, first: int, end: int
) -> tuple[float, float]:
    """The interval of a coordinate where those from `first` to `end` do not decrease."""
    low, high = float(space.lower[index]), float(space.upper[index])
    if first < index < end:
        low = max(low, float(vector[index - 1]))
    if first <= index < end - 1:
        high = min(high, float(vector[index + 1]))
    return low, high


def _repaired(space: Space, vector: Vector, *, first: int, end: int) -> Vector:
    """Into the box, and those from `first` to `end` midway between the non-decreasing sequences
    just above and just below them."""
    repaired = np.clip(vector, space.lower, space.upper)
    ordered = repaired[first:end]
    above = np.maximum.accumulate(ordered)
    below = np.minimum.accumulate(ordered[::-1])[::-1]
    repaired[first:end] = (above + below) / 2
    return repaired
