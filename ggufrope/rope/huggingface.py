"""The RoPE settings of a Hugging Face config.json, in all their spellings, and back.

Spellings and precedence are those of transformers' `modeling_rope_utils` (5.24), of older configs,
of llama.cpp's converters and of Mistral's params.json: `rope_parameters` or `rope_scaling`,
`rope_type` or `type`, one section for all layers, one per layer type under any name, or a list with
a number per layer. `config_fields` has the names and `config_layers` the layers.

What a config leaves to its model class comes from the class's defaults, and is listed in `assumed`:
the file knows better. A key that may change the rotation and has no meaning here is refused by
name: half of a scaling is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ggufrope.errors import RequestError
from ggufrope.rope.config_fields import TextConfig, text_config
from ggufrope.rope.config_layers import LayerRope, layer_ropes
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

__all__ = ["ConfigRope", "LayerRope", "from_config", "to_config"]

_NOT_ROTARY = ("nope", "alibi", "none", "learned", "absolute", "relative_key", "sinusoidal")
"""Values of `position_embedding_type` that leave the vectors unrotated."""
_ROTARY = ("rope", "rotary")
_WINDOWS = ("sliding", "local", "swa", "window")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRope:
    """What a config says about positions, as a file says it; None where it names nothing.

    `scaling`, `base`, `head_size` and `n_rot` are those of the layers with full attention, and
    `sliding` is set where sliding-window layers have their own. `layers` has all by the names of
    the config, None for layers that do not rotate. `compress_base` is that of DeepSeek-V4's
    compressed layers, to which alone `scaling` applies there. `context_length` is the context that
    the scaling reaches, `declared_context` what the config says, and `other_contexts` what a file
    of this model may say instead. `alpha` has stretched `base` already. `rotates` is None where the
    config does not say whether there are layers that rotate.
    `assumed` names the fields that the config leaves to its model class. `sections` are the pairs
    that multimodal RoPE turns by each coordinate; text turns all by one, whatever they are.
    """

    scaling: RopeScaling
    base: float | None
    context_length: int | None
    head_size: int | None
    n_rot: int | None
    sliding: LayerRope | None = None
    layers: Mapping[str, LayerRope | None] = field(default_factory=dict)
    compress_base: float | None = None
    declared_context: int | None = None
    other_contexts: frozenset[int] = frozenset()
    kv_lora_rank: int | None = None
    alpha: float | None = None
    rotates: bool | None = None
    assumed: frozenset[str] = frozenset()
    sections: tuple[int, ...] = ()

    def reach(self, file_context: int | None) -> int | None:
        """Return the context that the scaling reaches, from the file's where the config has none of
        its own."""
        if file_context in self.other_contexts:
            return file_context
        own = self.declared_context
        if "context_length" in self.assumed and file_context is not None:
            own = None
        return _reach(self.scaling, own or file_context)


def from_config(config: Mapping[str, Any]) -> ConfigRope:
    """Read a decoded config.json, or Mistral's params.json.

    Raises RequestError, which names the path of a field that makes no sense or cannot be read.
    """
    text = text_config(config)
    declared = text.count("context")
    rotates = _rotates(text)
    if rotates is False:
        return ConfigRope(
            scaling=Unscaled(),
            base=None,
            context_length=declared,
            declared_context=declared,
            other_contexts=_other_contexts(text, declared, rotates=False),
            head_size=None,
            n_rot=0,
            rotates=False,
        )
    layers = layer_ropes(text)
    main, sliding = _roles(layers, text)
    compress = next((rope for name, rope in layers.items() if "compress" in name and rope), None)
    scaling = main.scaling if compress is None else compress.scaling
    assumed = set(main.assumed)
    context = declared
    if context is None and (default := text.default("context")) is not None:
        context = default
        assumed.add("context_length")
    reached = _reach(scaling, context)
    return ConfigRope(
        scaling=scaling,
        base=main.base,
        context_length=reached,
        declared_context=context,
        other_contexts=_other_contexts(text, reached),
        head_size=main.head_size,
        n_rot=main.n_rot,
        sliding=sliding,
        layers=layers,
        compress_base=None if compress is None else compress.base,
        kv_lora_rank=text.fields.count("kv_lora_rank"),
        alpha=main.alpha,
        rotates=rotates,
        assumed=frozenset(assumed),
        sections=_sections(text.section.values.get("mrope_section")),
    )


def _sections(value: object) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else []
    return tuple(numbers) if all(type(number) is int for number in numbers) else ()


def _rotates(text: TextConfig) -> bool | None:
    values = text.fields.values
    kind = values.get("position_embedding_type")
    if values.get("alibi") is True or values.get("mla_use_nope") is True or kind in _NOT_ROTARY:
        return False
    return True if kind in _ROTARY else None


def _reach(scaling: RopeScaling, context: int | None) -> int | None:
    """Return the context that YaRN reaches, where the config still has the one before it."""
    if not isinstance(scaling, Yarn) or (context or 0) >= 2 * scaling.original_context:
        return context
    reached = round(scaling.factor * scaling.original_context)
    return max(context or 0, reached)


def _other_contexts(
    text: TextConfig, reached: int | None, *, rotates: bool = True
) -> frozenset[int]:
    """Return the contexts that a file of this model may declare in the place of `reached`: longer
    ones that the config has under other names (Command R, Vicuna), and what llama.cpp's converters
    write on their own."""
    kind, values = text.model_type or "", text.fields.values
    found = {length for length in text.counts("context") if reached and length > reached}
    if "roberta" in kind and reached and isinstance(padding := values.get("pad_token_id"), int):
        found.add(reached - 1 - padding)  # conversion/bert.py 104-110 and 276-282
    if kind == "nomic_bert":
        found |= {2048, 512}  # conversion/bert.py 334-341
    if kind.startswith("hunyuan") and text.section.values.get("alpha") == 1000:
        found.add(1 << 18)  # conversion/hunyuan.py 100-106
    if kind == "granitemoehybrid" and not rotates:
        found.add(1 << 20)  # conversion/granite.py 515-521
    return frozenset(found)


def _roles(
    layers: Mapping[str, LayerRope | None], text: TextConfig
) -> tuple[LayerRope, LayerRope | None]:
    """Return the RoPE of full-attention and of sliding-window layers.

    Where only windows rotate, theirs is the only one, and the file's keys are about it.
    """
    windowed = {name: rope for name, rope in layers.items() if _is_window(name)}
    whole = {
        name: rope
        for name, rope in layers.items()
        if name not in windowed and "compress" not in name
    }
    sliding = _same(windowed, text)
    main = _same(whole, text)
    if main is None and not whole:
        raise RequestError(
            f"{text.section.path} is nested but has no full_attention: {', '.join(sorted(layers))}"
        )
    main, sliding = (sliding, None) if main is None else (main, sliding)
    if main is None:
        raise RequestError(f"{text.section.path} has no layers that rotate: it is null for all")
    return main, sliding


def _is_window(name: str) -> bool:
    return any(word in name for word in _WINDOWS)


def _same(layers: Mapping[str, LayerRope | None], text: TextConfig) -> LayerRope | None:
    """Return what these layers have in common; RequestError where they differ."""
    found = [rope for rope in layers.values() if rope is not None]
    if any(rope != found[0] for rope in found[1:]):
        raise RequestError(
            f"{text.section.path} has different values for {', '.join(sorted(layers))}: a file "
            "holds one for them all"
        )
    return found[0] if found else None


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
