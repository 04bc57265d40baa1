"""A scheme as context parameters: tried at run time, with nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.errors import WishError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.edits import Ignored
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.frequencies import dynamic_growth, ntk_base, yarn_magnitude
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.resolution import file_base, number, yarn_file_magnitude
from ggufrope.rope.scaling import DynamicNtk, Linear, NtkAware, RopeScaling, Unscaled, Yarn

if TYPE_CHECKING:
    from ggufrope.rope.metadata import RopeMetadata

_FLAGS = {
    "scaling_type": "--rope-scaling",
    "freq_base": "--rope-freq-base",
    "freq_scale": "--rope-freq-scale",
    "yarn_orig_ctx": "--yarn-orig-ctx",
    "yarn_ext_factor": "--yarn-ext-factor",
    "yarn_attn_factor": "--yarn-attn-factor",
    "yarn_beta_fast": "--yarn-beta-fast",
    "yarn_beta_slow": "--yarn-beta-slow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Context parameters that apply a scheme, and what of it they cannot."""

    overrides: RopeOverrides
    ignored: tuple[Ignored, ...] = ()


def try_out(
    scaling: RopeScaling, metadata: RopeMetadata, *, context_tokens: int | None = None
) -> Trial:
    """The context parameters that make llama.cpp apply `scaling` to an unchanged file.

    `context_tokens` sets the base of dynamic NTK. Raises WishError for a scheme that lives in
    factor tensors, which no context parameter can give.
    """
    arch = architecture(metadata.architecture)
    base = number(file_base(metadata, arch))
    n_rot = rotary_dimensions(metadata, arch)
    match scaling:
        case Unscaled():
            return Trial(overrides=RopeOverrides(scaling_type="none"))
        case Linear(factor=factor):
            return Trial(overrides=RopeOverrides(scaling_type="linear", freq_scale=1 / factor))
        case NtkAware(factor=factor):
            stretched = ntk_base(base, factor, n_rot)
            return Trial(overrides=RopeOverrides(scaling_type="none", freq_base=stretched))
        case DynamicNtk():
            stretched = ntk_base(base, dynamic_growth(scaling, context_tokens), n_rot)
            return Trial(overrides=RopeOverrides(scaling_type="none", freq_base=stretched))
        case Yarn():
            implied = yarn_file_magnitude(metadata, arch, scaling.factor)
            implied *= 1.0 if metadata.attn_factor is None else metadata.attn_factor
            return Trial(overrides=_yarn(scaling), ignored=_beyond_flags(scaling, implied))
    raise WishError(
        f"{type(scaling).__name__} lives in factor tensors, which no run-time parameter gives: "
        "patch a copy of the file"
    )


def command_flags(overrides: RopeOverrides) -> tuple[str, ...]:
    """The flags of llama-server and its siblings that set `overrides`."""
    flags: list[str] = []
    for name, flag in _FLAGS.items():
        value = getattr(overrides, name)
        if value is not None:
            flags += [flag, value if isinstance(value, str) else f"{value:.9g}"]
    return tuple(flags)


def _yarn(scaling: Yarn) -> RopeOverrides:
    return RopeOverrides(
        scaling_type="yarn",
        freq_scale=1 / scaling.factor,
        yarn_orig_ctx=scaling.original_context,
        yarn_ext_factor=None if scaling.ext_factor == 1 else scaling.ext_factor,
        yarn_beta_fast=scaling.beta_fast,
        yarn_beta_slow=scaling.beta_slow,
    )


def _beyond_flags(scaling: Yarn, implied: float) -> tuple[Ignored, ...]:
    ignored = []
    magnitude = yarn_magnitude(scaling)
    if abs(magnitude - implied) > 1e-6:
        ignored.append(
            Ignored(
                parameter="attention_factor",
                value=magnitude,
                reason=f"with YaRN llama.cpp applies {implied:.6g}, whatever the flag says",
                instead="set rope.scaling.attn_factor in a copy of the file",
            )
        )
    if not scaling.truncate:
        ignored.append(
            Ignored(
                parameter="truncate",
                value=False,
                reason="llama.cpp always rounds YaRN's band limits to whole pairs",
                instead="bake it into factors, where the architecture loads them",
            )
        )
    return tuple(ignored)
