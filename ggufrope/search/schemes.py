"""One candidate of a search: a scheme, perhaps over a base of its own, and the ways to say it.

A candidate can be said in factors where an architecture loads them, and in run-time parameters
where these have words for it: the base, a linear factor, YaRN's betas. The attention factor is a
parameter beside a plain or a linear rotation. Beside YaRN llama.cpp computes its own and multiplies
it by the key `rope.scaling.attn_factor`, which a load can override.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from ggufrope._plain import decode, encode
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.rotation import TOLERANCE, single
from ggufrope.rope.architectures import architecture
from ggufrope.rope.frequencies import plain_frequencies
from ggufrope.rope.llamacpp import effective, file_base, number, yarn_file_magnitude
from ggufrope.rope.overrides import command_flags, context_overrides
from ggufrope.rope.scaling import FrequencyFactors, Linear, RopeScaling, Unscaled, Yarn

if TYPE_CHECKING:
    from ggufrope.patching.rotation import Rotation
    from ggufrope.rope.effective import LayerGroup, RopeOverrides
    from ggufrope.rope.frequencies import Floats
    from ggufrope.rope.metadata import RopeMetadata

_SCHEMES = {kind.__name__: kind for kind in get_args(RopeScaling)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A scaling over plain RoPE of `freq_base`, None for the model's own base."""

    scaling: RopeScaling
    freq_base: float | None = None

    def factors(self, rotation: Rotation) -> Floats:
        """Return what each pair's own frequency is divided by, `[n_rot/2]`."""
        if self.freq_base is None:
            return rotation.relative_factors(self.scaling)
        over_base = replace(rotation, base=self.freq_base).relative_factors(self.scaling)
        own = plain_frequencies(rotation.n_rot, rotation.base)
        other = plain_frequencies(rotation.n_rot, self.freq_base)
        return tuple(f * a / b for f, a, b in zip(over_base, own, other, strict=True))

    def absolute_factors(self, rotation: Rotation) -> Floats:
        """Return the factor tensor: on top of the native factors, in float32."""
        native = rotation.native or (1.0,) * rotation.pairs
        return single(a * b for a, b in zip(native, self.factors(rotation), strict=True))

    def magnitude(self, rotation: Rotation) -> float:
        """Return the attention factor."""
        return rotation.magnitude(self.scaling)

    def turns_like(self, other: Scheme, rotation: Rotation) -> bool:
        """Return whether both are one rotation, whatever they are called."""
        pairs = zip(self.factors(rotation), other.factors(rotation), strict=True)
        return _near(self.magnitude(rotation), other.magnitude(rotation)) and all(
            _near(a, b) for a, b in pairs
        )


def in_words(scheme: Scheme) -> str:
    """Return what tells a candidate from the others of its search, in some words."""
    scaling = scheme.scaling
    words = [] if scheme.freq_base is None else [f"base {scheme.freq_base:.6g}"]
    if isinstance(scaling, Yarn):
        words.append(f"{'yarn' if scaling.ext_factor else 'linear'} ×{scaling.factor:.4g}")
        if scaling.ext_factor:
            words.append(f"betas {scaling.beta_fast:.3g}/{scaling.beta_slow:.3g}")
    elif isinstance(scaling, Linear):
        words.append(f"linear ×{scaling.factor:.4g}")
    elif isinstance(scaling, FrequencyFactors):
        words.append(f"factors {scaling.factors[0]:.4g} to {scaling.factors[-1]:.4g}")
    attention = getattr(scaling, "attention_factor", None)
    if attention is not None:
        words.append(f"attention {attention:.4g}")
    return ", ".join(words) or "unscaled"


def plain_scheme(*, factor: float, attention: float, original_context: int) -> RopeScaling:
    """Return plain RoPE slowed by `factor`, with an attention factor."""
    if attention == 1:
        return Unscaled() if factor == 1 else Linear(factor=factor)
    return Yarn(
        factor=factor,
        original_context=original_context,
        ext_factor=0.0,
        attention_factor=attention,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A scheme at run time: context parameters, and the value of the key
    `rope.scaling.attn_factor` that the model is loaded with, None for the file's."""

    rope: RopeOverrides
    attn_factor: float | None = None

    def flags(self, metadata: RopeMetadata) -> tuple[str, ...]:
        """Return them as flags of llama-server and its siblings."""
        flags = command_flags(self.rope)
        if self.attn_factor is None:
            return flags
        key = metadata.key("attn_factor")
        return (*flags, "--override-kv", f"{key}=float:{self.attn_factor:.9g}")


def parameters(scheme: Scheme, metadata: RopeMetadata) -> Parameters:
    """Return the run-time parameters of a scheme on the file that declares `metadata`.

    Raises RequestError where it exists only as factors.
    """
    scaling = scheme.scaling
    arch = architecture(metadata.architecture)
    base = scheme.freq_base or number(file_base(metadata, arch))
    rope, _ = context_overrides(scaling, replace(metadata, freq_base=base))
    if scheme.freq_base is not None:
        rope = replace(rope, freq_base=rope.freq_base or base)
    if not isinstance(scaling, Yarn) or scaling.attention_factor is None or not scaling.ext_factor:
        return Parameters(rope=rope)
    implied = yarn_file_magnitude(metadata, arch, scaling.factor)
    (attention,) = single([scaling.attention_factor / implied])
    stands = _near(attention, metadata.attn_factor or 1.0)
    return Parameters(rope=rope, attn_factor=None if stands else attention)


def exact_parameters(
    scheme: Scheme, rotation: Rotation, metadata: RopeMetadata
) -> Parameters | None:
    """Return the run-time parameters under which the global layers rotate as the factors of
    `scheme` say, and all other layers as they do in the file; None where there are none."""
    try:
        found = parameters(scheme, metadata)
        loaded = replace(metadata, attn_factor=found.attn_factor or metadata.attn_factor)
        tokens = rotation.target_context
        predicted = effective(loaded, context_tokens=tokens, overrides=found.rope).groups
        stands = {group.name: group for group in effective(metadata).groups}
    except (FileError, RequestError):
        return None
    plain = plain_frequencies(rotation.n_rot, rotation.base)
    factors = scheme.absolute_factors(rotation)
    wanted = tuple(theta / factor for theta, factor in zip(plain, factors, strict=True))
    for group in predicted:
        expected = _rotation_of(stands[group.name])
        if group.name == "global":
            expected = (*wanted, scheme.magnitude(rotation))
        pairs = zip(_rotation_of(group), expected, strict=True)
        if len(_rotation_of(group)) != len(expected) or not all(_near(*pair) for pair in pairs):
            return None
    return found


def encode_scheme(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as JSON has it: the class of its scaling, its fields, and its base."""
    plain = {"scheme": type(scheme.scaling).__name__, **encode(scheme.scaling)}
    return plain if scheme.freq_base is None else {**plain, "freq_base": scheme.freq_base}


def decode_scheme(plain: dict[str, Any]) -> Scheme:
    """Return the scheme that `encode_scheme` made this of. Raises RequestError, KeyError."""
    values = dict(plain)
    base = values.pop("freq_base", None)
    scaling: RopeScaling = decode(_SCHEMES[values.pop("scheme")], values)
    return Scheme(scaling=scaling, freq_base=base)


def _rotation_of(group: LayerGroup) -> Floats:
    """The inverse frequencies of a group, and its attention factor."""
    return (*group.inverse_frequencies, group.magnitude)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * abs(other)
