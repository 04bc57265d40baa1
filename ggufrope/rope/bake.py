"""Any scheme as a factor tensor: the way past keys that a runtime does not read.

llama.cpp divides the angle of pair j by factor j before anything else, so θ_base/θ_scheme in a
factor tensor is the scheme, whatever it is. The magnitude goes to `rope.scaling.attn_factor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import WishError
from ggufrope.rope.frequencies import Array, frequencies, plain_frequencies

if TYPE_CHECKING:
    from ggufrope.rope.scaling import RopeScaling

STILL = 1e30
"""The factor of a pair that does not turn, as converters write it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baked:
    """`factors` is float64 `[n_rot/2]`; `attention_factor` multiplies rotated queries and keys."""

    factors: Array
    attention_factor: float


def bake(
    scaling: RopeScaling,
    *,
    n_rot: int,
    base: float,
    context_tokens: int | None = None,
    native: Array | None = None,
) -> Baked:
    """Factors over plain RoPE of `base` that rotate as `scaling` does.

    `native` are factors the model was trained with, `[n_rot/2]`, which the scheme goes on top of.
    Raises WishError where `scaling` does not fit `n_rot`, `base` or `native`.
    """
    wished = frequencies(scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    turning = wished.inverse_frequencies > 0
    factors = np.full(n_rot // 2, STILL)
    plain = plain_frequencies(n_rot, base)
    np.divide(plain, wished.inverse_frequencies, out=factors, where=turning)
    if native is not None:
        if len(native) != len(factors):
            raise WishError(
                f"the file's factor tensor has {len(native)} values for {len(factors)} rotary pairs"
            )
        factors = np.minimum(factors * native, STILL)
    return Baked(factors=factors, attention_factor=wished.magnitude)
