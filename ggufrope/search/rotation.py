"""The rotation a search starts from, and the known schemes it is measured against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ggufrope.errors import WishError
from ggufrope.patching.wish import Wish, resolve
from ggufrope.rope import (
    Linear,
    NtkAware,
    RopeMetadata,
    RopeScaling,
    Unscaled,
    Yarn,
    architecture,
)
from ggufrope.rope.bake import bake
from ggufrope.rope.frequencies import yarn_mscale
from ggufrope.rope.keys import ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.resolution import file_base, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Attention: TypeAlias = Literal["formula", "free", "none"]
"""The attention factor: what the space's paper prescribes, searched for as well, or left at 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """`n_rot` rotary dimensions turning at plain RoPE of `base`, slowed by `native` factors where
    the model was trained with some; contexts in tokens, the original one before any scaling."""

    n_rot: int
    base: float
    original_context: int
    target_context: int
    native: tuple[float, ...] | None = None

    @property
    def pairs(self) -> int:
        return self.n_rot // 2

    @property
    def factor(self) -> float:
        return self.target_context / self.original_context

    def critical_pair(self, turns: float = 1.0) -> int:
        """The first pair that turns fewer than `turns` times within the original context:
        ⌈d/2 · log_base(L0 / 2π·turns)⌉ (LongRoPE2, equation 5)."""
        length = self.original_context / (2 * math.pi * turns)
        pair = math.ceil(self.pairs * math.log(max(length, 1.0)) / math.log(self.base))
        return min(pair, self.pairs - 1)

    def relative_factors(self, scaling: RopeScaling) -> NDArray[np.float64]:
        """What `scaling` divides each pair's own frequency by, `[n_rot/2]`."""
        baked = bake(scaling, n_rot=self.n_rot, base=self.base, context_tokens=self.target_context)
        return baked.factors

    def absolute_factors(self, scaling: RopeScaling) -> tuple[float, ...]:
        """The factor tensor of `scaling`: on top of the native factors, as float32 holds it."""
        factors = self.relative_factors(scaling) * (1.0 if self.native is None else self.native)
        return single(factors)

    def magnitude(self, scaling: RopeScaling) -> float:
        """What `scaling` multiplies rotated queries and keys by."""
        baked = bake(scaling, n_rot=self.n_rot, base=self.base, context_tokens=self.target_context)
        return baked.attention_factor


def rotation_of(
    metadata: RopeMetadata, *, target_context: int, original_context: int | None = None
) -> Rotation:
    """The rotation of the model that declares `metadata`.

    Raises WishError where the target is not above the original context, FileError where the file
    does not rotate or llama.cpp does not know its architecture.
    """
    wish = Wish(scaling="yarn", target_context=target_context, original_context=original_context)
    target = resolve(wish, metadata)
    if target.context_length <= target.original_context:
        raise WishError(
            f"the target of {target_context} tokens is not above the original context of "
            f"{target.original_context}: there is nothing to search for"
        )
    arch = architecture(metadata.architecture)
    n_rot = rotary_dimensions(metadata, arch)
    if n_rot < 4:
        raise WishError(f"{arch.name} rotates {n_rot} dimensions: there is nothing to search for")
    return Rotation(
        n_rot=n_rot,
        base=number(file_base(metadata, arch)),
        original_context=target.original_context,
        target_context=target.context_length,
        native=_native(metadata),
    )


def baselines(rotation: Rotation) -> Mapping[str, RopeScaling]:
    """The schemes a searched one is compared with, by name."""
    factor, original = rotation.factor, rotation.original_context
    return MappingProxyType(
        {
            "unscaled": Unscaled(),
            "linear": Linear(factor=factor),
            "ntk": NtkAware(factor=factor),
            "yarn": Yarn(factor=factor, original_context=original),
        }
    )


def single(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Values as float32 holds them, so that what is tried is what is written."""
    return tuple(np.asarray(values, dtype=np.float32).astype(np.float64).tolist())


def longrope_attention(rotation: Rotation) -> float:
    """sqrt(1 + ln s / ln L0) (LongRoPE, section 3.3)."""
    return math.sqrt(1 + math.log(rotation.factor) / math.log(rotation.original_context))


def yarn_attention(rotation: Rotation) -> float:
    """1 + 0.1 ln s (YaRN, equation 22)."""
    return yarn_mscale(rotation.factor)


def _native(metadata: RopeMetadata) -> tuple[float, ...] | None:
    """The factors in use up to the original context, where the file has any."""
    for name in (ROPE_FREQS, ROPE_FACTORS_SHORT):
        tensor = metadata.tensor(name)
        if tensor is not None and tensor.values is not None:
            return tuple(tensor.values.tolist())
    return None
