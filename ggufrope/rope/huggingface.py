"""The RoPE settings of a Hugging Face config.json, in all their spellings, and back.

Spellings and precedence are those of transformers' `modeling_rope_utils` (5.23) and of older
configs: `rope_parameters` or `rope_scaling`, `rope_type` or `type`, nested per layer type or not,
lengths at the top level or inside.

A config leaves much to the defaults of its model class, which no JSON tells: what it does not name
is None here and stays as the file has it. A key that may change the rotation and has no meaning
here is refused by name: half of a scaling is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggufrope.errors import RequestError
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

_SECTION_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "attn_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "long_factor",
        "short_factor",
        "long_mscale",
        "short_mscale",
        "mrope_section",
        "mrope_interleaved",
        "llama_4_scaling_beta",
        "finetuned",
    }
)
"""Keys of a RoPE section that are read here, or that leave the rotation alone."""
_UNREAD_KEYS = {
    "rope_ratio": (1,),
    "compress_rope_theta": (),
    "partial_rotary_factors": (),
    "yarn": ({},),
    "use_dynamic_ntk": (False,),
}
"""Keys beside the section that change the rotation and are not read here, with the values that
leave it alone."""
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRope:
    """The RoPE of one type of layers; `base` is None where the config names none."""

    scaling: RopeScaling
    base: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRope:
    """What a config says about positions; `sliding` where sliding-window layers have their own
    RoPE. `base`, `context_length`, `head_size` and `n_rot` are None where it names none."""

    scaling: RopeScaling
    base: float | None
    context_length: int | None
    head_size: int | None
    n_rot: int | None
    sliding: LayerRope | None = None


def from_config(config: Mapping[str, Any]) -> ConfigRope:
    """Read a decoded config.json; RequestError names the path of a field that makes no sense."""
    if not isinstance(config, Mapping):
        raise RequestError(f"config is a {type(config).__name__}: expected a JSON object")
    text = _Fields(_text_config(config), "")
    for name, harmless in _UNREAD_KEYS.items():
        if name in text and text.values[name] not in harmless:
            raise RequestError(_unknown([name]))
    parameters, path = _parameters(text)
    whole, sliding = _by_layer_type(parameters, path)
    rope = _layer_rope(text, whole)
    head_size = _head_size(text)
    return ConfigRope(
        scaling=rope.scaling,
        base=rope.base,
        context_length=text.count("max_position_embeddings"),
        head_size=head_size,
        n_rot=_rotary_dimensions(text, whole, head_size),
        sliding=_sliding_rope(text, sliding),
    )


def to_config(scaling: RopeScaling, *, base: float) -> dict[str, Any]:
    """Return the `rope_parameters` for `scaling`; RequestError where transformers has none."""
    fields: dict[str, Any] = {"rope_theta": base}
    match scaling:
        case Unscaled():
            return {"rope_type": "default", **fields}
        case Linear(factor=factor):
            return {"rope_type": "linear", "factor": factor, **fields}
        case DynamicNtk(factor=factor):
            return {"rope_type": "dynamic", "factor": factor, **fields}
        case Yarn():
            return {"rope_type": "yarn", **_yarn_fields(scaling), **fields}
        case Llama3():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
                **fields,
            }
        case LongRope():
            given = {"factor": scaling.factor, "attention_factor": scaling.attention_factor}
            return {
                "rope_type": "longrope",
                "long_factor": list(scaling.long_factors),
                "short_factor": list(scaling.short_factors),
                "original_max_position_embeddings": scaling.original_context,
                **{name: value for name, value in given.items() if value is not None},
                **fields,
            }
        case Proportional(fraction=fraction, factor=factor):
            part = {"partial_rotary_factor": fraction, "factor": factor}
            return {"rope_type": "proportional", **part, **fields}
        case NtkAware() | NtkByParts() | FrequencyFactors():
            pass
    raise RequestError(f"transformers has no rope_type for {type(scaling).__name__}")


class _Fields:
    """Typed access to a mapping, with errors that name the field's path."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def name(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def number(self, *names: str) -> float | None:
        """The first of `names` that is there, as a float."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{self.name(name)} is {value!r}: expected a number")
            if not math.isfinite(value):
                raise RequestError(f"{self.name(name)} is {value}: expected a finite number")
            return float(value)
        return None

    def count(self, *names: str) -> int | None:
        """The first of `names` that is there, as a whole number above 0."""
        value = self.number(*names)
        if value is not None and not (value.is_integer() and value > 0):
            found = next(name for name in names if name in self)
            raise RequestError(f"{self.name(found)} is {value:g}: expected a whole number above 0")
        return None if value is None else int(value)

    def required(self, *names: str) -> float:
        value = self.number(*names)
        if value is None:
            raise RequestError(f"{self.name(names[0])} is missing")
        return value

    def factors(self, name: str) -> tuple[float, ...]:
        value = self.values.get(name)
        if not isinstance(value, list | tuple):
            raise RequestError(f"{self.name(name)} is {_brief(value)}: expected a list of numbers")
        items = _Fields({str(index): item for index, item in enumerate(value)}, self.name(name))
        return tuple(items.required(str(index)) for index in range(len(value)))


def _brief(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal config that describes the language model."""
    for name in _TEXT_CONFIGS:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return _text_config({**config, name: None, **inner})
    known = ("hidden_size", "n_embd", "max_position_embeddings", "rope_theta", "rope_scaling")
    if not any(name in config for name in (*known, "rope_parameters")):
        raise RequestError(
            "this JSON has none of the fields of a model's config.json "
            f"({', '.join(known)}): is it another file?"
        )
    return config


def _parameters(text: _Fields) -> tuple[Mapping[str, Any], str]:
    for name in ("rope_parameters", "rope_scaling"):
        value = text.values.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise RequestError(f"{name} is {_brief(value)}: expected an object")
        if value:
            return value, name
    return {}, "rope_parameters"


def _by_layer_type(parameters: Mapping[str, Any], path: str) -> tuple[_Fields, _Fields | None]:
    """The parameters of global and of sliding-window layers."""
    _refuse_unknown(parameters, path)
    nested = {name: value for name, value in parameters.items() if isinstance(value, Mapping)}
    if not nested:
        return _Fields(parameters, path), None
    for layers, inner in nested.items():
        _refuse_unknown(inner, f"{path}.{layers}")
    sliding = nested.get("sliding_attention")
    whole = nested.get("full_attention")
    if whole is None:
        raise RequestError(
            f"{path} is nested but has no full_attention: {', '.join(sorted(nested))}"
        )
    return _Fields(whole, f"{path}.full_attention"), (
        None if sliding is None else _Fields(sliding, f"{path}.sliding_attention")
    )


def _refuse_unknown(section: Mapping[str, Any], path: str) -> None:
    """Refuse keys that may change the rotation and are not read, all of them by name."""
    unknown = [
        f"{path}.{name}"
        for name, value in section.items()
        if name not in _SECTION_KEYS and value is not None and not isinstance(value, Mapping)
    ]
    if unknown:
        raise RequestError(_unknown(unknown))


def _unknown(names: list[str]) -> str:
    return (
        f"the config has {', '.join(names)}, which may change the rotation and cannot be read: "
        "ask for a scheme by `scaling` and its parameters instead"
    )


def _layer_rope(text: _Fields, parameters: _Fields) -> LayerRope:
    base = parameters.number("rope_theta")
    if base is None:
        base = text.number("rope_theta", "global_rope_theta", "rotary_emb_base", "rope_base")
    return LayerRope(scaling=_scaling(text, parameters), base=base)


def _sliding_rope(text: _Fields, parameters: _Fields | None) -> LayerRope | None:
    local = text.number("rope_local_base_freq", "local_rope_theta")
    if parameters is not None:
        return _layer_rope(text, parameters)
    return None if local is None else LayerRope(scaling=Unscaled(), base=local)


def _scaling(text: _Fields, parameters: _Fields) -> RopeScaling:
    kind = parameters.values.get("rope_type", parameters.values.get("type"))
    if kind is None or kind in ("default", "mrope", "none"):
        return Unscaled()
    match kind:
        case "linear":
            return Linear(factor=parameters.required("factor"))
        case "dynamic":
            return DynamicNtk(
                factor=parameters.required("factor"), original_context=_original(text, parameters)
            )
        case "ntk" | "ntk-aware" | "ntk_aware":
            return NtkAware(factor=parameters.required("factor"))
        case "yarn" | "deepseek_yarn":
            return _yarn(text, parameters)
        case "llama3":
            return Llama3(
                factor=parameters.required("factor"),
                original_context=_original(text, parameters),
                low_freq_factor=parameters.required("low_freq_factor"),
                high_freq_factor=parameters.required("high_freq_factor"),
            )
        case "longrope" | "su":
            return _longrope(text, parameters)
        case "proportional":
            return Proportional(
                fraction=parameters.number("partial_rotary_factor") or 1.0,
                factor=parameters.number("factor") or 1.0,
            )
    raise RequestError(
        f"{parameters.name('rope_type')} is {kind!r}: expected default, linear, dynamic, yarn, "
        "longrope, llama3 or proportional"
    )


def _yarn(text: _Fields, parameters: _Fields) -> Yarn:
    original = _original(text, parameters)
    factor = parameters.number("factor")
    truncate = parameters.values.get("truncate", True)
    if not isinstance(truncate, bool):
        raise RequestError(f"{parameters.name('truncate')} is {truncate!r}: expected true or false")
    return Yarn(
        factor=_ratio(text, original) if factor is None else factor,
        original_context=original,
        beta_fast=parameters.number("beta_fast") or 32.0,
        beta_slow=parameters.number("beta_slow") or 1.0,
        ext_factor=1.0,
        attention_factor=parameters.number("attention_factor", "attn_factor"),
        mscale=parameters.number("mscale"),
        mscale_all_dim=parameters.number("mscale_all_dim"),
        truncate=truncate,
    )


def _longrope(text: _Fields, parameters: _Fields) -> LongRope:
    original = _original(text, parameters)
    factor = parameters.number("factor")
    attention = parameters.number("attention_factor", "long_mscale")
    if factor is None and attention is None:
        factor = _ratio(text, original)
    return LongRope(
        long_factors=parameters.factors("long_factor"),
        short_factors=parameters.factors("short_factor"),
        original_context=original,
        factor=factor,
        attention_factor=attention,
    )


def _original(text: _Fields, parameters: _Fields) -> int:
    """The original context: at the top level first, as Phi-3 has it."""
    name = "original_max_position_embeddings"
    found = text.count(name) or parameters.count(name) or text.count("max_position_embeddings")
    if found is None:
        raise RequestError(f"{parameters.name(name)} is missing, and max_position_embeddings too")
    return found


def _ratio(text: _Fields, original: int) -> float:
    length = text.count("max_position_embeddings")
    if length is None:
        raise RequestError("without a factor, max_position_embeddings is needed, and is missing")
    return max(length / original, 1.0)


def _head_size(text: _Fields) -> int | None:
    size = text.count("head_dim")
    width = text.count("hidden_size", "n_embd")
    heads = text.count("num_attention_heads", "n_head")
    if size is None and width is not None and heads is not None:
        return width // heads
    return size


def _rotary_dimensions(text: _Fields, parameters: _Fields, head_size: int | None) -> int | None:
    given = text.count("qk_rope_head_dim", "rotary_dim")
    if given is not None or head_size is None:
        return given
    if parameters.values.get("rope_type") == "proportional":
        return head_size
    part = parameters.number("partial_rotary_factor")
    if part is None:
        part = text.number("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_emb_fraction")
    return head_size if part is None else int(head_size * part)


def _yarn_fields(scaling: Yarn) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if getattr(scaling, name) is not None:
            fields[name] = getattr(scaling, name)
    if not scaling.truncate:
        fields["truncate"] = False
    return fields
