"""The RoPE of each type of layers that a config.json describes.

A config has one section for all layers, one per layer type, or lists with a number per layer, and
its model class may spread a single section over some of its layers only (Gemma 3 and Olmo 3: not
over the windows; DeepSeek-V4: over the compressed layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ggufrope.errors import RequestError
from ggufrope.rope.config_fields import (
    SCHEME_FIELDS,
    Fields,
    ModelClass,
    TextConfig,
    unreadable,
)
from ggufrope.rope.config_scaling import PLAIN, Layer, kind_of_section, layer_scaling
from ggufrope.rope.frequencies import ntk_base
from ggufrope.rope.keys import ONE_IN_FLOAT32
from ggufrope.rope.scaling import RopeScaling, Unscaled

_READ = frozenset(
    {
        *SCHEME_FIELDS,
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "max_position_embeddings",
        "partial_rotary_factor",
        "attn_factor",
        "long_mscale",
        "short_mscale",
        "mrope_section",
        "mrope_interleaved",
        "interleaved",
        "xdrope_section",
        "llama_4_scaling_beta",
        "finetuned",
    }
)
"""Keys of a section that are read here, or that leave the rotation alone."""
_PARAMS_READ = frozenset({"alpha", "beta", "apply_scale"})
"""Keys of the section `yarn` of Mistral's params.json beside those."""
_ALPHA_MODELS = ("hunyuan", "hy_", "hy3")
"""Model types whose dynamic scaling has an `alpha`, which stretches the base for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRope:
    """The RoPE of one type of layers; None where the config names nothing.

    `alpha` is what has stretched `base`; `assumed` names what the model class fills in.
    """

    scaling: RopeScaling
    base: float | None
    n_rot: int | None = None
    head_size: int | None = None
    alpha: float | None = None
    assumed: frozenset[str] = field(default=frozenset(), compare=False)


def layer_ropes(text: TextConfig) -> dict[str, LayerRope | None]:
    """Return the RoPE of each type of layers by its name, "" for all of them and None for layers
    that do not rotate. Raises RequestError, which names the field that cannot be read."""
    found: dict[str, LayerRope | None] = {}
    for name, layer in _layers(text).items():
        found[name] = None if layer is None else _rope(text, layer)
    local = text.number("local_base")
    if local is not None and list(found) == [""]:
        whole = found[""]
        size = None if whole is None else whole.head_size
        rotary = None if whole is None else whole.n_rot
        found["sliding_attention"] = LayerRope(
            scaling=Unscaled(), base=local, n_rot=rotary, head_size=size
        )
    return found


def _layers(text: TextConfig) -> dict[str, Layer | None]:
    """Return the types of layers with the section of each."""
    section, known = text.section, text.model_class
    nested = {name: item for name, item in section.values.items() if isinstance(item, Mapping)}
    if nested or (section.values and _all_still(section)):
        return _nested(text, nested)
    _refuse_unknown(section, text)
    if any(text.per_layer(kind) for kind in ("base", "layer_bases", "layer_fractions")):
        return _listed(text)
    if "compress_rope_theta" in text.fields or "compress" in (known.labels if known else ()):
        return _compressed(text)
    if known is None or (not section.values and not known.silent):
        return {"": Layer(name="", section=section)}
    if not section.values:
        return _silent(known.silent, nested=bool(known.labels))
    if section.path in known.ignores:
        raise RequestError(
            f"transformers does not read {section.path} for {text.model_type}: it reads "
            "rope_parameters"
        )
    if not known.labels:
        return {"": Layer(name="", section=section)}
    scaled = known.scaled.get(section.path, ())
    if not scaled:
        raise RequestError(
            f"{section.path} says nothing by layer type, and {text.model_type} has one for each "
            f"of {', '.join(known.labels)}: nest it"
        )
    plain = Fields({}, section.path)
    return {
        name: Layer(name=name, section=section if name in scaled else plain)
        for name in known.labels
    }


def _all_still(section: Fields) -> bool:
    """Return whether a section has types of layers, none of which rotates."""
    return all(item is None and "attention" in name for name, item in section.values.items())


def _nested(text: TextConfig, nested: Mapping[str, Mapping[str, Any]]) -> dict[str, Layer | None]:
    section = text.section
    beside = {
        name: item
        for name, item in section.values.items()
        if name not in nested and item is not None and name != "truncate"
    }
    kinds = {beside.pop("rope_type", "default"), beside.pop("type", "default")}
    if beside or not kinds <= set(PLAIN):
        names = ", ".join(section.name(name) for name in beside or ("rope_type",))
        raise RequestError(
            f"the config has {names} beside sections for {', '.join(sorted(nested))}: put it into "
            "the one it is about"
        )
    layers: dict[str, Layer | None] = {}
    for name, item in section.values.items():
        if isinstance(item, Mapping):
            inner = Fields(item, section.name(name))
            _refuse_unknown(inner, text)
            layers[name] = Layer(name=name, section=inner, nested=True)
        elif item is None and name not in _READ:
            layers[name] = None
    return layers


def _silent(silent: Mapping[str, Any], *, nested: bool) -> dict[str, Layer | None]:
    """Return the layers of a model class whose config says nothing."""
    path = "rope_parameters"
    if not nested:
        return {"": Layer(name="", section=Fields(silent, path), silent=True)}
    return {
        name: None
        if item is None
        else Layer(name=name, section=Fields(item, f"{path}.{name}"), nested=True, silent=True)
        for name, item in silent.items()
    }


def _compressed(text: TextConfig) -> dict[str, Layer | None]:
    """Return the layers of DeepSeek-V4: the section is about the compressed ones alone, which have
    a base of their own and no attention factor (transformers' DeepseekV4Config)."""
    section, known = text.section, text.model_class
    base = text.fields.number("compress_rope_theta")
    if base is None:
        base = known.silent["compress"]["rope_theta"] if known else None
    values = {**section.values, "rope_theta": base}
    kind = kind_of_section(section)
    if kind == "yarn" and values.get("attention_factor") is None:
        values["attention_factor"] = 1.0
    elif kind not in (*PLAIN, "yarn", "linear"):
        raise RequestError(f"{section.name('rope_type')} is {kind}: compressed layers have no such")
    return {
        "main": Layer(name="main", section=Fields({}, section.path)),
        "compress": Layer(name="compress", section=Fields(values, section.path)),
    }


def _listed(text: TextConfig) -> dict[str, Layer | None]:
    """Return the layers of a config with one base or fraction per layer, a base of 0 for layers
    that do not rotate. Layers of one type have to agree: a file holds one number for them."""
    own = text.per_layer("base")
    bases = text.per_layer("layer_bases") or own
    fractions = text.per_layer("layer_fractions")
    length = len(bases or fractions or ())
    if bases and fractions and len(bases) != len(fractions):
        raise RequestError(
            f"{text.name('base')} has {len(bases)} values and {text.name('layer_fractions')} has "
            f"{len(fractions)}: expected one for each layer in both"
        )
    pairs = [
        (bases[layer] if bases else None, fractions[layer] if fractions else None)
        for layer in range(length)
    ]
    turning = [layer for layer in range(length) if pairs[layer][0] != 0]
    if not turning:
        return {"": None}
    types = text.layer_types()
    names = types[:length] if len(types) >= length else _names_of(pairs, turning)
    groups: dict[str, tuple[float | None, float | None]] = {}
    for layer in turning:
        name = names[layer]
        if groups.setdefault(name, pairs[layer]) != pairs[layer]:
            raise RequestError(
                f"{text.name('layer_bases') or text.name('base') or 'partial_rotary_factors'} "
                f"differs within the {name} layers: a file holds one number for them"
            )
    if len(set(groups.values())) == 1 and own is None and fractions is None:
        (base, _) = next(iter(groups.values()))
        return {"": Layer(name="", section=text.section, base=base)}
    whole = "full_attention" if "full_attention" in groups else next(iter(groups))
    plain = Fields({}, text.section.path)
    return {
        name: Layer(
            name=name,
            section=text.section if name == whole or own is None else plain,
            base=base,
            fraction=fraction,
        )
        for name, (base, fraction) in groups.items()
    }


def _names_of(
    pairs: list[tuple[float | None, float | None]], turning: list[int]
) -> tuple[str, ...]:
    """Return names for layers whose types the config does not give: the first kind has full
    attention (conversion/step3.py 135-140)."""
    kinds = list(dict.fromkeys(pairs[layer] for layer in turning))
    if len(kinds) > 2:
        raise RequestError(
            f"the config has {len(kinds)} different bases or rotary fractions and no layer_types: "
            "a file holds two, for full attention and for sliding windows"
        )
    names = ("full_attention", "sliding_attention")
    return tuple(names[kinds.index(pair)] if pair in kinds else names[0] for pair in pairs)


def _refuse_unknown(section: Fields, text: TextConfig) -> None:
    """Refuse keys that may change the rotation and are not read, all of them by name."""
    read = _READ | (_PARAMS_READ if section.path == "yarn" else frozenset())
    if text.model_type is None or text.model_type.startswith(_ALPHA_MODELS):
        read = read | {"alpha"}
    unknown = [
        section.name(name)
        for name, value in section.values.items()
        if name not in read and value is not None and not isinstance(value, Mapping)
    ]
    if unknown:
        raise RequestError(unreadable(unknown))


def _rope(text: TextConfig, layer: Layer) -> LayerRope:
    assumed: set[str] = set()
    if layer.silent:
        assumed.add("scaling")
    scaling = layer_scaling(text, layer)
    head_size = _head_size(text, layer, assumed)
    n_rot = _rotary_dimensions(text, layer, head_size, assumed)
    base = _base(text, layer, assumed)
    alpha = layer.section.number("alpha") if layer.section.path != "yarn" else None
    if alpha:
        if base is None or n_rot is None or n_rot < 4 or alpha < 1:
            raise RequestError(
                f"{layer.section.name('alpha')} is {alpha:g}: it stretches a base over the rotary "
                "dimensions of a head, and needs 1 or more, a rope_theta and a head_dim"
            )
        base = ntk_base(base, alpha, n_rot)
    return LayerRope(
        scaling=scaling,
        base=base,
        n_rot=n_rot,
        head_size=None if "kv_lora_rank" in text.fields and _mla_size(text) is None else head_size,
        alpha=alpha or None,
        assumed=frozenset(assumed),
    )


def _base(text: TextConfig, layer: Layer, assumed: set[str]) -> float | None:
    """Return the base of a type of layers: its own, that at the top level, or its class's."""
    base = layer.base
    if base is None and not layer.silent:
        base = layer.section.number("rope_theta")
    if base is None:
        base = _inherited_base(text, layer, assumed)
    ratio = text.fields.number("rope_ratio")
    if ratio is not None:
        base = (10000.0 if base is None else base) * ratio  # conversion/chatglm.py 154-157
    if base is not None and base <= ONE_IN_FLOAT32:
        name = layer.section.name("rope_theta")
        if "rope_theta" not in layer.section:
            name = text.name("base") or name
        raise RequestError(f"{name} is {base:g}: expected more than 1")
    return base


def _inherited_base(text: TextConfig, layer: Layer, assumed: set[str]) -> float | None:
    window = "sliding" in layer.name or "local" in layer.name
    kind = "local_base" if window and text.name("local_base") else "base"
    known = text.model_class
    if known is None:
        return text.base(kind, reads_theta=True)
    whole = bool(text.section.values) and not (layer.nested or layer.silent)
    follows = known.scaled_follows if whole else known.follows
    top = text.base(kind, reads_theta=layer.name in follows)
    if top is not None:
        return top
    silent = known.silent.get(layer.name) if known.labels else known.silent
    default = (silent or {}).get("rope_theta") if layer.silent or not whole else None
    if whole and known.labels and layer.name not in known.bases:
        default = (silent or {}).get("rope_theta")
    base = float(known.bases.get(layer.name, 10000.0) if default is None else default)
    named = None if window else text.base("base", reads_theta=True)
    if named not in (None, base):
        raise RequestError(
            f"the config has rope_theta {named:g}, which transformers does not read for "
            f"{text.model_type}: name it in rope_parameters"
        )
    assumed.add("base")
    return base


def _head_size(text: TextConfig, layer: Layer, assumed: set[str]) -> int | None:
    mla = _mla_size(text)
    if mla is not None:
        return mla
    own = _own_head_size(text, layer)
    if own is not None:
        return own
    size = text.count("head_dim")
    if size is not None:
        return size
    known = text.model_class
    default = (
        None if known is None else known.head_dims.get(layer.name, known.sizes.get("head_dim"))
    )
    if default is not None:
        assumed.add("head_size")
        return default or None
    width, heads = text.count("width"), text.count("heads")
    if width is None or heads is None:
        assumed.add("head_size")
        width, heads = width or text.default("width"), heads or text.default("heads")
    return width // heads if width is not None and heads is not None else None


def _mla_size(text: TextConfig) -> int | None:
    """Return the head size of latent attention, as `key_length_mla` has it."""
    fields = text.fields
    if "kv_lora_rank" not in fields:
        return None
    plain, rotary = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    return None if plain is None or rotary is None else plain + rotary


def _own_head_size(text: TextConfig, layer: Layer) -> int | None:
    """Return a head size that only these layers have (Gemma 4)."""
    whole = layer.name in ("full_attention", "global_attention", "global")
    if whole and (size := text.fields.count("global_head_dim")) is not None:
        return size
    by_layer, types = text.fields.values.get("per_layer_config"), text.layer_types()
    if not isinstance(by_layer, Mapping):
        return None
    sizes = {
        item["head_dim"]
        for index, item in by_layer.items()
        if isinstance(item, Mapping)
        and "head_dim" in item
        and str(index).isdecimal()
        and int(index) < len(types)
        and types[int(index)] == layer.name
    }
    if len(sizes) != 1:
        return None
    return Fields({"head_dim": sizes.pop()}, "per_layer_config").count("head_dim")


def _rotary_dimensions(
    text: TextConfig, layer: Layer, head_size: int | None, assumed: set[str]
) -> int | None:
    """Return how many dimensions turn. A fraction is one of the head, except where the rotary part
    of a head is named by itself (transformers' `head_dim` of MLA is that part)."""
    inner = layer.section.number("partial_rotary_factor")
    outer = None if text.per_layer("fraction") is not None else text.number("fraction")
    if layer.silent:  # the section is the class's: the config overrides it, unless it is nested
        inner, outer = (inner, None) if layer.nested else (outer, inner)
    fraction = next((each for each in (layer.fraction, inner, outer) if each is not None), None)
    if fraction is None and not layer.silent and text.model_class is not None:
        fraction = _class_fraction(text.model_class, text, layer)
    if fraction is None and ("rope_ratio" in text.fields or text.model_type == "chatglm"):
        fraction = 0.5  # conversion/chatglm.py 153
    if fraction is not None and not 0 < fraction <= 1:
        raise RequestError(
            f"partial_rotary_factor is {fraction:g}: expected more than 0, at most 1"
        )
    known = text.model_class
    whole = text.count("head_dim") or text.default("head_dim")
    given = text.count("rotary")
    if given is None and text.count("head_dim") is None:
        given = text.default("rotary")
        if given is not None:
            assumed.add("n_rot")
    if kind_of_section(layer.section) == "proportional":
        own = _own_head_size(text, layer) or (known.head_dims.get(layer.name) if known else None)
        return own or whole or given or head_size
    if given is None:
        if "head_size" in assumed:
            assumed.add("n_rot")
        full = fraction is None or head_size is None
        return head_size if full else int((head_size or 0) * (fraction or 1))
    turned = whole and int(whole * (1 if fraction is None else fraction))
    name = text.name("rotary") or "qk_rope_head_dim"
    own_head = known is not None and "head_dim" in known.sizes and name == "qk_rope_head_dim"
    own_head = own_head and layer.name not in ("main", "compress")
    if known is not None and whole and turned != given and (own_head or name in known.ignores):
        raise RequestError(
            f"the config has {name} {given}, and transformers turns {turned} dimensions of "
            f"head_dim {whole}: give partial_rotary_factor {given / whole:g}"
        )
    return given


def _class_fraction(known: ModelClass, text: TextConfig, layer: Layer) -> float | None:
    """Return the fraction that a section without one gets from its class; RequestError where only
    the class's own sections have one."""
    usual = known.silent.get(layer.name) if layer.nested and known.labels else None
    fraction = known.fractions.get(layer.name)
    if fraction is None and usual and usual.get("rope_type") != "proportional":
        own = usual.get("partial_rotary_factor", 1)
        if own != 1:
            raise RequestError(
                f"{layer.section.name('partial_rotary_factor')} is missing: {text.model_type} has "
                f"{own:g} there, but only in sections of its own; name it"
            )
    return fraction
