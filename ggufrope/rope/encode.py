"""A scaling scheme -> the metadata keys and factor tensors that make llama.cpp apply it.

What a file of the architecture cannot say is never written: it is listed as ignored, with what to
do instead. A scheme that exists only as factors is refused where the architecture loads none.

Any scheme can be baked into a factor tensor, which gets around keys that a runtime does not read:
llama.cpp divides the angle of pair j by factor j before anything else, so the factors
θ_plain/θ_scheme give the scheme, whatever it is. Its attention factor goes into
`rope.scaling.attn_factor`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufrope.container.types import Scalar, TypedValue
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.attention import idle_magnitude_reason, magnitude_acts
from ggufrope.rope.effective import LLAMA_FLAGS
from ggufrope.rope.frequencies import (
    Floats,
    dynamic_growth,
    frequencies,
    longrope_magnitude,
    ntk_base,
    plain_frequencies,
    yarn_magnitude,
)
from ggufrope.rope.keys import (
    KEYS,
    ROPE_FACTORS_LONG,
    ROPE_FACTORS_SHORT,
    ROPE_FREQS,
    SCALING_FIELDS,
)
from ggufrope.rope.layers import layer_kinds, sliding_layers
from ggufrope.rope.llamacpp import (
    base_field,
    file_base,
    number,
    rotary_dimensions,
    yarn_file_magnitude,
)
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    Proportional,
    RopeScaling,
    Unscaled,
    Yarn,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

STILL = 1e30
"""The factor of a pair that does not turn, as converters write it."""

_NOT_ONE = 1e-6
"""An attention factor this far from 1 is worth writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A requested parameter that llama.cpp would not honor; `instead` says what does."""

    parameter: str
    value: float | int | bool
    reason: str
    instead: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """What to put in the file: `keys` and `tensors` by name, None for those to remove.

    Tensors have `n_rot/2` values, as float32 holds them. `flags` are llama.cpp's command-line
    flags for what the file cannot say; `notes` are sentences on what else the change does.
    """

    keys: Mapping[str, TypedValue | None]
    tensors: Mapping[str, Floats | None]
    ignored: tuple[Ignored, ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """`factors` has `n_rot/2` values; `attention_factor` multiplies rotated queries and keys."""

    factors: Floats
    attention_factor: float


def express(
    scaling: RopeScaling,
    metadata: RopeMetadata,
    *,
    context_length: int | None = None,
    baked: bool = False,
    keep_short_context: bool = False,
) -> Expression:
    """Return the edits that make llama.cpp apply `scaling` to the model of `metadata`.

    `context_length` is declared as the new one. `baked` puts the scheme into a factor tensor.
    `keep_short_context` puts it into the long factors only; the short factors leave the model as it
    was up to its original context. Raises RequestError, with what to do instead, where no file can
    say it.
    """
    arch = architecture(metadata.architecture)
    draft = _Draft(metadata=metadata, arch=arch, context_length=context_length)
    if keep_short_context:
        _keep_short_context(draft, scaling)
    elif baked:
        _in_factors(draft, draft.bake(scaling, on_native=True))
    else:
        _by_scheme(draft, scaling)
    return draft.finish()


def bake(
    scaling: RopeScaling,
    *,
    n_rot: int,
    base: float,
    context_tokens: int | None = None,
    native: Floats | None = None,
) -> Baked:
    """Return factors over plain RoPE of `base` that rotate as `scaling` does.

    `native` has the `n_rot/2` factors the model was trained with, on top of which the scheme goes.
    Raises RequestError where `scaling` does not fit `n_rot`, `base` or `native`.
    """
    wanted = frequencies(scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    plain = plain_frequencies(n_rot, base)
    factors = tuple(
        theta / scaled if scaled > 0 else STILL
        for theta, scaled in zip(plain, wanted.inverse_frequencies, strict=True)
    )
    if native is not None:
        if len(native) != len(factors):
            raise RequestError(
                f"the file's factor tensor has {len(native)} values for {len(factors)} rotary pairs"
            )
        factors = tuple(min(f * own, STILL) for f, own in zip(factors, native, strict=True))
    return Baked(factors=factors, attention_factor=wanted.magnitude)


def as_float32(values: Sequence[float]) -> Floats:
    """Round values to float32, which is how a factor tensor holds them. Raises RequestError where
    one is out of float32's range."""
    layout = f"<{len(values)}f"
    try:
        return struct.unpack(layout, struct.pack(layout, *values))
    except OverflowError as error:
        raise RequestError(f"a factor is too large for a float32 tensor: {error}") from error


@dataclass(kw_only=True)
class _Draft:
    """An expression in the making."""

    metadata: RopeMetadata
    arch: Architecture
    context_length: int | None
    fields: dict[str, Scalar] = field(default_factory=dict)
    tensors: dict[str, Floats | None] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def n_rot(self) -> int:
        return rotary_dimensions(self.metadata, self.arch)

    @property
    def base(self) -> float:
        return number(file_base(self.metadata, self.arch))

    @property
    def slides(self) -> bool:
        """Whether the model has sliding-window layers."""
        return any(sliding_layers(self.metadata, self.arch))

    def bake(self, scaling: RopeScaling, *, on_native: bool) -> Baked:
        """Bake `scaling`, on top of the file's own factors where `on_native`."""
        if not self.arch.loads_factors:
            raise RequestError(self.no_factors("a scheme that exists only as factor tensors"))
        return bake(
            scaling,
            n_rot=self.n_rot,
            base=self.base,
            context_tokens=self.context_length,
            native=self.native_factors() if on_native else None,
        )

    def native_factors(self, *, short: bool = False) -> Floats | None:
        """The factors the model uses at its longest, or in short contexts; None without any."""
        for name in (ROPE_FREQS, ROPE_FACTORS_SHORT if short else ROPE_FACTORS_LONG):
            tensor = self.metadata.tensor(name)
            if tensor is None:
                continue
            if tensor.values is None:
                raise RequestError(
                    f"the values of {name} were not read: the scheme goes on top of them"
                )
            return tensor.values
        return None

    def put_tensor(self, name: str, factors: Floats) -> None:
        self.tensors[name] = as_float32(factors)

    def put_magnitude(self, magnitude: float) -> None:
        if abs(magnitude - 1) > _NOT_ONE:
            self.fields["attn_factor"] = magnitude

    def drop_rope_freqs(self) -> None:
        """Remove rope_freqs, which llama.cpp prefers to long and short factors where it loads."""
        if self.metadata.tensor(ROPE_FREQS) is not None:
            self.tensors[ROPE_FREQS] = None

    def ignore(
        self, parameter: str, value: float | int | bool, *, reason: str, instead: str
    ) -> None:
        self.ignored.append(
            Ignored(parameter=parameter, value=value, reason=reason, instead=instead)
        )

    def bake_advice(self) -> str:
        return "bake it into factors" if self.arch.loads_factors else ""

    def no_factors(self, what: str) -> str:
        return (
            f"{self.arch.no_factors}, so a file cannot hold "
            f"{what}: use linear, NTK-aware or YaRN scaling; YaRN's betas work at run time, with "
            "llama.cpp's --rope-scaling yarn --rope-scale N --yarn-orig-ctx N --yarn-beta-fast N "
            "--yarn-beta-slow N"
        )

    def finish(self) -> Expression:
        """Collect the edits: new keys, scaling keys to remove, tensors, and what to note."""
        if self.context_length is not None:
            self.fields["context_length"] = self.context_length
        keys: dict[str, TypedValue | None] = {
            self.metadata.key(name): TypedValue(type=KEYS[name].type, value=value)
            for name, value in self.fields.items()
        }
        for name in SCALING_FIELDS:
            if getattr(self.metadata, name) is not None:
                keys.setdefault(self.metadata.key(name), None)
        self._settle_tensors()
        kinds = layer_kinds(self.metadata, self.arch)
        if "global" not in kinds:
            windowed = "only sliding-window layers rotate: a window needs no extension"
            nothing = "no layer of this model rotates: the scaling does nothing"
            self.notes.append(windowed if "sliding-window" in kinds else nothing)
        return Expression(
            keys=MappingProxyType(keys),
            tensors=MappingProxyType(self.tensors),
            ignored=tuple(self.ignored),
            flags=tuple(self.flags),
            notes=tuple(self.notes),
        )

    def _settle_tensors(self) -> None:
        """Remove tensors that the new scaling type refuses; note those that stay."""
        scaling_type = str(self.fields["scaling_type"])
        for tensor in self.metadata.factor_tensors:
            if tensor.name in self.tensors:
                continue
            if not self.arch.loads(tensor.name, scaling_type):
                self.tensors[tensor.name] = None
                self.notes.append(
                    f"{tensor.name} is removed: with scaling type {scaling_type} llama.cpp would "
                    "refuse the file"
                )
            else:
                self.notes.append(f"{tensor.name} stays, and the scaling goes on top of it")


def _by_scheme(draft: _Draft, scaling: RopeScaling) -> None:
    match scaling:
        case Unscaled():
            draft.fields["scaling_type"] = "none"
        case Linear(factor=factor):
            draft.fields |= {"scaling_type": "linear", "factor": factor}
            _note_sliding_scale(draft)
        case NtkAware(factor=factor):
            _new_base(draft, ntk_base(draft.base, factor, draft.n_rot))
        case DynamicNtk():
            growth = dynamic_growth(scaling, draft.context_length)
            _new_base(draft, ntk_base(draft.base, growth, draft.n_rot))
            draft.ignore(
                "factor",
                scaling.factor,
                reason="llama.cpp has no dynamic NTK: one base holds for every context",
                instead="pass llama.cpp's --rope-freq-base for each context length at run time",
            )
        case Yarn():
            _yarn(draft, scaling)
        case LongRope():
            _longrope(draft, scaling)
        case NtkByParts() | Llama3() | FrequencyFactors() | Proportional():
            _in_factors(draft, draft.bake(scaling, on_native=isinstance(scaling, NtkByParts)))
        case _:
            raise RequestError(f"{type(scaling).__name__} is not a RoPE scaling scheme")


def _new_base(draft: _Draft, base: float) -> None:
    # Relative to the declared base, which an alpha beside it stretches by a constant.
    field = base_field(draft.arch)
    declared = getattr(draft.metadata, field) or 10000.0
    draft.fields |= {"scaling_type": "none", field: declared * (base / draft.base)}
    if draft.arch.compressed:
        draft.notes.append("sliding-window layers keep freq_base: only compressed layers change")
        return
    window = draft.arch.sliding
    if window is None or not draft.slides:
        return
    if window.base == "context":
        draft.notes.append("sliding-window layers take the new base too")
    elif window.base == "file" and window.reads_base and draft.metadata.freq_base_swa is None:
        draft.fields["freq_base_swa"] = draft.base
        draft.notes.append("sliding-window layers keep the old base: freq_base_swa is set to it")


def _yarn(draft: _Draft, scaling: Yarn) -> None:
    draft.fields |= {
        "scaling_type": "yarn",
        "factor": scaling.factor,
        "original_context": scaling.original_context,
    }
    implied = yarn_file_magnitude(_softmax_scaled(draft, scaling), draft.arch, scaling.factor)
    if magnitude_acts(draft.metadata, draft.arch):
        draft.put_magnitude(yarn_magnitude(scaling) / implied)
    else:
        reason = idle_magnitude_reason(draft.arch)
        draft.notes.append(f"no attention factor applies: {reason}")
    _yarn_parameter(draft, "yarn_beta_fast", scaling.beta_fast, draft.arch.beta_fast)
    _yarn_parameter(draft, "yarn_beta_slow", scaling.beta_slow, 1.0)
    _yarn_parameter(draft, "yarn_ext_factor", scaling.ext_factor, 1.0)
    if not scaling.truncate:
        draft.ignore(
            "truncate",
            False,
            reason="llama.cpp always rounds YaRN's band limits to whole pairs",
            instead=draft.bake_advice() or "no run-time parameter does",
        )
    _note_sliding_scale(draft)


def _softmax_scaled(draft: _Draft, scaling: Yarn) -> RopeMetadata:
    """Set yarn_log_multiplier to what the converter makes of mscale_all_dim, where llama.cpp reads
    it, and return the metadata with it. With latent attention it scales the softmax, which an
    attention factor cannot say (deepseek2.cpp 433-443, conversion/deepseek.py 382-386)."""
    if scaling.mscale_all_dim is None or "yarn_log_multiplier" not in draft.arch.reads:
        return draft.metadata
    multiplier = scaling.mscale_all_dim / draft.arch.log_multiplier_unit
    if multiplier or draft.metadata.yarn_log_multiplier:
        draft.fields["yarn_log_multiplier"] = multiplier
    return replace(draft.metadata, yarn_log_multiplier=multiplier)


def _yarn_parameter(draft: _Draft, name: str, value: float, default: float) -> None:
    if name in draft.arch.reads:
        draft.fields[name] = value
    elif value != default:
        flag = LLAMA_FLAGS[name]
        draft.flags += [flag, f"{value:g}"]
        advice = draft.bake_advice()
        draft.ignore(
            name,
            value,
            reason=f"llama.cpp does not read {draft.metadata.key(name)}",
            instead=f"pass llama.cpp's {flag} {value:g} at run time"
            + (f", or {advice}" if advice else ""),
        )


def _longrope(draft: _Draft, scaling: LongRope) -> None:
    if not draft.arch.has_long_short_factors:
        raise RequestError(draft.no_factors("LongRoPE's long and short factors"))
    if draft.context_length is not None and draft.context_length <= scaling.original_context:
        draft.notes.append("the context length is within the original: only short factors act")
    for name, factors in (
        (ROPE_FACTORS_LONG, scaling.long_factors),
        (ROPE_FACTORS_SHORT, scaling.short_factors),
    ):
        fitted = draft.bake(FrequencyFactors(factors=factors), on_native=False)
        draft.put_tensor(name, fitted.factors)
    draft.fields |= {"scaling_type": "longrope", "original_context": scaling.original_context}
    draft.put_magnitude(longrope_magnitude(scaling))
    draft.drop_rope_freqs()


def _keep_short_context(draft: _Draft, scaling: RopeScaling) -> None:
    if not draft.arch.has_long_short_factors:
        raise RequestError(draft.no_factors("separate long and short factors"))
    metadata = draft.metadata
    original = metadata.original_context or metadata.context_length
    if not original:
        raise RequestError(
            f"{metadata.key('context_length')} is {metadata.context_length}: keeping the short "
            "context needs the length at which the long factors start"
        )
    baked = draft.bake(scaling, on_native=True)
    native = draft.native_factors(short=True)
    draft.put_tensor(ROPE_FACTORS_LONG, baked.factors)
    draft.put_tensor(ROPE_FACTORS_SHORT, (1.0,) * (draft.n_rot // 2) if native is None else native)
    draft.fields |= {"scaling_type": "longrope", "original_context": original}
    if metadata.attn_factor is not None:
        draft.fields["attn_factor"] = metadata.attn_factor
    if abs(baked.attention_factor - 1) > _NOT_ONE:
        draft.ignore(
            "attention_factor",
            baked.attention_factor,
            reason="a file holds one attention factor for long and short factors, and it would "
            "change the short context",
            instead="bake without keep_short_context to have it",
        )
    draft.drop_rope_freqs()


def _in_factors(draft: _Draft, baked: Baked) -> None:
    arch = draft.arch
    if ROPE_FREQS in arch.tensors:
        draft.put_tensor(ROPE_FREQS, baked.factors)
        draft.fields["scaling_type"] = "none"
    else:
        draft.put_tensor(ROPE_FACTORS_LONG, baked.factors)
        draft.put_tensor(ROPE_FACTORS_SHORT, baked.factors)
        draft.fields["scaling_type"] = "longrope"
    draft.put_magnitude(baked.attention_factor)
    if arch.factors_on == "global" and draft.slides:
        draft.notes.append("only the global layers use factors: sliding-window layers stay")


def _note_sliding_scale(draft: _Draft) -> None:
    window = draft.arch.sliding
    if window is None or not draft.slides:
        return
    if window.scale == "1":
        note = "sliding-window layers are not scaled: llama.cpp leaves them as they are"
    else:
        note = "sliding-window layers are scaled too: llama.cpp has no way to leave them out"
    draft.notes.append(note)
