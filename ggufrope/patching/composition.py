"""A scheme on top of the scaling that a file has, as keys or as factor tensors.

`Composition` holds the rules: which keys say the result exactly, which factors do where no keys
can, and why it is refused where neither can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ggufrope.container.types import TypedValue
from ggufrope.errors import RequestError
from ggufrope.patching.request import raises_factor
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.encode import STILL, Expression, Ignored, as_float32, express
from ggufrope.rope.frequencies import Floats, frequencies, plain_frequencies, yarn_mscale
from ggufrope.rope.keys import KEYS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.layers import layer_kinds
from ggufrope.rope.llamacpp import (
    effective,
    file_base,
    number,
    rotary_dimensions,
    yarn_file_magnitude,
)
from ggufrope.rope.scaling import DynamicNtk, Linear, NtkAware, RopeScaling, Unscaled, Yarn
from ggufrope.rope.trained import declared_factor, declared_scaling, trained_context

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest, Target
    from ggufrope.rope.metadata import RopeMetadata

_TOLERANCE = 1e-4
"""Relative; keys and factors are stored as float32."""

_BASES = ("freq_base", "freq_base_swa", "compress_freq_base")

_NOT_ONE = 1e-6
"""An attention factor this far from another is worth writing."""

DROP = "or give `replace_scaling` to drop the scaling that the file has"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A scheme on top of the scaling that a file has: `start`, which is `target` before it."""

    request: ScalingRequest
    target: Target
    start: RopeMetadata

    @property
    def arch(self) -> Architecture:
        return architecture(self.start.architecture)

    @property
    def kind(self) -> str:
        return self.start.scaling_type or "linear"

    @property
    def blends(self) -> bool:
        """Whether YaRN's blend acts in the file."""
        return number(effective(self.start).values["yarn_ext_factor"]) != 0

    @property
    def raises(self) -> bool:
        return raises_factor(self.request, self.start)

    def expression(self) -> Expression:
        """Return the edits: keys where they say it exactly, else factors. Raises RequestError."""
        scaling, request = self.target.scaling, self.request
        if isinstance(scaling, Unscaled):
            return self._unchanged()
        if not (request.bake or request.keep_short_context):
            fields = self._in_keys(scaling)
            if fields is not None:
                self._refuse_softmax(fields)
                return self._keys(fields, self._key_notes(scaling))
        return self._in_tensors(scaling)

    def _unchanged(self) -> Expression:
        """`none`: the rotation of the file in a longer context."""
        trained = trained_context(self.start)
        reached = 0 if trained is None else trained.tokens
        context = self.start.context_length or 0
        if self.start.trained is None and self.target.context_length <= min(reached, context):
            raise RequestError(
                f"`scaling` none goes on top of the scaling that the file has "
                f"({declared_scaling(self.start)}) and changes nothing: give a `target_context` "
                f"above {reached} to declare a longer context, {DROP}"
            )
        return self._keys({}, ("the rotation stays as it is; only the context length changes",))

    def _in_keys(self, scaling: RopeScaling) -> dict[str, Any] | None:
        """Return the fields that say the result exactly; None where no keys do."""
        start, arch = self.start, self.arch
        if isinstance(scaling, Yarn):
            if self.raises:
                return self._raised_yarn(scaling)
            alone = declared_factor(start) == 1 and not self.blends
            if not alone or self.kind == "longrope" or start.tensor(ROPE_FACTORS_LONG):
                return None
            fields: dict[str, Any] = {
                "scaling_type": "yarn",
                "factor": scaling.factor,
                "original_context": scaling.original_context,
            }
            if not self._betas_are_read(scaling):
                return None
            fields |= self._betas(scaling)
            wanted = self._wanted_magnitude(scaling)
            if self._starts_scores:
                unit = 1 / arch.log_multiplier_unit
                fields["yarn_log_multiplier"] = unit
                start = replace(start, yarn_log_multiplier=unit)
            implied = yarn_file_magnitude(start, arch, scaling.factor)
            return fields | _attention(start, wanted / implied)
        if self.blends:
            return None
        if isinstance(scaling, Linear):
            own = 1.0 if self.raises else declared_factor(start)
            kind = "linear" if self.kind == "none" else self.kind
            fields = {"scaling_type": kind, "factor": scaling.factor * own}
            return fields if start.scaling_type or kind == "none" else {"factor": fields["factor"]}
        if isinstance(scaling, NtkAware | DynamicNtk):
            stretched = express(scaling, start, context_length=self.target.context_length)
            names = {start.key(name): name for name in _BASES}
            return {
                names[key]: value.value
                for key, value in stretched.keys.items()
                if key in names and value is not None
            }
        return None

    @property
    def _starts_scores(self) -> bool:
        """Whether YaRN is new to a file of MLA, which says it with yarn_log_multiplier."""
        arch = self.arch
        reads = "yarn_log_multiplier" in arch.reads
        return arch.scores_by_factor and reads and not self.start.yarn_log_multiplier

    def _raised_yarn(self, scaling: Yarn) -> dict[str, Any]:
        """YaRN with a larger factor and every other setting of the file."""
        start, request = self.start, self.request
        values = effective(start).values
        for name, own in (
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
            ("ext_factor", "yarn_ext_factor"),
        ):
            given, has = getattr(request, name), number(values[own])
            if given is not None and abs(given - has) > _TOLERANCE:
                raise RequestError(
                    f"`{name}` {given:g}: the file's own YaRN has {has:g}, and a larger factor "
                    f"keeps that: leave `{name}` out, {DROP}"
                )
        fields: dict[str, Any] = {"factor": scaling.factor}
        if request.attn_factor is None:
            return fields
        implied = yarn_file_magnitude(start, self.arch, scaling.factor)
        return fields | _attention(start, request.attn_factor / implied)

    def _betas_are_read(self, scaling: Yarn) -> bool:
        """Whether keys of this architecture say the YaRN parameters, or need not."""
        defaults = {"yarn_beta_fast": self.arch.beta_fast, "yarn_beta_slow": 1.0}
        return scaling.truncate and all(
            name in self.arch.reads or getattr(scaling, name.removeprefix("yarn_")) == value
            for name, value in (*defaults.items(), ("yarn_ext_factor", 1.0))
        )

    def _betas(self, scaling: Yarn) -> dict[str, Any]:
        names = ("yarn_beta_fast", "yarn_beta_slow", "yarn_ext_factor")
        return {
            name: getattr(scaling, name.removeprefix("yarn_"))
            for name in names
            if name in self.arch.reads
        }

    def _wanted_magnitude(self, scaling: RopeScaling) -> float:
        """The attention factor of the result: the file's, times the scheme's."""
        own, start = magnitude(self.start), self.start
        if not isinstance(scaling, Yarn):
            return own
        if self.request.attn_factor is not None:
            return self.request.attn_factor
        if self.raises:
            implied = yarn_file_magnitude(start, self.arch, scaling.factor)
            return implied * (start.attn_factor or 1.0)
        if start.yarn_log_multiplier and "yarn_log_multiplier" in self.arch.reads:
            return own * yarn_file_magnitude(start, self.arch, scaling.factor)
        if self.arch.scores_by_factor:
            return own  # the whole scores are scaled in its place, or not at all
        return own * yarn_mscale(scaling.factor)

    def _refuse_softmax(self, fields: dict[str, Any]) -> None:
        """MLA multiplies attention scores by what follows from the factor (deepseek2.cpp 433-443):
        only YaRN with the file's own convention may move it."""
        if not self.arch.scores_by_factor:
            return
        start, request = self.start, self.request
        declared = declared_scaling(start)
        if not isinstance(self.target.scaling, Yarn) and "factor" in fields:
            raise RequestError(
                f"the file is already scaled ({declared}), and a linear factor also changes the "
                f"attention scores of {self.arch.name}: ask for yarn, {DROP}"
            )
        own = start.attn_factor or 1.0
        if request.attn_factor is None:
            return
        if "attn_factor" in fields and abs((fields["attn_factor"] or 1.0) - own) > _TOLERANCE:
            scaling = self.target.scaling
            factor = getattr(scaling, "factor", 1.0)
            wanted = yarn_file_magnitude(start, self.arch, factor) * own
            raise RequestError(
                f"`attn_factor` {request.attn_factor:g} also changes the attention scores of "
                f"{self.arch.name}, where the file's own keys give {wanted:.6g}: leave it out to "
                f"keep that, {DROP}"
            )

    def _key_notes(self, scaling: RopeScaling) -> tuple[str, ...]:
        notes = [f"{each.name} stays, below the scaling" for each in self.start.factor_tensors]
        if self.raises:
            own = declared_factor(self.start)
            factor = getattr(scaling, "factor", own)
            notes.append(f"the factor of the file is raised from {own:g} to {factor:g}")
        window = self.arch.sliding
        kinds = layer_kinds(self.start, self.arch)
        if "global" not in kinds and "sliding-window" in kinds:
            notes.append("only sliding-window layers rotate: a window needs no extension")
        elif window is not None and "sliding-window" in kinds:
            if isinstance(scaling, NtkAware | DynamicNtk):
                moves = window.base == "context"
            else:
                moves = window.scale != "1"
            notes.append(
                "sliding-window layers are scaled too: llama.cpp has no way to leave them out"
                if moves
                else "sliding-window layers stay as they are"
            )
        return tuple(notes)

    def _keys(self, fields: dict[str, Any], notes: tuple[str, ...]) -> Expression:
        """Return the edits of these fields, with the context length and what depends on it."""
        if self.target.freq_base is not None:
            fields = {"freq_base": self.target.freq_base, **fields}
        fields = {**self._pinned(), **fields, "context_length": self.target.context_length}
        return Expression(keys=typed(self.start, fields), tensors=MappingProxyType({}), notes=notes)

    def _pinned(self) -> dict[str, Any]:
        """The original context, where the file does not declare one and the context length, which
        is about to change, stands in for it: for YaRN, the choice of factors, and the attention
        temperature of mistral3."""
        start = self.start
        acts = self.kind in ("yarn", "longrope") or self.arch.temperature == "original-context"
        if start.original_context or not acts or not start.context_length:
            return {}
        return {"original_context": start.context_length}

    def _in_tensors(self, scaling: RopeScaling) -> Expression:
        """Factor tensors on top of the keys that the file has."""
        arch, start = self.arch, self.start
        if not arch.loads_factors:
            raise RequestError(self._no_factors())
        ratios = self._ratios(scaling)
        own, wanted = magnitude(start), self._wanted_magnitude(scaling)
        if not own:
            raise RequestError("the attention factor of the file is 0: it cannot be composed with")
        if self.request.keep_short_context:
            return self._long_factors(ratios, own, wanted)
        fields: dict[str, Any] = {}
        tensors: dict[str, Floats | None] = {}
        if abs(wanted / own - 1) > _NOT_ONE:
            fields["attn_factor"] = (start.attn_factor or 1.0) * wanted / own
        names: tuple[str, ...] = (ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT)
        chooses = start.tensor(ROPE_FREQS) is None and any(map(start.tensor, names))
        if not chooses and arch.loads(ROPE_FREQS, self.kind):
            names = (ROPE_FREQS,)
        for name in names:
            tensors[name] = _slowed(self._own(name), ratios)
        notes = ["the scaling that the file has stays, and factors go on top of it"]
        if arch.factors_on == "global" and "sliding-window" in layer_kinds(start, arch):
            notes.append("only the global layers use factors: sliding-window layers stay")
        expression = self._keys(fields, tuple(notes))
        return replace(expression, tensors=MappingProxyType(tensors))

    def _long_factors(self, ratios: Floats, own: float, wanted: float) -> Expression:
        """Long factors that are slowed, and short ones that rotate as the file does."""
        arch, start = self.arch, self.start
        if not arch.has_long_short_factors:
            raise RequestError(
                f"llama.cpp loads no separate long and short factors for {arch.name}: ask without "
                "`keep_short_context`"
            )
        fields: dict[str, Any] = {}
        tensors: dict[str, Floats | None] = {}
        notes = ["the short factors are the file's own: its short context is kept bit for bit"]
        trained = trained_context(start)
        context = None if trained is None else trained.tokens
        if start.tensor(ROPE_FREQS) is None and start.tensor(ROPE_FACTORS_LONG) is not None:
            context = start.original_context or context
        short, long = self._own(ROPE_FACTORS_SHORT), self._own(ROPE_FACTORS_LONG)
        if self.blends:
            plain = plain_frequencies(2 * len(short), self._base())
            short = tuple(p / t for p, t in zip(plain, self._frequencies(1), strict=True))
            long = tuple(p / t for p, t in zip(plain, self._frequencies(None), strict=True))
            fields = {"factor": None, "scale_linear": None, "attn_factor": own}
            notes = ["the short factors repeat YaRN of the file to the precision of float32"]
        elif self.kind == "none":
            fields = {"factor": None, "scale_linear": None}
        if self.blends or not arch.loads(ROPE_FACTORS_LONG, self.kind):
            fields["scaling_type"] = "longrope"
        if start.tensor(ROPE_FREQS) is not None:
            tensors[ROPE_FREQS] = None
        fields["original_context"] = context
        tensors[ROPE_FACTORS_LONG] = _slowed(long, ratios)
        tensors[ROPE_FACTORS_SHORT] = as_float32(short)
        ignored: tuple[Ignored, ...] = ()
        if abs(wanted / own - 1) > _NOT_ONE:
            ignored = (
                Ignored(
                    parameter="attention_factor",
                    value=wanted,
                    reason="a file holds one attention factor for long and short factors, and it "
                    "would change the short context",
                    instead="bake without keep_short_context to have it",
                ),
            )
        expression = self._keys(fields, tuple(notes))
        return replace(expression, tensors=MappingProxyType(tensors), ignored=ignored)

    def _own(self, name: str) -> Floats:
        """The factors that the file uses where `name` will be, ones where it has none."""
        start = self.start
        n_rot = rotary_dimensions(start, self.arch)
        tensor = start.tensor(ROPE_FREQS) or start.tensor(name)
        if tensor is None:
            return (1.0,) * (n_rot // 2)
        if tensor.values is None:
            raise RequestError(f"the values of {tensor.name} were not read: the scheme goes on top")
        if tensor.length != n_rot // 2:
            raise RequestError(
                f"the file's factor tensor has {tensor.length} values for {n_rot // 2} rotary pairs"
            )
        return tensor.values

    def _base(self) -> float:
        return number(file_base(self.start, self.arch))

    def _frequencies(self, context_tokens: int | None) -> Floats:
        """The inverse frequencies of the global layers of the file, `[n_rot/2]`."""
        groups = effective(self.start, context_tokens=context_tokens).groups
        for group in groups:
            if group.name == "global":
                return group.inverse_frequencies
        raise RequestError(
            "only sliding-window layers rotate in this model: ask for `scaling` none with "
            "`target_context`, which leaves them as they are"
        )

    def _ratios(self, scaling: RopeScaling) -> Floats:
        """Return the share of its speed that each pair keeps, `[n_rot/2]`."""
        if self.raises:
            fields = self._in_keys(scaling) or {}
            raised: dict[str, Any] = {**self._pinned(), **fields}
            own = self._frequencies(None)
            rotated = replace(self, start=replace(self.start, **raised))._frequencies(None)
            return tuple(b / a if a > 0 else 1.0 for a, b in zip(own, rotated, strict=True))
        n_rot, base = rotary_dimensions(self.start, self.arch), self._base()
        tokens = self.target.context_length
        scaled = frequencies(scaling, n_rot=n_rot, base=base, context_tokens=tokens)
        plain = plain_frequencies(n_rot, base)
        return tuple(new / old for new, old in zip(scaled.inverse_frequencies, plain, strict=True))

    def _no_factors(self) -> str:
        declared = declared_scaling(self.start)
        return (
            f"the file is already scaled ({declared}), and no keys put "
            f"{named(self.request, self.target)} on top of that; {self.arch.no_factors}. "
            f"{instead(self.start, self.target)}, {DROP}"
        )


def typed(metadata: RopeMetadata, fields: dict[str, Any]) -> dict[str, TypedValue | None]:
    """Return the keys of these fields; those that are None and not in the file are left out."""
    return {
        metadata.key(name): None if value is None else TypedValue(type=KEYS[name].type, value=value)
        for name, value in fields.items()
        if value is not None or getattr(metadata, name) is not None
    }


def _attention(start: RopeMetadata, value: float) -> dict[str, Any]:
    """The field of the attention factor, where it is not what the file has."""
    if abs(value - (start.attn_factor or 1.0)) <= _NOT_ONE:
        return {}
    return {"attn_factor": None if abs(value - 1) <= 1e-6 else value}


def _slowed(factors: Floats, ratios: Floats) -> Floats:
    slowed = (min(own / ratio, STILL) for own, ratio in zip(factors, ratios, strict=True))
    return as_float32(tuple(slowed))


def magnitude(metadata: RopeMetadata) -> float:
    """Return the attention factor of the layers that a scaling is for."""
    groups = [group for group in effective(metadata).groups if group.inverse_frequencies]
    whole = next((group for group in groups if group.name == "global"), None)
    found = whole or next(iter(groups), None)
    return 1.0 if found is None else found.magnitude


def named(request: ScalingRequest, target: Target) -> str:
    """Return the scheme of a request in words, with its factor."""
    factor = getattr(target.scaling, "factor", None)
    if factor is None:
        return request.scaling
    return f"{request.scaling} {factor:.4g} over {target.original_context}"


def instead(start: RopeMetadata, target: Target) -> str:
    """Return what to ask for: a request that starts from the rotation that the file has."""
    kind = start.scaling_type or "linear"
    if declared_factor(start) > 1 and kind in ("linear", "yarn"):
        also = " or ntk" if kind == "linear" else ""
        return (
            f"Ask for {kind}{also} with `target_context` {target.context_length}, which "
            "raises what the file has"
        )
    return f"Ask for yarn, ntk or linear with `target_context` {target.context_length}"
