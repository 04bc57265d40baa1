"""What a file's settings amount to, as one of the schemes with a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import WishError
from ggufrope.rope.bake import bake
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.scaling import (
    MAX_FACTOR,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    RopeScaling,
    Unscaled,
    Yarn,
)

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope, LayerGroup
    from ggufrope.rope.metadata import FactorTensor, RopeMetadata

LLAMA3_CONTEXT = 8192
"""The original context of every published model with Llama 3's scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """The scheme that a file's global layers follow in llama.cpp, and the base it is over."""

    scaling: RopeScaling
    base: float


def recognise(metadata: RopeMetadata) -> Recognised:
    """Name what llama.cpp does with the file at its own context length.

    Raises WishError where no one scheme says it, as with factors under another scaling, and
    FileError where llama.cpp would not load the file.
    """
    found = effective(metadata)
    values = found.values
    base = float(values["freq_base"].value or 0)
    factor = 1 / float(values["freq_scale"].value or 1)
    scaled = abs(factor - 1) > 1e-6
    if values["frequency_factors"].value is not None:
        if scaled:
            raise WishError(
                f"factor tensors under a factor of {factor:g} are no scheme with a name: "
                "bake them into one"
            )
        return Recognised(scaling=_in_factors(metadata, found, base), base=base)
    if scaled and values["yarn_ext_factor"].value != 0:
        return Recognised(scaling=_yarn(found, factor), base=base)
    magnitude = _whole(found).magnitude
    if abs(magnitude - 1) > 1e-6:
        pairs = _whole(found).n_rot // 2
        alike = FrequencyFactors(factors=(factor,) * pairs, attention_factor=magnitude)
        return Recognised(scaling=alike, base=base)
    return Recognised(scaling=Linear(factor=factor) if scaled else Unscaled(), base=base)


def _in_factors(metadata: RopeMetadata, found: EffectiveRope, base: float) -> RopeScaling:
    magnitude = _whole(found).magnitude
    long, short = metadata.tensor(ROPE_FACTORS_LONG), metadata.tensor(ROPE_FACTORS_SHORT)
    if metadata.tensor(ROPE_FREQS) is None and long is not None and short is not None:
        return LongRope(
            long_factors=_values(long),
            short_factors=_values(short),
            original_context=metadata.original_context or metadata.context_length or 0,
            attention_factor=magnitude,
        )
    name = str(found.values["frequency_factors"].value)
    factors = _values(metadata.tensor(name))
    return _llama3(factors, base, magnitude) or FrequencyFactors(
        factors=factors, attention_factor=magnitude
    )


def _llama3(factors: tuple[float, ...], base: float, magnitude: float) -> Llama3 | None:
    """Llama 3's scheme, where the factors are its, with the limits all its models have."""
    if magnitude != 1 or not 1 < max(factors) <= MAX_FACTOR:
        return None
    scaling = Llama3(factor=max(factors), original_context=LLAMA3_CONTEXT)
    expected = bake(scaling, n_rot=2 * len(factors), base=base).factors
    return scaling if np.allclose(factors, expected, rtol=1e-5) else None


def _values(tensor: FactorTensor | None) -> tuple[float, ...]:
    if tensor is None or tensor.values is None:
        raise WishError("the values of the file's factor tensors were not read")
    return tuple(tensor.values.tolist())


def _yarn(found: EffectiveRope, factor: float) -> Yarn:
    def number(name: str) -> float:
        return float(found.values[name].value or 0)

    return Yarn(
        factor=factor,
        original_context=int(number("original_context")),
        beta_fast=number("yarn_beta_fast"),
        beta_slow=number("yarn_beta_slow"),
        ext_factor=number("yarn_ext_factor"),
        attention_factor=_whole(found).magnitude,
    )


def _whole(found: EffectiveRope) -> LayerGroup:
    """The group that scaling is for: the global layers, where there are any."""
    return next((group for group in found.groups if group.name == "global"), found.groups[0])
