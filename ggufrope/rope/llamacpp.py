"""What llama.cpp does with a file's settings and a context's parameters.

First each scalar setting is resolved: an override, else the file, else a default. That follows
`load_hparams`, `get_rope_factors` and `get_rope_freq_base` in src/llama-model.cpp and the
constructor in src/llama-context.cpp. Then each kind of layer gets its rotation, as the graphs in
src/models and `rope_yarn` in ggml/src/ggml-cpu/ops.cpp compute it. All at the commit that
`architectures.source()` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufrope.container.ggml import F32
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import Architecture, RopeType, architecture
from ggufrope.rope.attention import (
    attention_scale,
    attention_values,
    idle_magnitude_reason,
    magnitude_acts,
    temperature,
)
from ggufrope.rope.effective import (
    EffectiveRope,
    EffectiveValue,
    LayerGroup,
    RopeOverrides,
)
from ggufrope.rope.frequencies import (
    MAX_ROTARY_DIMENSIONS,
    Floats,
    blend,
    ntk_base,
    plain_frequencies,
    yarn_kept,
    yarn_mscale,
)
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, SCALING_TYPES
from ggufrope.rope.layers import LayerKind, layer_kinds
from ggufrope.rope.unread import dead_key_remedy

if TYPE_CHECKING:
    from ggufrope.rope.metadata import FactorTensor, RopeMetadata

CONTEXT_GRANULE = 256
"""llama.cpp rounds the length of a context up to a multiple of this."""


def effective(
    metadata: RopeMetadata,
    *,
    context_tokens: int | None = None,
    overrides: RopeOverrides | None = None,
) -> EffectiveRope:
    """Predict the rotation llama.cpp applies to a file in a context of one sequence.

    `context_tokens` is the requested n_ctx; None is the file's context length, as in llama.cpp.
    Raises FileError where llama.cpp would not load the file or its numbers give no rotation.
    """
    arch = architecture(metadata.architecture)
    overrides = overrides or RopeOverrides()
    settings = resolve(metadata, arch, overrides)
    tokens = _context_tokens(metadata, context_tokens)
    tensor, choice = choose_factors(metadata, arch, tokens)
    values = {field: getattr(settings, field) for field in Resolution.__slots__}
    values["frequency_factors"] = choice
    whole = _global_rope(metadata, arch, settings, tensor)
    scale = attention_scale(
        metadata,
        arch,
        attn_factor=settings.applied_attn_factor,
        freq_scale=number(settings.freq_scale),
    )
    kinds = layer_kinds(metadata, arch)
    groups = []
    for kind in dict.fromkeys(kinds):
        layers = tuple(layer for layer, found in enumerate(kinds) if found == kind)
        rope = whole if kind == "global" else None
        if kind == "sliding-window":
            values |= _sliding_values(metadata, arch, settings, overrides)
            rope = _sliding_rope(metadata, arch, whole, values)
        group = _group(kind, layers, rope, acts=magnitude_acts(metadata, arch))
        if kind != "recurrent":
            tempered = temperature(metadata, arch, kind)
            group = replace(group, attention_scale=scale, temperature=tempered)
            values |= attention_values(metadata, arch, scale=scale, found=tempered)
        groups.append(group)
    return EffectiveRope(
        rope_type=_rope_type(metadata, arch),
        context_tokens=tokens,
        groups=tuple(groups),
        values=MappingProxyType(values),
        caveat=arch.caveat,
    )


def choose_factors(
    metadata: RopeMetadata, arch: Architecture, context_tokens: int
) -> tuple[FactorTensor | None, EffectiveValue]:
    """Return the factor tensor that a context of `context_tokens` uses, and why.

    Raises FileError where the file's factor tensors would not load.
    """
    scaling_type = metadata.scaling_type or "linear"
    for tensor in metadata.factor_tensors:
        if not arch.loads(tensor.name, scaling_type):
            raise FileError(
                f"{arch.name} with scaling type {scaling_type} does not load {tensor.name}: "
                "llama.cpp refuses the file (wrong number of tensors)"
            )
    threshold = metadata.original_context or metadata.context_length or 0
    name = ROPE_FREQS
    reason = "rope_freqs is always preferred"
    if metadata.tensor(name) is None:
        long = context_tokens > threshold
        name = ROPE_FACTORS_LONG if long else ROPE_FACTORS_SHORT
        comparison = "above" if long else "within"
        reason = f"{context_tokens} tokens are {comparison} the original {threshold}"
    chosen = metadata.tensor(name)
    if chosen is None:
        return None, _default(None, "no factor tensor")
    if arch.factors_on == "none":
        return None, _ignored(None, f"loaded, but the graph of {arch.name} does not apply it")
    return chosen, _file(name, reason)


def rotary_dimensions(metadata: RopeMetadata, arch: Architecture) -> int:
    """Return n_rot of the global layers as llama.cpp computes it.

    Raises FileError, naming the key, where the file gives a number that cannot rotate, or one
    beyond MAX_ROTARY_DIMENSIONS.
    """
    if arch.rope == "none":
        return 0
    n_rot = metadata.n_rot
    if n_rot is not None:
        _check_size(n_rot, metadata.n_rot_key)
        n_rot //= arch.global_rot_divisor
    n_rot = _even(n_rot, metadata.n_rot_key)
    if arch.full_head and n_rot != metadata.head_size:
        raise FileError(
            f"{metadata.key('dimension_count')} is {n_rot}: {arch.name} runs only with the "
            f"head size, {metadata.head_size}"
        )
    return n_rot


def sliding_dimensions(metadata: RopeMetadata, arch: Architecture) -> int:
    """Return n_rot of the sliding-window layers. Raises FileError as `rotary_dimensions` does."""
    declared = metadata.dimension_count_swa
    if not declared:
        return rotary_dimensions(metadata, arch) * arch.global_rot_divisor
    key = metadata.key("dimension_count_swa")
    _check_size(declared, key)
    return _even(declared, key)


def allocated_context(tokens: int) -> int:
    """Return the length of the context that llama.cpp makes for a requested n_ctx."""
    return -(-tokens // CONTEXT_GRANULE) * CONTEXT_GRANULE


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The scalar settings of a context, each with its source."""

    scaling_type: EffectiveValue
    freq_base: EffectiveValue
    freq_scale: EffectiveValue
    original_context: EffectiveValue
    yarn_ext_factor: EffectiveValue
    yarn_attn_factor: EffectiveValue
    yarn_beta_fast: EffectiveValue
    yarn_beta_slow: EffectiveValue
    attn_factor: EffectiveValue

    @property
    def applied_attn_factor(self) -> float:
        """What the graph passes to ggml_rope_ext, before rope_yarn's own factor."""
        return number(self.yarn_attn_factor) * number(self.attn_factor)


def resolve(metadata: RopeMetadata, arch: Architecture, overrides: RopeOverrides) -> Resolution:
    """Resolve every scalar setting. Raises FileError where llama.cpp would not load the file with
    a value, or could not compute with it."""
    given = _Settings(metadata=metadata, arch=arch, overrides=overrides)
    scaling_type = given.scaling_type()
    freq_scale = given.freq_scale(scaling_type)
    ext_factor = given.ext_factor(scaling_type)
    blends = number(ext_factor) != 0
    return Resolution(
        scaling_type=scaling_type,
        freq_base=given.freq_base(),
        freq_scale=freq_scale,
        original_context=given.original_context(),
        yarn_ext_factor=ext_factor,
        yarn_attn_factor=given.yarn_attn_factor(blends=blends, freq_scale=number(freq_scale)),
        yarn_beta_fast=given.beta("yarn_beta_fast", arch.beta_fast, blends=blends),
        yarn_beta_slow=given.beta("yarn_beta_slow", 1.0, blends=blends),
        attn_factor=given.attn_factor(),
    )


def number(value: EffectiveValue) -> float:
    """Return the value as a number, for settings that are numbers."""
    return float(value.value or 0.0)


def file_base(
    metadata: RopeMetadata, arch: Architecture, *, field: str | None = None
) -> EffectiveValue:
    """Return the base that the file declares in `field`: 10000 where it declares none.

    None is the field of the global layers. Raises FileError where the base is not a finite number
    above 1.
    """
    field = field or base_field(arch)
    declared = getattr(metadata, field)
    key = metadata.key(field)
    if declared is not None and not (math.isfinite(declared) and declared > 1):
        raise FileError(f"{key} is {declared:g}: expected a finite number above 1")
    base = 10000.0 if declared is None else declared
    reason = f"without {key} the base is 10000" if declared is None else key
    dimensions = metadata.head_size
    if "alpha" in arch.reads and dimensions and metadata.alpha and metadata.alpha > 0:
        alpha = metadata.key("alpha")
        try:
            base = ntk_base(base, metadata.alpha, dimensions)
        except RequestError as error:
            raise FileError(f"{alpha} is {metadata.alpha:g}: {error}") from error
        if base <= 1:
            raise FileError(
                f"{alpha} is {metadata.alpha:g}, which makes the base {base:g}: expected above 1"
            )
        reason += f", stretched by {alpha}"
    return _default(base, reason) if declared is None else _file(base, reason)


def base_field(arch: Architecture) -> str:
    """Return the field that the base of the global layers is read from."""
    return "compress_freq_base" if arch.compressed else "freq_base"


def file_scale(metadata: RopeMetadata) -> EffectiveValue:
    """Return the frequency scale that the file declares: 1 over `factor`, else over the old
    `scale_linear`. Raises FileError where it is not a finite number above 0."""
    for field in ("factor", "scale_linear"):
        factor = getattr(metadata, field)
        if factor is None:
            continue
        key = metadata.key(field)
        if factor == 0:
            return _default(1.0, f"{key} is 0, which means no scaling")
        if not (math.isfinite(factor) and factor > 0 and math.isfinite(1.0 / factor)):
            raise FileError(f"{key} is {factor:g}: expected a finite number above 0")
        return _file(1.0 / factor, f"1 / {key}")
    return _default(1.0, "the file has no scaling factor")


def yarn_file_magnitude(metadata: RopeMetadata, arch: Architecture, factor: float) -> float:
    """Return the attention factor llama.cpp gives YaRN of `factor`, before
    `rope.scaling.attn_factor`. Raises FileError where the file's numbers give none."""
    multiplier = metadata.yarn_log_multiplier if "yarn_log_multiplier" in arch.reads else None
    if not multiplier:
        return yarn_mscale(factor)
    whole = multiplier * arch.log_multiplier_unit
    part = whole if arch.mscale_pair and whole != 1 else 1.0
    magnitude, divisor = yarn_mscale(factor, part), yarn_mscale(factor, whole)
    if magnitude == 0 or divisor == 0:
        raise FileError(
            f"{metadata.key('yarn_log_multiplier')} is {multiplier:g}: with a factor of {factor:g} "
            "it makes the attention factor 0 or infinite"
        )
    return magnitude / divisor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What a setting may come from; one method for each setting, with llama.cpp's precedence."""

    metadata: RopeMetadata
    arch: Architecture
    overrides: RopeOverrides

    def scaling_type(self) -> EffectiveValue:
        declared = self.metadata.scaling_type
        key = self.metadata.key("scaling_type")
        if declared is not None and declared not in SCALING_TYPES:
            raise FileError(
                f"{key} is {declared!r}, on which llama.cpp aborts: "
                f"expected one of {', '.join(SCALING_TYPES)}"
            )
        if self.overrides.scaling_type is not None:
            return _override(self.overrides.scaling_type)
        if declared is not None:
            return _file(declared, key)
        return _default("linear", f"without {key} llama.cpp scales linearly")

    def freq_base(self) -> EffectiveValue:
        if self.overrides.freq_base is None:
            return file_base(self.metadata, self.arch)
        if self.arch.compressed:
            base = file_base(self.metadata, self.arch)
            return _ignored(base.value, "only the file sets the base of compressed layers")
        return _override(self.overrides.freq_base)

    def freq_scale(self, scaling_type: EffectiveValue) -> EffectiveValue:
        declared = file_scale(self.metadata)
        override = self.overrides.freq_scale
        if scaling_type.value == "none":
            if override is not None or declared.source == "file":
                return _ignored(1.0, "scaling type none: no factor is applied")
            return _default(1.0, "scaling type none")
        return declared if override is None else _override(override)

    def original_context(self) -> EffectiveValue:
        metadata = self.metadata
        if self.overrides.yarn_orig_ctx is not None:
            return _override(self.overrides.yarn_orig_ctx)
        if metadata.original_context:
            return _file(metadata.original_context, metadata.key("original_context"))
        if not metadata.context_length:
            raise FileError(
                f"{metadata.key('context_length')} is {metadata.context_length}: "
                "expected a number of tokens above 0"
            )
        return _default(
            metadata.context_length,
            f"without {metadata.key('original_context')} it is {metadata.key('context_length')}",
        )

    def ext_factor(self, scaling_type: EffectiveValue) -> EffectiveValue:
        by_type = 1.0 if scaling_type.value == "yarn" else 0.0
        fallback = _default(by_type, f"{by_type:g} for scaling type {scaling_type.value}")
        value = self._yarn_parameter("yarn_ext_factor", fallback)
        return fallback if number(value) < 0 else value

    def yarn_attn_factor(self, *, blends: bool, freq_scale: float) -> EffectiveValue:
        given = self._yarn_parameter("yarn_attn_factor", _default(1.0, "1 unless set"))
        if not blends:
            return given
        factor = 1.0 / freq_scale
        applied = 1.0 + 0.1 * math.log(factor)
        if applied == 0:
            raise FileError(f"a YaRN factor of {factor:g} makes the attention factor 0")
        value = yarn_file_magnitude(self.metadata, self.arch, factor) / applied
        if given.source in ("file", "override"):
            return _ignored(value, f"YaRN computes its own: {given.value:g} is overwritten")
        return _default(value, "computed for YaRN, before rope_yarn's 1 + 0.1 ln factor")

    def beta(self, field: str, default: float, *, blends: bool) -> EffectiveValue:
        value = self._yarn_parameter(field, _default(default, "llama.cpp's default"))
        if not blends and value.source in ("file", "override"):
            return _ignored(value.value, "only YaRN's blend uses it, and the extension factor is 0")
        return value

    def attn_factor(self) -> EffectiveValue:
        declared, key = self.metadata.attn_factor, self.metadata.key("attn_factor")
        if declared is None:
            return _default(1.0, "1 unless set")
        if not math.isfinite(declared):
            raise FileError(f"{key} is {declared}: expected a finite number")
        if declared != 1 and not magnitude_acts(self.metadata, self.arch):
            return _ignored(1.0, idle_magnitude_reason(self.arch))
        return _file(declared, key)

    def _yarn_parameter(self, field: str, fallback: EffectiveValue) -> EffectiveValue:
        override = getattr(self.overrides, field)
        declared = getattr(self.metadata, field)
        key = self.metadata.key(field)
        if override is not None:
            return _override(override)
        if declared is None:
            return fallback
        if field in self.arch.reads:
            # A negative extension factor is llama.cpp's way to leave it unset.
            if not math.isfinite(declared) or (declared < 0 and field != "yarn_ext_factor"):
                raise FileError(f"{key} is {declared:g}: expected a finite number, 0 or more")
            return _file(declared, key)
        if not self.arch.known:
            unsure = f"few architectures read {key}: it is not known whether this one does"
            return _ignored(fallback.value, unsure)
        return _ignored(
            fallback.value,
            f"llama.cpp does not read {key} ({declared:g} in the file): "
            + dead_key_remedy(self.metadata, self.arch, field, declared),
        )


def _file(value: float | int | str, key: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="file", reason=key)


def _override(value: float | int | str) -> EffectiveValue:
    return EffectiveValue(value=value, source="override", reason="a context parameter")


def _default(value: float | int | str | None, reason: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="default", reason=reason)


def _ignored(value: float | int | str | None, reason: str) -> EffectiveValue:
    return EffectiveValue(value=value, source="ignored", reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rope:
    """The arguments of one ggml_rope_ext call; `factors` has `n_rot/2` values or is None."""

    n_rot: int
    base: float
    scale: float
    original_context: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float
    factors: Floats | None

    def rotate(self) -> tuple[Floats, float]:
        """Return inverse frequencies and attention factor (ggml-cpu/ops.cpp `rope_yarn`)."""
        extrapolated = plain_frequencies(self.n_rot, self.base)
        if self.factors is not None:
            extrapolated = tuple(
                theta / factor for theta, factor in zip(extrapolated, self.factors, strict=True)
            )
        interpolated = tuple(theta * self.scale for theta in extrapolated)
        if self.ext_factor == 0:
            return interpolated, self.attn_factor
        kept = yarn_kept(
            self.n_rot, self.base, self.original_context, self.beta_fast, self.beta_slow
        )
        weights = [self.ext_factor * weight for weight in kept]
        blended = blend(interpolated, extrapolated, weights)
        return blended, self.attn_factor * (1 + 0.1 * math.log(1 / self.scale))


def _global_rope(
    metadata: RopeMetadata,
    arch: Architecture,
    settings: Resolution,
    tensor: FactorTensor | None,
) -> _Rope:
    n_rot = rotary_dimensions(metadata, arch)
    if not arch.settings_act:
        return _Rope(
            n_rot=n_rot,
            base=10000.0,
            scale=1.0,
            original_context=1.0,
            ext_factor=0.0,
            attn_factor=1.0,
            beta_fast=0.0,
            beta_slow=0.0,
            factors=None,
        )
    return _Rope(
        n_rot=n_rot,
        base=number(settings.freq_base),
        scale=number(settings.freq_scale),
        original_context=number(settings.original_context),
        ext_factor=number(settings.yarn_ext_factor),
        attn_factor=settings.applied_attn_factor,
        beta_fast=number(settings.yarn_beta_fast),
        beta_slow=number(settings.yarn_beta_slow),
        factors=None if tensor is None else _factor_values(tensor, n_rot),
    )


def _sliding_values(
    metadata: RopeMetadata,
    arch: Architecture,
    settings: Resolution,
    overrides: RopeOverrides,
) -> dict[str, EffectiveValue]:
    """`freq_base_swa` and `freq_scale_swa`: what the sliding-window layers start from."""
    window = arch.sliding
    if window is None:
        return {}
    base, scale = settings.freq_base, settings.freq_scale
    if arch.compressed:
        flag = overrides.freq_base
        base = file_base(metadata, arch, field="freq_base") if flag is None else _override(flag)
    elif window.base == "file":
        base = file_base(metadata, arch)
    elif window.base == "10000":
        base = _default(10000.0, "unless the file says")
    if window.reads_base and metadata.freq_base_swa is not None:
        base = file_base(metadata, arch, field="freq_base_swa")
    if window.scale == "file":
        scale = file_scale(metadata)
    elif window.scale == "1":
        plain = f"{arch.name} never scales its sliding-window layers"
        scaled = number(settings.freq_scale) != 1
        scale = _ignored(1.0, plain) if scaled else _default(1.0, plain)
    return {"freq_base_swa": base, "freq_scale_swa": scale}


def _sliding_rope(
    metadata: RopeMetadata, arch: Architecture, whole: _Rope, values: dict[str, EffectiveValue]
) -> _Rope:
    yarn = arch.sliding is None or arch.sliding.yarn
    n_rot = sliding_dimensions(metadata, arch)
    factors = whole.factors if arch.factors_on == "all" else None
    if factors is not None and len(factors) < n_rot // 2:
        raise FileError(
            f"the sliding-window layers rotate {n_rot} dimensions: llama.cpp aborts, as the factor "
            f"tensor has only {len(factors)} values"
        )
    return _Rope(
        n_rot=n_rot,
        base=number(values["freq_base_swa"]),
        scale=number(values["freq_scale_swa"]),
        original_context=whole.original_context,
        ext_factor=whole.ext_factor if yarn else 0.0,
        attn_factor=whole.attn_factor if yarn else 1.0,
        beta_fast=whole.beta_fast,
        beta_slow=whole.beta_slow,
        factors=None if factors is None else factors[: n_rot // 2],
    )


def _group(
    kind: LayerKind, layers: tuple[int, ...], rope: _Rope | None, *, acts: bool
) -> LayerGroup:
    inverse_frequencies, magnitude = ((), 1.0) if rope is None else rope.rotate()
    return LayerGroup(
        name=kind,
        layers=layers,
        inverse_frequencies=inverse_frequencies,
        magnitude=magnitude if acts else 1.0,
    )


def _check_size(n_rot: int, key: str) -> None:
    """Refuse a width before anything of its size is allocated."""
    if n_rot > MAX_ROTARY_DIMENSIONS:
        raise FileError(
            f"{key} gives {n_rot} rotary dimensions: expected at most {MAX_ROTARY_DIMENSIONS}"
        )


def _even(n_rot: int | None, key: str) -> int:
    if n_rot is None or n_rot < 2 or n_rot % 2:
        raise FileError(
            f"{key} gives {n_rot} rotary dimensions: expected an even number, 2 or more"
        )
    return n_rot


def _factor_values(tensor: FactorTensor, n_rot: int) -> Floats:
    if tensor.length != n_rot // 2:
        raise FileError(
            f"{tensor.name} has {tensor.length} values: llama.cpp loads only {n_rot // 2}, "
            "one per pair of rotary dimensions"
        )
    if tensor.type != F32:
        raise FileError(f"{tensor.name} is of type {tensor.type_name}: llama.cpp needs F32 factors")
    if tensor.values is None:
        raise RequestError(f"the values of {tensor.name} were not read: they decide the rotation")
    for index, value in enumerate(tensor.values):
        if value == 0 or not math.isfinite(value):
            raise FileError(
                f"{tensor.name}[{index}] is {value:g}: expected a finite number above 0"
            )
    return tensor.values


def _context_tokens(metadata: RopeMetadata, requested: int | None) -> int:
    if requested is None and not metadata.context_length:
        raise FileError(
            f"{metadata.key('context_length')} is {metadata.context_length}: "
            "expected a number of tokens above 0"
        )
    tokens = metadata.context_length if requested is None else requested
    if not tokens or tokens < 0:
        raise RequestError(f"context of {tokens} tokens: expected a number above 0")
    return allocated_context(tokens)


def _rope_type(metadata: RopeMetadata, arch: Architecture) -> RopeType:
    sections = metadata.dimension_sections
    if arch.mrope_by_sections and isinstance(sections, tuple) and min(sections[:2]) > 0:
        return "mrope"
    return arch.rope
