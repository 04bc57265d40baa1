"""Edits of a file as values: keys and tensors to write, and what no file can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufrope.container.types import Scalar, TypedValue
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.frequencies import (
    Array,
    dynamic_growth,
    frequencies,
    longrope_magnitude,
    ntk_base,
    plain_frequencies,
    yarn_magnitude,
)
from ggufrope.rope.keys import KEYS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.layers import layer_kinds, sliding_layers
from ggufrope.rope.llamacpp import file_base, number, rotary_dimensions, yarn_file_magnitude
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

SCALING_FIELDS = (
    "scaling_type",
    "factor",
    "scale_linear",
    "original_context",
    "attn_factor",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)
"""The fields that together say how positions are scaled: setting a scheme settles them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A parameter of the wish that llama.cpp would not honor; `instead` says what does."""

    parameter: str
    value: float | int | bool
    reason: str
    instead: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expression:
    """What to put in the file: `keys` and `tensors` by name, None for those to take out.

    Tensors are float32 `[n_rot/2]`. `flags` are llama.cpp's command-line flags that give what the
    file cannot; `notes` are sentences on what else the change does.
    """

    keys: Mapping[str, TypedValue | None]
    tensors: Mapping[str, NDArray[np.float32] | None]
    ignored: tuple[Ignored, ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# Any scheme as a factor tensor: the way past keys that a runtime does not read.
#
# llama.cpp divides the angle of pair j by factor j before anything else, so θ_base/θ_scheme in a
# factor tensor is the scheme, whatever it is. The magnitude goes to `rope.scaling.attn_factor`.

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
    Raises RequestError where `scaling` does not fit `n_rot`, `base` or `native`.
    """
    wished = frequencies(scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    turning = wished.inverse_frequencies > 0
    factors = np.full(n_rot // 2, STILL)
    plain = plain_frequencies(n_rot, base)
    np.divide(plain, wished.inverse_frequencies, out=factors, where=turning)
    if native is not None:
        if len(native) != len(factors):
            raise RequestError(
                f"the file's factor tensor has {len(native)} values for {len(factors)} rotary pairs"
            )
        factors = np.minimum(factors * native, STILL)
    return Baked(factors=factors, attention_factor=wished.magnitude)


# A scaling scheme -> the metadata keys and factor tensors that make llama.cpp apply it.
#
# What a file of the architecture cannot say is never written: it is listed as ignored, with what
# to do instead. A scheme that lives in factors alone is refused where the architecture loads none.


def express(
    scaling: RopeScaling,
    metadata: RopeMetadata,
    *,
    context_length: int | None = None,
    baked: bool = False,
    keep_short_context: bool = False,
) -> Expression:
    """The edits that make llama.cpp apply `scaling` to the model that `metadata` describes.

    `context_length` is declared as the new one. `baked` puts the scheme into a factor tensor;
    `keep_short_context` into the long one, with short factors that leave the model as it was up to
    its original context. Raises RequestError, with what to do instead, where no file can say it.
    """
    arch = architecture(metadata.architecture)
    draft = _Draft(metadata=metadata, arch=arch, context_length=context_length)
    if keep_short_context:
        _keep_short_context(draft, scaling)
    elif baked:
        _in_factors(draft, _bake(draft, scaling, on_native=True))
    else:
        _by_scheme(draft, scaling)
    return draft.finish()


@dataclass(kw_only=True)
class _Draft:
    """An expression in the making."""

    metadata: RopeMetadata
    arch: Architecture
    context_length: int | None
    fields: dict[str, Scalar] = field(default_factory=dict)
    tensors: dict[str, NDArray[np.float32] | None] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def n_rot(self) -> int:
        return rotary_dimensions(self.metadata, self.arch)

    @property
    def base(self) -> float:
        return number(file_base(self.metadata, self.arch))

    def put_tensor(self, name: str, factors: NDArray[Any]) -> None:
        self.tensors[name] = np.asarray(factors, dtype=np.float32)

    def finish(self) -> Expression:
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
        """Take out tensors that the new scaling type refuses; note those that stay."""
        scaling_type = str(self.fields["scaling_type"])
        for tensor in self.metadata.factor_tensors:
            if tensor.name in self.tensors:
                continue
            if not self.arch.loads(tensor.name, scaling_type):
                self.tensors[tensor.name] = None
                self.notes.append(f"{tensor.name} goes: scaling type {scaling_type} refuses it")
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
            draft.ignored.append(
                Ignored(
                    parameter="factor",
                    value=scaling.factor,
                    reason="llama.cpp has no dynamic NTK: a base holds for every context",
                    instead="give --rope-freq-base for each context length at run time",
                )
            )
        case Yarn():
            _yarn(draft, scaling)
        case LongRope():
            _longrope(draft, scaling)
        case NtkByParts() | Llama3() | FrequencyFactors() | Proportional():
            _in_factors(draft, _bake(draft, scaling, on_native=isinstance(scaling, NtkByParts)))
        case _:
            raise RequestError(f"{type(scaling).__name__} is not a RoPE scaling scheme")


def _new_base(draft: _Draft, base: float) -> None:
    # Relative to what the file says, which an alpha beside it stretches by a constant.
    declared = draft.metadata.freq_base or 10000.0
    draft.fields |= {"scaling_type": "none", "freq_base": declared * (base / draft.base)}
    window = draft.arch.sliding
    if window is None or not any(sliding_layers(draft.metadata, draft.arch)):
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
    implied = yarn_file_magnitude(draft.metadata, draft.arch, scaling.factor)
    attn_factor = yarn_magnitude(scaling) / implied
    if abs(attn_factor - 1) > 1e-6:
        draft.fields["attn_factor"] = attn_factor
    _yarn_parameter(draft, "yarn_beta_fast", scaling.beta_fast, draft.arch.beta_fast)
    _yarn_parameter(draft, "yarn_beta_slow", scaling.beta_slow, 1.0)
    _yarn_parameter(draft, "yarn_ext_factor", scaling.ext_factor, 1.0)
    if not scaling.truncate:
        draft.ignored.append(
            Ignored(
                parameter="truncate",
                value=False,
                reason="llama.cpp always rounds YaRN's band limits to whole pairs",
                instead=_bake_advice(draft) or "nothing does at run time",
            )
        )
    _note_sliding_scale(draft)


def _yarn_parameter(draft: _Draft, name: str, value: float, default: float) -> None:
    if name in draft.arch.reads:
        draft.fields[name] = value
    elif value != default:
        flag = "--" + name.replace("_", "-")
        draft.flags += [flag, f"{value:g}"]
        advice = _bake_advice(draft)
        draft.ignored.append(
            Ignored(
                parameter=name,
                value=value,
                reason=f"llama.cpp does not read {draft.metadata.key(name)}",
                instead=f"use {flag} {value:g} at run time" + (f", or {advice}" if advice else ""),
            )
        )


def _longrope(draft: _Draft, scaling: LongRope) -> None:
    if not draft.arch.has_long_short_factors:
        raise RequestError(_no_factors(draft, "LongRoPE's long and short factors"))
    short = draft.context_length is not None and draft.context_length <= scaling.original_context
    if short:
        draft.notes.append("the context length is within the original: only short factors act")
    for name, factors in (
        (ROPE_FACTORS_LONG, scaling.long_factors),
        (ROPE_FACTORS_SHORT, scaling.short_factors),
    ):
        fitted = _bake(draft, FrequencyFactors(factors=factors), on_native=False)
        draft.put_tensor(name, fitted.factors)
    draft.fields |= {"scaling_type": "longrope", "original_context": scaling.original_context}
    _put_magnitude(draft, longrope_magnitude(scaling))
    _drop_rope_freqs(draft)


def _keep_short_context(draft: _Draft, scaling: RopeScaling) -> None:
    if not draft.arch.has_long_short_factors:
        raise RequestError(_no_factors(draft, "a model with a long and a short factors"))
    metadata = draft.metadata
    original = metadata.original_context or metadata.context_length
    if not original:
        raise RequestError(
            f"{metadata.key('context_length')} is missing: where would the long factors start?"
        )
    baked = _bake(draft, scaling, on_native=True)
    native = _native_factors(draft, short=True)
    draft.put_tensor(ROPE_FACTORS_LONG, baked.factors)
    draft.put_tensor(ROPE_FACTORS_SHORT, np.ones(draft.n_rot // 2) if native is None else native)
    draft.fields |= {"scaling_type": "longrope", "original_context": original}
    if metadata.attn_factor is not None:
        draft.fields["attn_factor"] = metadata.attn_factor
    if abs(baked.attention_factor - 1) > 1e-6:
        draft.ignored.append(
            Ignored(
                parameter="attention_factor",
                value=baked.attention_factor,
                reason="one attention factor holds for both faces, and would change the short one",
                instead="bake without two faces to have it",
            )
        )
    _drop_rope_freqs(draft)


def _in_factors(draft: _Draft, baked: Baked) -> None:
    arch = draft.arch
    if not arch.loads_factors:
        raise RequestError(_no_factors(draft, "a scheme that lives in factor tensors"))
    if ROPE_FREQS in arch.tensors:
        draft.put_tensor(ROPE_FREQS, baked.factors)
        draft.fields["scaling_type"] = "none"
    else:
        draft.put_tensor(ROPE_FACTORS_LONG, baked.factors)
        draft.put_tensor(ROPE_FACTORS_SHORT, baked.factors)
        draft.fields["scaling_type"] = "longrope"
    _put_magnitude(draft, baked.attention_factor)
    if arch.factors_on == "global" and any(sliding_layers(draft.metadata, arch)):
        draft.notes.append("only the global layers use factors: sliding-window layers stay")


def _bake(draft: _Draft, scaling: RopeScaling, *, on_native: bool) -> Baked:
    if not draft.arch.loads_factors:
        raise RequestError(_no_factors(draft, "a scheme that lives in factor tensors"))
    return bake(
        scaling,
        n_rot=draft.n_rot,
        base=draft.base,
        context_tokens=draft.context_length,
        native=_native_factors(draft) if on_native else None,
    )


def _native_factors(draft: _Draft, *, short: bool = False) -> NDArray[np.float64] | None:
    """The factors the model uses at its longest, or in short contexts; None where it has none."""
    for name in (ROPE_FREQS, ROPE_FACTORS_SHORT if short else ROPE_FACTORS_LONG):
        tensor = draft.metadata.tensor(name)
        if tensor is not None:
            if tensor.values is None:
                raise RequestError(
                    f"the values of {name} were not read: the scheme goes on top of them"
                )
            return tensor.values
    return None


def _put_magnitude(draft: _Draft, magnitude: float) -> None:
    if abs(magnitude - 1) > 1e-6:
        draft.fields["attn_factor"] = magnitude


def _drop_rope_freqs(draft: _Draft) -> None:
    """rope_freqs would be preferred to long and short factors wherever it loads."""
    if draft.metadata.tensor(ROPE_FREQS) is not None:
        draft.tensors[ROPE_FREQS] = None


def _note_sliding_scale(draft: _Draft) -> None:
    window = draft.arch.sliding
    if window is None or not any(sliding_layers(draft.metadata, draft.arch)):
        return
    if window.scale == "1":
        draft.notes.append(
            "sliding-window layers are not scaled: llama.cpp leaves them as they are"
        )
    else:
        draft.notes.append(
            "sliding-window layers are scaled too: llama.cpp has no way to spare them"
        )


def _bake_advice(draft: _Draft) -> str:
    return "bake it into factors" if draft.arch.loads_factors else ""


def _no_factors(draft: _Draft, what: str) -> str:
    return (
        f"llama.cpp loads no such factor tensors for {draft.arch.name}, so a file cannot hold "
        f"{what}: use linear, NTK-aware or YaRN scaling; YaRN's betas work at run time, with "
        "--rope-scaling yarn --rope-scale N --yarn-orig-ctx N --yarn-beta-fast N --yarn-beta-slow N"
    )
