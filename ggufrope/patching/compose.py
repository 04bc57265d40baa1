"""A scaling request as edits of a file, and whether they start from the rotation it has.

A model may already be scaled, and trained so: linear 8 in Gemma 3, YaRN in DeepSeek, LongRoPE in
Phi, factor tensors in Llama 3.1. What it does within its context is what a further extension has
to keep. So `check_start` compares two predictions of llama.cpp, of the file as it stands and as it
would be: no pair of dimensions may turn faster than now, none slower by more than the context
grows, and the attention factor follows the convention of the file. Anything else is refused,
unless the request says `replace_scaling` or takes the whole scaling from a config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggufrope.container.types import TypedValue
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.request import ScalingRequest, Target, declared_factor, resolve
from ggufrope.rope.architectures import architecture
from ggufrope.rope.encode import Expression, express
from ggufrope.rope.frequencies import yarn_mscale
from ggufrope.rope.keys import KEYS, ROPE_FACTORS_LONG, ROPE_FREQS
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, effective, yarn_file_magnitude
from ggufrope.rope.metadata import FactorTensor, RopeMetadata
from ggufrope.rope.scaling import Unscaled, Yarn

if TYPE_CHECKING:
    from ggufrope.rope.effective import LayerGroup

_TOLERANCE = 1e-4
"""Relative; keys and factors are stored as float32."""


def encode_request(request: ScalingRequest, metadata: RopeMetadata) -> tuple[Target, Expression]:
    """Return the scheme that `request` means on this model, and the keys and tensors of it."""
    target = resolve(request, metadata)
    if target.freq_base is not None:
        metadata = replace(metadata, freq_base=target.freq_base)
    expression = express(
        target.scaling,
        metadata,
        context_length=target.context_length,
        baked=request.bake,
        keep_short_context=request.keep_short_context,
    )
    if target.freq_base is None or metadata.key("freq_base") in expression.keys:
        return target, expression
    base = TypedValue(type=KEYS["freq_base"].type, value=target.freq_base)
    keys = {**expression.keys, metadata.key("freq_base"): base}
    return target, replace(expression, keys=keys)


def patched(metadata: RopeMetadata, expression: Expression) -> RopeMetadata:
    """Return what the file will declare once `expression` is written."""
    fields = {metadata.key(field): field for field in KEYS}
    values = {
        fields[key]: None if value is None else value.value
        for key, value in expression.keys.items()
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
    return replace(metadata, **changes)


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
        _check_config(target, before)
        return
    declared = declared_scaling(before)
    if declared is None or request.replace_scaling:
        return
    original = before.original_context if _is_extension(before) else None
    if isinstance(target.scaling, Unscaled) and target.context_length <= (original or 0):
        return
    found = _difference(_Change(request=request, target=target, before=before, after=after))
    if found is not None:
        reason, instead = found
        raise RequestError(
            f"the file is already scaled ({declared}), and {_named(request, target)} does not "
            f"start from that: {reason}. {instead}, or give `replace_scaling` to drop the scaling "
            "that the file has"
        )


def declared_scaling(metadata: RopeMetadata) -> str | None:
    """Return in words how the file is scaled, None where it is not."""
    factor = declared_factor(metadata)
    kind = metadata.scaling_type or "linear"
    parts = []
    if factor != 1 and kind in ("linear", "yarn"):
        over = f" over {metadata.original_context}" if metadata.original_context else ""
        parts.append(f"{'YaRN' if kind == 'yarn' else kind} {factor:g}{over}")
    elif factor != 1 and kind == "longrope":
        parts.append(f"factor {factor:g}")
    parts += [tensor.name.removesuffix(".weight") for tensor in metadata.factor_tensors]
    if metadata.attn_factor not in (None, 1):
        parts.append(f"attn_factor {metadata.attn_factor:g}")
    if metadata.yarn_log_multiplier:
        parts.append(f"yarn_log_multiplier {metadata.yarn_log_multiplier:g}")
    return ", ".join(parts) or None


def reached_context(metadata: RopeMetadata) -> int | None:
    """Return the context that a further scaling of this file starts from, in tokens.

    With factor tensors that is the whole context they reach; a linear factor starts from that
    share of it, which the file does not say; else it is what the file says.
    """
    context = metadata.context_length
    if context is None or metadata.factor_tensors:
        return context
    if metadata.original_context is not None:
        return min(metadata.original_context, context)
    factor = declared_factor(metadata)
    if factor > 1 and metadata.scaling_type in (None, "linear"):
        return round(context / factor)
    return context


def _is_extension(metadata: RopeMetadata) -> bool:
    """Return whether the scaling extends a context that the file names: it may be dropped."""
    return (
        metadata.original_context is not None
        and not metadata.finetuned
        and not metadata.yarn_log_multiplier
        and not metadata.factor_tensors
    )


def _check_config(target: Target, before: RopeMetadata) -> None:
    """Refuse a config whose mscale_all_dim acts on the softmax of MLA (deepseek2.cpp 433-443).

    llama.cpp takes it from yarn_log_multiplier, which is never written here: the file has to have
    it, as the converter writes it.
    """
    scaling = target.scaling
    arch = architecture(before.architecture)
    if not isinstance(scaling, Yarn) or not scaling.mscale_all_dim:
        return
    if "yarn_log_multiplier" not in arch.reads or arch.log_multiplier_unit == 1:
        return  # mistral3 takes it for the attention factor, which attn_factor can say too
    wanted = scaling.mscale_all_dim / arch.log_multiplier_unit
    if abs((before.yarn_log_multiplier or 0.0) - wanted) > _TOLERANCE:
        key = before.key("yarn_log_multiplier")
        found = "missing" if before.yarn_log_multiplier is None else before.yarn_log_multiplier
        raise RequestError(
            f"the config has mscale_all_dim {scaling.mscale_all_dim:g}, which scales the softmax "
            f"of {arch.name}: llama.cpp reads it from {key}, which must be {wanted:g} in the file "
            f"and is {found}; convert the model again"
        )


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

    def growth(self) -> float:
        """Return how many times further the request reaches than the file does."""
        before, target = self.before, self.target
        reached: float = before.context_length or target.original_context
        if before.original_context and not before.factor_tensors:
            scaled = before.original_context * declared_factor(before)
            reached = min(reached, max(scaled, 1.0))
        factor = self.request.factor or 1
        wanted = max(target.context_length, round(target.original_context * factor))
        return max(wanted / reached, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Layers that rotate alike, before and after."""

    name: str
    before: LayerGroup
    after: LayerGroup

    def ratios(self) -> list[float]:
        """Return how many times as fast each pair of dimensions turns."""
        old, new = self.before.inverse_frequencies, self.after.inverse_frequencies
        if len(old) != len(new):
            return [1.0]
        return [b / a for a, b in zip(old, new, strict=True) if a > 0 and b > 0] or [1.0]


def _difference(change: _Change) -> tuple[str, str] | None:
    """Return what the new scaling does that the file's own does not allow, and what to do."""
    growth = change.growth()
    try:
        groups = [group for tokens in change.contexts() for group in change.groups(tokens)]
    except (FileError, RequestError):
        return None
    for group in groups:
        ratios = group.ratios()
        if max(ratios) > 1 + _TOLERANCE:
            faster = f"{group.name} layers would turn up to {max(ratios):.4g} times as fast"
            return faster, _instead(change)
        if 1 / min(ratios) > growth * 1.02 and change.request.long_factors is None:
            slower = f"{group.name} layers would turn up to {1 / min(ratios):.4g} times as slowly"
            return f"{slower}, for {growth:.4g} times the context", _instead(change)
    whole = next((group for group in reversed(groups) if group.name == "global"), None)
    return None if whole is None else _attention_difference(change, whole)


def _attention_difference(change: _Change, whole: _Group) -> tuple[str, str] | None:
    """Return how the attention factor leaves the convention of the file, and what to do.

    The convention is YaRN's 1 + 0.1 ln factor, which may grow with the factor; with
    yarn_log_multiplier, or a number of the file's own, it is kept unless the request gives another.
    """
    before, scaling = change.before, change.target.scaling
    old, new = whole.before.magnitude, whole.after.magnitude
    own = before.attn_factor or 1.0
    moved = own != (change.after.attn_factor or 1.0)
    if not moved and abs(new / old - 1) <= _TOLERANCE:
        return None
    if before.yarn_log_multiplier:
        keeps = not moved
    else:
        usual = yarn_mscale(declared_factor(before)) if before.scaling_type == "yarn" else 1.0
        grows = abs(old / usual - 1) <= _TOLERANCE and new > old * (1 - _TOLERANCE)
        keeps = grows or change.request.attn_factor is not None
    if keeps:
        return None
    wanted = old
    if isinstance(scaling, Yarn):
        arch = architecture(before.architecture)
        wanted = yarn_file_magnitude(before, arch, scaling.factor) * own
    keep = f"Give `attn_factor` {wanted:.6g} to keep it"
    return (
        f"the attention factor would be {new:.6g}, where the file's own keys give {wanted:.6g}",
        keep if isinstance(scaling, Yarn) else _instead(change),
    )


def _named(request: ScalingRequest, target: Target) -> str:
    factor = getattr(target.scaling, "factor", None)
    if factor is None:
        return request.scaling
    return f"{request.scaling} {factor:.4g} over {target.original_context}"


def _instead(change: _Change) -> str:
    """Return what to ask for: a request that starts from the rotation that the file has."""
    before, target = change.before, change.target
    start = reached_context(before)
    kind = before.scaling_type or "linear"
    if before.context_length and target.context_length <= before.context_length:
        return f"The file reaches {before.context_length} tokens as it is"
    if before.tensor(ROPE_FACTORS_LONG) is not None and before.tensor(ROPE_FREQS) is None:
        return f"Ask for yarn with `keep_short_context` and `original_context` {start}"
    if before.factor_tensors:
        return f"Ask for yarn, ntk or linear with `original_context` {start}"
    if start and declared_factor(before) > 1 and kind in ("linear", "yarn"):
        factor = max(target.context_length / start, declared_factor(before))
        return (
            f"Raise the factor that it has: `scaling` {kind} with `original_context` {start} and "
            f"`factor` {factor:.6g}"
        )
    return "Use the file as it is"
