"""A scaling request as edits of a file, and whether they start from the rotation it has.

A model may already be scaled, and trained so: linear 8 in Gemma 3, YaRN in DeepSeek, LongRoPE in
Phi, factor tensors in Llama 3.1. What it does within its context is what a further extension has
to keep. So `refusal` compares two predictions of llama.cpp, of the file as it stands and as it
would be: no pair of dimensions may turn faster than now, and the attention factor has to follow
the convention that the file follows. What does not is refused, unless the request says
`replace_scaling` or takes the whole of the scaling from a config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.container.types import TypedValue
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.request import ATTENTION_SCHEMES, ScalingRequest, Target, resolve
from ggufrope.rope.architectures import architecture
from ggufrope.rope.encode import Expression, express
from ggufrope.rope.frequencies import yarn_mscale
from ggufrope.rope.keys import KEYS, ROPE_FACTORS_LONG, ROPE_FREQS
from ggufrope.rope.llamacpp import CONTEXT_GRANULE, effective, yarn_file_magnitude
from ggufrope.rope.metadata import FactorTensor, RopeMetadata
from ggufrope.rope.scaling import Unscaled, Yarn

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope, LayerGroup

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
    changes: dict[str, Any] = {**values, "factor_tensors": tuple(tensors.values())}
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
    declared = declared_scaling(before)
    if declared is None or request.replace_scaling:
        return
    if request.from_config is not None:
        _check_config(target, before)
        return
    if isinstance(target.scaling, Unscaled) and _is_extension(before):
        return
    found = _difference(request, target, before, after)
    if found is not None:
        reason, instead = found
        raise RequestError(
            f"the file is already scaled ({declared}), and {_named(request, target)} does not "
            f"start from that: {reason}. {instead}, or give `replace_scaling` to drop the scaling "
            "that the file has"
        )


def declared_scaling(metadata: RopeMetadata) -> str | None:
    """Return in words how the file is scaled, None where it is not."""
    factor = _factor(metadata)
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
    factor = _factor(metadata)
    if factor > 1 and metadata.scaling_type in (None, "linear"):
        return round(context / factor)
    return context


def _factor(metadata: RopeMetadata) -> float:
    """The factor that acts: 1 where there is none or the type is none."""
    if metadata.scaling_type == "none":
        return 1.0
    declared = metadata.scale_linear if metadata.factor is None else metadata.factor
    return declared or 1.0


def _is_extension(metadata: RopeMetadata) -> bool:
    """Whether the file says that its scaling extends an original context, which it may drop."""
    return (
        metadata.original_context is not None
        and not metadata.finetuned
        and not metadata.yarn_log_multiplier
        and not metadata.factor_tensors
    )


def _check_config(target: Target, before: RopeMetadata) -> None:
    """Refuse what a config says of MLA's softmax scale and no key that we write can say."""
    scaling = target.scaling
    if not isinstance(scaling, Yarn) or not scaling.mscale_all_dim:
        return
    arch = architecture(before.architecture)
    if "yarn_log_multiplier" in arch.reads and not before.yarn_log_multiplier:
        key = before.key("yarn_log_multiplier")
        raise RequestError(
            f"the config has mscale_all_dim {scaling.mscale_all_dim:g}, which scales the softmax "
            f"of {arch.name}: llama.cpp takes it from {key}, and the file has none; convert the "
            "model again with a current converter"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Layers that rotate alike, before and after."""

    name: str
    before: LayerGroup
    after: LayerGroup

    @property
    def speed_up(self) -> float:
        """How many times as fast the pair turns that gains most."""
        old, new = self.before.inverse_frequencies, self.after.inverse_frequencies
        if len(old) != len(new) or not len(old):
            return 1.0
        turning = old > 0
        ratio = np.where(turning, new, 1 + new) / np.where(turning, old, 1)
        return float(ratio.max())

    @property
    def slow_down(self) -> float:
        """How many times as slow the slowest pair turns."""
        old, new = self.before.inverse_frequencies, self.after.inverse_frequencies
        return float(old[-1] / new[-1]) if len(old) and len(new) and new[-1] > 0 else 1.0


def _difference(
    request: ScalingRequest, target: Target, before: RopeMetadata, after: RopeMetadata
) -> tuple[str, str] | None:
    """Return what the new scaling does that the file's own does not allow, and what to do."""
    try:
        pairs = [
            pair
            for tokens in _contexts(before, target)
            for pair in _paired(
                effective(before, context_tokens=tokens), effective(after, context_tokens=tokens)
            )
        ]
    except (FileError, RequestError):
        return None
    fastest = max(pairs, key=lambda pair: pair.speed_up, default=None)
    if fastest is not None and fastest.speed_up > 1 + _TOLERANCE:
        faster = f"{fastest.name} layers would turn up to {fastest.speed_up:.4g} times as fast"
        return faster, _instead(target, before)
    whole = next((pair for pair in reversed(pairs) if pair.name == "global"), None)
    if whole is None:
        return None
    if before.factor_tensors and request.factor is None and before.context_length:
        growth = max(target.context_length / before.context_length, 1.0)
        if whole.slow_down > growth * 1.02:
            slower = f"the slowest pair would turn {whole.slow_down:.4g} times as slowly"
            return f"{slower}, for {growth:.4g} times the context", _instead(target, before)
    return _attention_difference(request, target, before, after, whole)


def _attention_difference(
    request: ScalingRequest,
    target: Target,
    before: RopeMetadata,
    after: RopeMetadata,
    whole: _Pair,
) -> tuple[str, str] | None:
    """Return how the attention factor leaves the convention of the file, and what to do."""
    old, new = whole.before.magnitude, whole.after.magnitude
    own = before.attn_factor or 1.0
    moved = own != (after.attn_factor or 1.0)
    usual = yarn_mscale(_factor(before)) if before.scaling_type == "yarn" else 1.0
    if before.yarn_log_multiplier:
        foreign = moved
    else:
        foreign = abs(old / usual - 1) > _TOLERANCE and request.attn_factor is None
    if not foreign or (not moved and abs(new / old - 1) <= _TOLERANCE):
        return None
    wanted = old / usual
    if isinstance(target.scaling, Yarn):
        arch = architecture(before.architecture)
        wanted = yarn_file_magnitude(before, arch, target.scaling.factor) * own
    keep = f"Give `attn_factor` {wanted:.6g} to keep it"
    return (
        f"the attention factor would be {new:.6g}, where the file's own keys give {wanted:.6g}",
        keep if request.scaling in ATTENTION_SCHEMES else _instead(target, before),
    )


def _contexts(before: RopeMetadata, target: Target) -> list[int]:
    """The contexts to compare in: on both sides of the original one, up to the shorter length."""
    context = before.context_length or target.context_length
    longest = min(context, target.context_length)
    original = min(before.original_context or longest, longest)
    return sorted({original, min(original + CONTEXT_GRANULE, longest), longest})


def _paired(before: EffectiveRope, after: EffectiveRope) -> list[_Pair]:
    groups = {group.name: group for group in after.groups}
    return [
        _Pair(name=group.name, before=group, after=groups[group.name])
        for group in before.groups
        if group.name in groups
    ]


def _named(request: ScalingRequest, target: Target) -> str:
    factor = getattr(target.scaling, "factor", None)
    if factor is None:
        return request.scaling
    return f"{request.scaling} {factor:.4g} over {target.original_context}"


def _instead(target: Target, before: RopeMetadata) -> str:
    """Return what to ask for: a request that starts from the rotation that the file has."""
    start = reached_context(before)
    kind = before.scaling_type or "linear"
    if before.context_length and target.context_length <= before.context_length:
        return f"The file reaches {before.context_length} tokens as it is"
    if before.tensor(ROPE_FACTORS_LONG) is not None and before.tensor(ROPE_FREQS) is None:
        return f"Ask for yarn with `keep_short_context` and `original_context` {start}"
    if before.factor_tensors:
        return f"Ask for yarn, ntk or linear with `original_context` {start}"
    if start and _factor(before) > 1 and kind in ("linear", "yarn"):
        factor = max(target.context_length / start, _factor(before))
        return (
            f"Raise the factor that it has: `scaling` {kind} with `original_context` {start} and "
            f"`factor` {factor:.6g}"
        )
    return "Use the file as it is"
