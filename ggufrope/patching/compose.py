"""A scaling request as edits of a file: the scheme goes on top of the rotation that the file has.

A model may already be scaled, and trained so: linear 8 in Gemma 3, YaRN in DeepSeek, LongRoPE in
Phi, factor tensors in Llama 3.1. What it does within its trained context is what a further
extension has to keep. So a scheme is taken as what it does to plain RoPE, the share of its speed
that each pair keeps, and that is applied to the frequencies of the file. Linear onto linear and
YaRN onto YaRN raise the factor instead, which is what the models of both kinds were made with. The
attention factor of the file stays, times that of the scheme; a file with yarn_log_multiplier keeps
its own convention.

Where llama.cpp's keys say the result exactly, keys are written; else factor tensors on top of the
keys that the file has; else the request is refused. Nothing is approximated, and `check_start`
compares the prediction of the result with what was asked. `replace_scaling` and `from_config` say
the whole scaling, and start from plain RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ggufrope.container.types import TypedValue
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.composition import DROP, Composition, instead, magnitude, named, typed
from ggufrope.patching.request import ScalingRequest, Target, resolve
from ggufrope.rope.architectures import architecture
from ggufrope.rope.encode import STILL, Expression, express
from ggufrope.rope.frequencies import Floats
from ggufrope.rope.keys import KEYS, ROPE_FACTORS_LONG
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, effective, yarn_file_magnitude
from ggufrope.rope.metadata import FactorTensor, RopeMetadata
from ggufrope.rope.scaling import FrequencyFactors, LongRope, RopeScaling, Yarn
from ggufrope.rope.trained import (
    STATE_FIELDS,
    declared_scaling,
    is_record,
    record_keys,
    record_of,
    trained_context,
    trained_state,
    with_record,
)

if TYPE_CHECKING:
    from ggufrope.rope.effective import LayerGroup

_TOLERANCE = 1e-4
"""Relative; keys and factors are stored as float32."""
_STILL = 0.9 * STILL
"""Factors from which on a pair does not turn at any length."""


def encode_request(request: ScalingRequest, metadata: RopeMetadata) -> tuple[Target, Expression]:
    """Return the scheme that `request` means on this model, and the keys and tensors of it.

    Raises RequestError where the scheme cannot go on top of what the file has, and says what can.
    """
    state = trained_state(metadata)
    target = resolve(request, metadata)
    start = state if target.freq_base is None else replace(state, freq_base=target.freq_base)
    dropped: tuple[str, ...] = ()
    if _says_all(request):
        start, dropped = _without_factors(start)
    if _is_plain(request, start):
        expression = _on_plain(request, target, start)
    else:
        expression = Composition(request=request, target=target, start=start).expression()
    wanted = patched(start, expression)
    keys = {**expression.keys, **_difference_of(metadata, wanted)}
    removed = dict.fromkeys(name for name in dropped if wanted.tensor(name) is None)
    tensors = {**removed, **expression.tensors, **_other_tensors(metadata, wanted)}
    keys |= _record(request, target, metadata)
    notes = tuple(f"{name} is removed: it is of the scaling that is replaced" for name in removed)
    return target, replace(
        expression,
        keys=MappingProxyType(keys),
        tensors=MappingProxyType(tensors),
        notes=(*expression.notes, *notes),
    )


def patched(metadata: RopeMetadata, expression: Expression) -> RopeMetadata:
    """Return what the file will declare once `expression` is written."""
    fields = {metadata.key(field): field for field in KEYS}
    values = {
        fields[key]: None if value is None else value.value
        for key, value in expression.keys.items()
        if not is_record(key)
    }
    tensors = {tensor.name: tensor for tensor in metadata.factor_tensors}
    for name, factors in expression.tensors.items():
        if factors is None:
            tensors.pop(name, None)
        else:
            tensors[name] = FactorTensor(name=name, length=len(factors), values=factors)
    mistyped = tuple(wrong for wrong in metadata.mistyped if wrong.key not in expression.keys)
    changes: dict[str, Any] = {
        **values,
        "factor_tensors": tuple(tensors.values()),
        "mistyped": mistyped,
    }
    return with_record(replace(metadata, **changes), expression.keys)


def refusal(request: ScalingRequest, metadata: RopeMetadata) -> str | None:
    """Return why `request` cannot be written into the file that declares `metadata`, or None.

    The reason says what to ask for instead.
    """
    try:
        target, expression = encode_request(request, metadata)
        check_start(request, target, metadata, patched(metadata, expression))
    except (RequestError, FileError) as error:
        return str(error)
    return None


def check_start(
    request: ScalingRequest, target: Target, before: RopeMetadata, after: RopeMetadata
) -> None:
    """Raise RequestError where `after` does not start from the rotation of `before`.

    A file that is not scaled has nothing to keep, nor has one that llama.cpp refuses to load.
    """
    if request.from_config is not None:
        return
    start = trained_state(before)
    if not request.replace_scaling:
        _check_scores(request, target, start, after)
    declared = declared_scaling(start)
    if declared is None or request.replace_scaling:
        return
    found = _departure(_Change(request=request, target=target, before=start, after=after))
    if found is not None:
        raise RequestError(
            f"the file is already scaled ({declared}), and {named(request, target)} does not "
            f"start from that: {found}. {instead(start, target)}, {DROP}"
        )


def _is_plain(request: ScalingRequest, start: RopeMetadata) -> bool:
    """Return whether the scheme is said over plain RoPE: there is nothing below it to keep, or the
    request says the whole scaling."""
    return (
        _says_all(request)
        or declared_scaling(start) is None
        or request.scaling in ("factors", "longrope")
    )


def _says_all(request: ScalingRequest) -> bool:
    """Return whether the request says the whole scaling, so that nothing of the file's stays."""
    return request.from_config is not None or request.replace_scaling


def _without_factors(state: RopeMetadata) -> tuple[RopeMetadata, tuple[str, ...]]:
    """Return a state without its factor tensors, and the names of those. What stays of them are
    pairs that do not turn: they are which part of a head rotates, and no scaling (Gemma 4)."""
    kept = []
    for tensor in state.factor_tensors:
        still = tuple(STILL if factor >= _STILL else 1.0 for factor in tensor.values or ())
        if STILL in still:
            kept.append(replace(tensor, values=still))
    names = {tensor.name for tensor in state.factor_tensors} - {tensor.name for tensor in kept}
    return replace(state, factor_tensors=tuple(kept)), tuple(sorted(names))


def _on_plain(request: ScalingRequest, target: Target, start: RopeMetadata) -> Expression:
    scaling = _with_own_attention(request, target.scaling, start)
    scored = _with_scores(request, scaling, start)
    if scored is not None:
        start, scaling = scored
    expression = express(
        scaling,
        start,
        context_length=target.context_length,
        baked=request.bake,
        keep_short_context=request.keep_short_context,
    )
    kept = _kept_floor(request, start, expression)
    if scored is not None:
        kept["yarn_log_multiplier"] = start.yarn_log_multiplier
    if kept:
        expression = replace(expression, keys={**expression.keys, **typed(start, kept)})
    bases = {"freq_base": target.freq_base, "freq_base_swa": target.sliding_base}
    wanted = {name: base for name, base in bases.items() if base is not None}
    return replace(expression, keys={**typed(start, wanted), **expression.keys})


def _with_scores(
    request: ScalingRequest, scaling: RopeScaling, start: RopeMetadata
) -> tuple[RopeMetadata, Yarn] | None:
    """Return YaRN for an architecture that scales attention scores by the factor, and the state it
    is for; None where it is no such request.

    YaRN multiplies scores by the square of its attention factor. In MLA only a part of the query
    and the key rotates: the file says the whole with yarn_log_multiplier, as DeepSeek's do, and
    where that is not read, the attention factor is 1, which leaves the scores as they are.
    """
    arch = architecture(start.architecture)
    says_more = request.from_config is not None or request.attn_factor is not None
    if not isinstance(scaling, Yarn) or not arch.scores_by_factor or says_more:
        return None
    if "yarn_log_multiplier" in arch.reads:
        unit = 1 / arch.log_multiplier_unit
        start = replace(start, yarn_log_multiplier=start.yarn_log_multiplier or unit)
        implied = yarn_file_magnitude(start, arch, scaling.factor)
        return start, replace(scaling, attention_factor=implied)
    return start, replace(scaling, attention_factor=1.0)


def _kept_floor(
    request: ScalingRequest, start: RopeMetadata, expression: Expression
) -> dict[str, Any]:
    """Return the original context that the attention temperature rises from, where the edits would
    take it away or the context length, which changes, stands in for it."""
    arch = architecture(start.architecture)
    if request.from_config is not None or request.replace_scaling:
        return {}
    if arch.temperature != "original-context" or not start.temperature_scale:
        return {}
    if expression.keys.get(start.key("original_context")) is not None:
        return {}
    return {"original_context": start.original_context or start.context_length}


def _check_scores(
    request: ScalingRequest, target: Target, start: RopeMetadata, after: RopeMetadata
) -> None:
    """Raise RequestError where the factor would change attention scores (deepseek2.cpp 433-443) in
    another way than YaRN does."""
    arch = architecture(start.architecture)
    if not arch.scores_by_factor:
        return
    try:
        old, new = (
            effective(each, context_tokens=target.context_length) for each in (start, after)
        )
    except (FileError, RequestError):
        return
    # All layers that have attention have the same scale; a file may have none.
    scales = [
        next((g.attention_scale for g in e.groups if g.attention_scale), 1.0) for e in (old, new)
    ]
    if abs(scales[1] / scales[0] - 1) <= _TOLERANCE:
        return
    if isinstance(target.scaling, Yarn) and request.attn_factor is None:
        return
    what = "`attn_factor`" if isinstance(target.scaling, Yarn) else f"`scaling` {request.scaling}"
    raise RequestError(
        f"{what} also multiplies the attention scores of {arch.name} by "
        f"{scales[1] / scales[0]:.4g}: ask for yarn without an attention factor, or give "
        "`replace_scaling` to have it all the same"
    )


def _with_own_attention(
    request: ScalingRequest, scaling: RopeScaling, start: RopeMetadata
) -> RopeScaling:
    """Factors given as they are keep the attention factor and the threshold that the file has."""
    if request.replace_scaling or declared_scaling(start) is None:
        return scaling
    if isinstance(scaling, LongRope) and start.tensor(ROPE_FACTORS_LONG) is not None:
        original = start.original_context or scaling.original_context
        scaling = replace(scaling, original_context=original)
    if isinstance(scaling, FrequencyFactors | LongRope) and request.attn_factor is None:
        return replace(scaling, attention_factor=magnitude(start))
    return scaling


def _difference_of(metadata: RopeMetadata, wanted: RopeMetadata) -> dict[str, TypedValue | None]:
    """Return the keys that take a file with `metadata` to `wanted`, where an earlier patch left
    other values than `wanted` starts from."""
    keys: dict[str, TypedValue | None] = {}
    if metadata.trained is None:
        return keys
    for field in STATE_FIELDS:
        value = getattr(wanted, field)
        if value != getattr(metadata, field):
            typed = None if value is None else TypedValue(type=KEYS[field].type, value=value)
            keys[metadata.key(field)] = typed
    return keys


def _other_tensors(metadata: RopeMetadata, wanted: RopeMetadata) -> dict[str, Floats | None]:
    if metadata.trained is None:
        return {}
    tensors: dict[str, Floats | None] = {
        tensor.name: None
        for tensor in metadata.factor_tensors
        if wanted.tensor(tensor.name) is None
    }
    for tensor in wanted.factor_tensors:
        if tensor.values is not None:
            tensors[tensor.name] = tensor.values
    return tensors


def _record(
    request: ScalingRequest, target: Target, metadata: RopeMetadata
) -> dict[str, TypedValue | None]:
    """Return the keys that record what the model was trained with, once a patch goes beyond it.

    A config, and a patch within the trained context, say what the model is: they leave no record.
    """
    old: dict[str, TypedValue | None] = dict.fromkeys(record_of(metadata))
    trained, state = trained_context(metadata), trained_state(metadata)
    if request.from_config is not None or trained is None:
        return old
    if target.context_length <= trained.tokens:
        return old
    tokens = trained.tokens
    if request.replace_scaling:
        unscaled: dict[str, Any] = dict.fromkeys(STATE_FIELDS[2:])
        state = replace(_without_factors(state)[0], **unscaled)
        tokens = target.original_context
    elif declared_scaling(state) is None:
        tokens = target.original_context
    elif state.scaling_type == "yarn":
        original = state.original_context or state.context_length
        state = replace(state, original_context=original)
    if target.freq_base is not None:
        state = replace(state, freq_base=target.freq_base)
    return {**old, **record_keys(state, tokens)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A request, what it means on the file, and what the file declares before and after it."""

    request: ScalingRequest
    target: Target
    before: RopeMetadata
    after: RopeMetadata

    def groups(self, context_tokens: int) -> list[_Group]:
        """Return the layers that rotate alike, in a context of that length."""
        old = effective(self.before, context_tokens=context_tokens).groups
        new = effective(self.after, context_tokens=context_tokens).groups
        after = {group.name: group for group in new}
        return [
            _Group(name=group.name, before=group, after=after[group.name])
            for group in old
            if group.name in after
        ]

    def contexts(self) -> list[int]:
        """Return the lengths to compare in: around the original one, and the shorter length."""
        context = self.before.context_length or self.target.context_length
        longest = min(context, self.target.context_length)
        original = min(self.before.original_context or longest, longest)
        return sorted({original, min(original + CONTEXT_GRANULE, longest), longest})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Layers that rotate alike, before and after."""

    name: str
    before: LayerGroup
    after: LayerGroup

    def fastest(self) -> float:
        """Return how many times as fast as before the pairs turn, at most."""
        old, new = self.before.inverse_frequencies, self.after.inverse_frequencies
        if len(old) != len(new):
            return 1.0
        return max([b / a for a, b in zip(old, new, strict=True) if a > 0] or [1.0])


def _departure(change: _Change) -> str | None:
    """Return how the result leaves the rotation of the file, where it does.

    No pair may turn faster than before, and the attention factor may not fall: what remains is
    factors and a base that were given as numbers.
    """
    try:
        groups = [group for tokens in change.contexts() for group in change.groups(tokens)]
    except (FileError, RequestError):
        return None
    for group in groups:
        fastest = group.fastest()
        if fastest > 1 + _TOLERANCE:
            return f"{group.name} layers would turn up to {fastest:.4g} times as fast"
        old, new = group.before.magnitude, group.after.magnitude
        if new < old * (1 - _TOLERANCE) and change.request.attn_factor is None:
            return f"the attention factor would fall from {old:.6g} to {new:.6g}"
    return None
