"""What llama.cpp does with a model's positions, as values, and the parameters that change it.

`llamacpp.effective` computes `EffectiveRope`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from ggufrope._format import html_table, html_text, ranges
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import RopeType
from ggufrope.rope.frequencies import Floats
from ggufrope.rope.keys import SCALING_TYPES

ScalingType: TypeAlias = Literal["none", "linear", "yarn", "longrope"]
ValueSource: TypeAlias = Literal["file", "default", "override", "ignored"]

YARN_PARAMETERS = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
"""Fields of RopeOverrides that are keys of some files too."""

LLAMA_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "scaling_type": "--rope-scaling",
        "freq_base": "--rope-freq-base",
        "freq_scale": "--rope-freq-scale",
        "yarn_orig_ctx": "--yarn-orig-ctx",
        **{name: "--" + name.replace("_", "-") for name in YARN_PARAMETERS},
    }
)
"""Field of RopeOverrides -> the flag of llama-server and its siblings that sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeOverrides:
    """Context parameters that replace the file's settings; None leaves one unset.

    Names and meaning are those of llama_context_params: `freq_scale` is 1/factor.
    """

    scaling_type: ScalingType | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None

    def __post_init__(self) -> None:
        if self.scaling_type is not None and self.scaling_type not in SCALING_TYPES:
            raise RequestError(
                f"scaling type {self.scaling_type!r} is unknown: expected one of "
                + ", ".join(SCALING_TYPES)
            )
        if self.freq_base is not None and not (
            math.isfinite(self.freq_base) and self.freq_base > 1
        ):
            raise RequestError(f"freq_base {self.freq_base:g} must be a finite number above 1")
        for name in ("freq_scale", "yarn_orig_ctx"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} {value:g} must be a finite number above 0")
        for name in YARN_PARAMETERS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{name} {value:g} must be a finite number, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveValue:
    """One setting as it takes effect.

    `source` says where `value` comes from. "ignored" means that the runtime uses `value` although
    the file or an override says otherwise; `reason` says why.
    """

    value: float | int | str | None
    source: ValueSource
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTemperature:
    """A growth of attention scores with the position p of the query, beyond the rotation.

    Scores are multiplied by 1 + scale · ln(1 + ⌊(p + offset) / floor_tokens⌋)
    (src/llama-graph.cpp, `llm_graph_input_attn_temp`).
    """

    scale: float
    floor_tokens: int
    offset: float = 0.0

    def at(self, position: int) -> float:
        """Return what the scores of a query at `position` are multiplied by."""
        return 1 + self.scale * math.log1p((position + self.offset) // self.floor_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that rotate alike.

    `inverse_frequencies` has `n_rot/2` values in rad/token, none where the layers do not rotate.
    `magnitude` is the attention factor, which multiplies rotated queries and rotated keys.
    `attention_scale` multiplies attention scores besides, rotated or not, as a consequence of the
    scaling keys; None where the graph has no such scale. `temperature` is None where scores do not
    depend on the position in another way than by rotation.
    """

    name: str
    layers: tuple[int, ...]
    inverse_frequencies: Floats
    magnitude: float
    attention_scale: float | None = None
    temperature: AttentionTemperature | None = None

    @property
    def n_rot(self) -> int:
        """Rotary dimensions of a head."""
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRope:
    """What the runtime does and why: layer groups in the order of their first layer.

    `caveat` says which part of this architecture's rotation the groups do not cover, if any.
    """

    rope_type: RopeType
    context_tokens: int
    groups: tuple[LayerGroup, ...]
    values: Mapping[str, EffectiveValue]
    caveat: str | None = None

    def group(self, layer: int) -> LayerGroup:
        """Return the group of `layer`. Raises RequestError where the model has no such layer."""
        for group in self.groups:
            if layer in group.layers:
                return group
        raise RequestError(f"the model has no layer {layer}")

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the rotation: groups of layers, then every value."""
        groups = html_table(
            ("layers", "rotation", "pairs", "rad/token", "attention factor"),
            (
                (
                    ranges(group.layers),
                    group.name,
                    len(group.inverse_frequencies),
                    " … ".join(
                        f"{group.inverse_frequencies[i]:.4g}" for i in (0, -1) if group.n_rot
                    ),
                    f"{group.magnitude:.6g}",
                )
                for group in self.groups
            ),
        )
        values = html_table(
            ("setting", "value", "source", "why"),
            (
                (name, "–" if each.value is None else each.value, each.source, each.reason)
                for name, each in self.values.items()
            ),
        )
        caveat = f"<p>{html_text(self.caveat)}</p>" if self.caveat else ""
        title = f"RoPE ({self.rope_type}) in a context of {self.context_tokens:,} tokens"
        return f"<h3>{html_text(title)}</h3>{groups}{caveat}{values}"
