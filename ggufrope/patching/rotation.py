"""What a scheme does to the rotation of one model, without writing a file.

`Rotation` is the rotation that a model was trained with. Under a scheme it gives the factor of each
pair, and the attention factor. `exact_overrides` says the same scheme in context parameters, where
llama.cpp then rotates exactly as the scheme says: that is not assumed but computed.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope.errors import FileError, RequestError
from ggufrope.patching.request import ScalingRequest, raises_factor, resolve
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.encode import STILL, bake
from ggufrope.rope.frequencies import frequencies, plain_frequencies
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import effective, file_base, number, rotary_dimensions
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.overrides import context_overrides
from ggufrope.rope.trained import declared_scaling, trained_context, trained_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.patching.request import Target
    from ggufrope.rope.effective import LayerGroup
    from ggufrope.rope.frequencies import Frequencies
    from ggufrope.rope.scaling import RopeScaling

TOLERANCE = 1e-5
"""Relative; llama.cpp computes in float32."""


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
        """Return the first pair that turns fewer than `turns` times within the original context:
        ⌈d/2 · log_base(L0 / 2π·turns)⌉ (LongRoPE2, equation 5)."""
        length = self.original_context / (2 * math.pi * turns)
        pair = math.ceil(self.pairs * math.log(max(length, 1.0)) / math.log(self.base))
        return min(pair, self.pairs - 1)

    def relative_factors(self, scaling: RopeScaling) -> tuple[float, ...]:
        """Return what `scaling` divides each pair's own frequency by, `[n_rot/2]`."""
        baked = bake(scaling, n_rot=self.n_rot, base=self.base, context_tokens=self.target_context)
        return tuple(map(float, baked.factors))

    def absolute_factors(self, scaling: RopeScaling) -> tuple[float, ...]:
        """Return the factor tensor of `scaling`: on top of the native factors, in float32."""
        native = self.native or (1.0,) * self.pairs
        relative = self.relative_factors(scaling)
        return single(own * factor for own, factor in zip(native, relative, strict=True))

    def magnitude(self, scaling: RopeScaling) -> float:
        """Return what `scaling` multiplies rotated queries and keys by: the attention factor."""
        baked = bake(scaling, n_rot=self.n_rot, base=self.base, context_tokens=self.target_context)
        return baked.attention_factor


def rotation_of(
    metadata: RopeMetadata,
    *,
    target_context: int,
    original_context: int | None = None,
    within: bool = False,
) -> Rotation:
    """Return the rotation of the model that declares `metadata`.

    Raises RequestError where the target is not above the original context, unless it may be
    `within` it, and FileError where the file does not rotate or llama.cpp does not know its
    architecture.
    """
    request = ScalingRequest(
        scaling="yarn", target_context=target_context, original_context=original_context
    )
    trained = trained_context(metadata)
    if within and trained is not None and target_context <= trained.tokens:
        return _within(metadata, target_context, trained.tokens)
    target = resolve(request, metadata)
    if target.context_length <= target.original_context:
        raise RequestError(
            f"the target of {target_context} tokens is not above the original context of "
            f"{target.original_context}: there is nothing to search for"
        )
    metadata = trained_state(metadata)
    original = target.original_context
    if metadata.tensor(ROPE_FACTORS_LONG) is not None and original_context is None:
        original = metadata.original_context or original
    found = _plain_rotation(metadata, original, target.context_length)
    native = None if raises_factor(request, metadata) else _native(metadata)
    return replace(found, native=native)


def _within(metadata: RopeMetadata, target_context: int, trained_tokens: int) -> Rotation:
    """The rotation of a model that is to stay in its trained context."""
    declared = declared_scaling(trained_state(metadata))
    if declared is not None:
        raise RequestError(
            f"the file is scaled ({declared}), with an attention factor that goes with it: within "
            f"its trained context of {trained_tokens} tokens there is nothing to search for"
        )
    return _plain_rotation(metadata, trained_tokens, target_context)


def _plain_rotation(metadata: RopeMetadata, original: int, target: int) -> Rotation:
    """Plain RoPE of the file's base."""
    arch = architecture(metadata.architecture)
    n_rot = rotary_dimensions(metadata, arch)
    if n_rot < 4:
        raise RequestError(
            f"{arch.name} rotates {n_rot} dimensions: there is nothing to search for"
        )
    return Rotation(
        n_rot=n_rot,
        base=number(file_base(metadata, arch)),
        original_context=original,
        target_context=target,
    )


def single(values: Iterable[float]) -> tuple[float, ...]:
    """Return values as float32 holds them, so that what is tried is what is written."""
    return tuple(array("f", map(float, values)))


def exact_overrides(
    target: Target,
    metadata: RopeMetadata,
    *,
    context_tokens: int,
    written: RopeMetadata | None = None,
) -> RopeOverrides | None:
    """Return context parameters under which a loaded model rotates as `target` says.

    `written` is what the file would declare with the scheme written into it. Sliding-window layers,
    which a scheme leaves alone in some architectures and not in others, have to rotate as they do
    there; in a file that is scaled already, all layers have to. None is returned where there are no
    such parameters: the scheme lives in tensors, or the file's own settings would show through.
    """
    arch = architecture(metadata.architecture)
    n_rot = rotary_dimensions(metadata, arch)
    state = trained_state(metadata)
    base = target.freq_base or number(file_base(state, arch))
    rebased = replace(metadata, freq_base=base)
    wanted = frequencies(target.scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    try:
        overrides, _ = context_overrides(target.scaling, rebased, context_tokens=context_tokens)
        overrides = replace(overrides, freq_base=overrides.freq_base or base)
        predicted = effective(metadata, context_tokens=context_tokens, overrides=overrides)
        there = () if written is None else effective(written, context_tokens=context_tokens).groups
    except (FileError, RequestError):
        return None
    groups = {group.name: group for group in predicted.groups}
    expected: dict[str, Frequencies | LayerGroup] = {group.name: group for group in there}
    if "global" in groups and (written is None or declared_scaling(state) is None):
        expected["global"] = wanted
    alike = all(_alike(groups[name], expected[name]) for name in groups.keys() & expected.keys())
    return overrides if expected and alike else None


def _alike(predicted: LayerGroup, expected: Frequencies | LayerGroup) -> bool:
    pairs = zip(predicted.inverse_frequencies, expected.inverse_frequencies, strict=True)
    return abs(predicted.magnitude / expected.magnitude - 1) <= TOLERANCE and all(
        abs(found - theta) <= TOLERANCE * theta for found, theta in pairs
    )


def _native(metadata: RopeMetadata) -> tuple[float, ...] | None:
    """The factors over plain RoPE that the file's own scaling amounts to in its short contexts,
    None where it has none."""
    tensor = metadata.tensor(ROPE_FREQS) or metadata.tensor(ROPE_FACTORS_SHORT)
    if tensor is not None and tensor.values is None:
        return None
    if declared_scaling(metadata) is None:
        return None
    groups = effective(metadata, context_tokens=1).groups
    whole = next((group for group in groups if group.name == "global"), None)
    if whole is None:
        return None
    arch = architecture(metadata.architecture)
    plain = plain_frequencies(whole.n_rot, number(file_base(metadata, arch)))
    pairs = zip(plain, whole.inverse_frequencies, strict=True)
    return single(min(theta / own, STILL) if own > 0 else STILL for theta, own in pairs)
