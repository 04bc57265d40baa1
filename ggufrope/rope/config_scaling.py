"""A section of a config.json -> the scaling scheme that it means.

Precedence and defaults are those of transformers' `modeling_rope_utils` (5.24); the section `yarn`
of Mistral's params.json is read as llama.cpp's converter reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufrope.errors import RequestError
from ggufrope.rope.config_fields import Fields, TextConfig, shown, unreadable
from ggufrope.rope.scaling import (
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Proportional,
    RopeScaling,
    Unscaled,
    Yarn,
)

PLAIN = ("default", "mrope", "interleaved_mrope", "none", "ntk_alpha")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A type of layers with its section. `nested` is false for one section for all layers;
    `base` and `fraction` come from a list with one number per layer."""

    name: str
    section: Fields
    nested: bool = False
    silent: bool = False
    base: float | None = None
    fraction: float | None = None


def kind_of_section(section: Fields) -> str:
    """Return the type of scaling that a section names, in lower case."""
    kind = section.values.get("rope_type") or section.values.get("type")
    if kind is None:
        return "yarn" if section.path == "yarn" else "default"
    if not isinstance(kind, str):
        raise RequestError(f"{section.name('rope_type')} is {shown(kind)}: expected a word")
    return kind.lower()


def layer_scaling(text: TextConfig, layer: Layer) -> RopeScaling:
    """Return the scheme of a type of layers. Raises RequestError, which names the field."""
    section = layer.section
    kind = kind_of_section(section)
    if kind in PLAIN:
        return Unscaled()
    match kind:
        case "linear":
            return Linear(factor=section.required("factor"))
        case "dynamic" | "xdrope" if section.number("alpha"):
            return Unscaled()
        case "dynamic":
            context = text.count("context") or _original(text, layer)
            return DynamicNtk(factor=section.required("factor"), original_context=context)
        case "ntk" | "ntk-aware" | "ntk_aware":
            return NtkAware(factor=section.required("factor"))
        case "su" | "longrope":
            return _longrope(text, layer)
        case "yarn" | "deepseek_yarn":
            return _longrope(text, layer) if "long_factor" in section else _yarn(text, layer)
        case "llama3":
            return Llama3(
                factor=section.required("factor"),
                original_context=_original(text, layer),
                low_freq_factor=section.required("low_freq_factor"),
                high_freq_factor=section.required("high_freq_factor"),
            )
        case "proportional":
            return Proportional(
                fraction=section.number("partial_rotary_factor") or 1.0,
                factor=section.number("factor") or 1.0,
            )
    raise RequestError(
        f"{section.name('rope_type')} is {shown(kind)}: expected default, linear, dynamic, yarn, "
        "longrope, llama3 or proportional"
    )


def _yarn(text: TextConfig, layer: Layer) -> Yarn:
    section = layer.section
    if section.path == "yarn":
        return _params_yarn(section)
    factor = section.number("factor")
    if factor is None and "original_max_position_embeddings" not in section:
        factor = section.required("factor")
    original = _original(text, layer)
    if section.number("extrapolation_factor") not in (None, 1):
        raise RequestError(unreadable([section.name("extrapolation_factor")]))
    # transformers looks for it beside the sections of layer types, not in them
    truncate = text.section if layer.nested and not layer.silent else section
    return Yarn(
        factor=_ratio(text, original) if factor is None else factor,
        original_context=original,
        beta_fast=section.number("beta_fast") or 32.0,
        beta_slow=section.number("beta_slow") or 1.0,
        ext_factor=1.0,
        attention_factor=section.number("attention_factor", "attn_factor"),
        mscale=section.number("mscale"),
        mscale_all_dim=section.number("mscale_all_dim"),
        truncate=truncate.switch("truncate", default=True),
    )


def _params_yarn(section: Fields) -> Yarn:
    """Read the section `yarn` of Mistral's params.json, as conversion/mistral.py 98-106 does."""
    scales = section.switch("apply_scale", default=True)
    original = section.count("original_max_position_embeddings")
    if original is None:
        section.required("original_max_position_embeddings")
    return Yarn(
        factor=section.required("factor"),
        original_context=original or 0,
        beta_fast=section.required("beta"),
        beta_slow=section.required("alpha"),
        mscale=None if scales else 1.0,
        mscale_all_dim=None if scales else 1.0,
    )


def _longrope(text: TextConfig, layer: Layer) -> LongRope:
    section = layer.section
    original = _original(text, layer)
    factor = section.number("factor")
    attention = section.number("attention_factor", "long_mscale")
    short = section.number("short_mscale")
    if short is not None and attention is not None and short != attention:
        raise RequestError(
            f"{section.name('short_mscale')} {short:g} and long_mscale {attention:g} differ: a "
            "file holds one attention factor"
        )
    if factor is None and attention is None:
        factor = _ratio(text, original)
    return LongRope(
        long_factors=section.numbers("long_factor"),
        short_factors=section.numbers("short_factor"),
        original_context=original,
        factor=factor,
        attention_factor=attention,
    )


def _original(text: TextConfig, layer: Layer) -> int:
    """Return the original context: for a section of all layers at the top level first, as Phi-3
    has it."""
    name = "original_max_position_embeddings"
    found = None if layer.nested else text.fields.count(name) or text.default("original")
    found = found or layer.section.count(name) or text.count("original")
    found = found or text.count("context") or text.default("context")
    if found is None:
        raise RequestError(
            f"{layer.section.name(name)} is missing, and max_position_embeddings too"
        )
    return found


def _ratio(text: TextConfig, original: int) -> float:
    length = text.count("context") or text.default("context")
    if length is None:
        raise RequestError("without a factor, max_position_embeddings is needed, and is missing")
    return max(length / original, 1.0)
