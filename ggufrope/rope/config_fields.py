"""The fields of a Hugging Face config.json under all the names they have, typed and checked.

Names are those that transformers' config classes (5.24), llama.cpp's converters and Mistral's
params.json read; `_NAMES` is the whole list. What a config leaves out is known from its model class
alone: `config_classes.json` has those defaults by `model_type`, as `tools/config_classes.py` took
them from transformers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from ggufrope.errors import RequestError

_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "base": (
            "rope_theta",
            "global_rope_theta",
            "rope_global_theta",
            "rope_theta_global",
            "rotary_emb_base",
            "rotary_embedding_base",
            "rope_base",
            "rope_freq_base",
            "rope_freq_constant",
            "rope_embedding_base",
            "default_theta",
        ),
        "local_base": (
            "rope_local_base_freq",
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
        ),
        "layer_bases": ("layer_rope_theta",),
        "fraction": (
            "partial_rotary_factor",
            "rotary_pct",
            "rope_pct",
            "rope_percent",
            "rope_percentage",
            "rotary_percent",
            "rotary_emb_fraction",
        ),
        "layer_fractions": ("partial_rotary_factors",),
        "rotary": ("qk_rope_head_dim", "rotary_dim", "attn_rotary_emb", "n_rot"),
        "context": (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "seq_length",
            "max_sequence_length",
            "max_seq_len",
            "max_seq_length",
            "max_context_length",
            "model_max_length",
        ),
        "original": ("original_max_position_embeddings", "initial_context_length"),
        "head_dim": (
            "attention_head_dim",
            "head_dim",
            "kv_channels",
            "d_head",
            "hidden_size_per_head",
        ),
        "width": ("hidden_size", "n_embd", "d_model", "dim"),
        "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
        "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    }
)
"""What a field is -> its names at the top level, the one that wins first."""

_SECTIONS = ("rope_parameters", "rope_scaling", "yarn")
_TEXT_CONFIGS = (
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
    "text_model_config",
    "language_model_config",
    "llm_cfg",
)
_IN_ATTENTION = ("rope_theta", "alibi")
_BESIDE_TYPES = ("rope_scaling_type", "rope_type")
_BESIDE_FACTORS = ("rope_scaling_factor", "scaling_factor", "factor")
_BESIDE_OTHERS = ("rope_condense_ratio", "rope_ntk_alpha", "rope_ntk_beta")
SCHEME_FIELDS = (
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "extrapolation_factor",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "long_factor",
    "short_factor",
)
"""What a section says of its scheme besides the type and the factor; some configs have these at
the top level."""
_KNOWN = ("hidden_size", "n_embd", "dim", "max_position_embeddings", "rope_theta")
_SUSPECT = re.compile(
    r"(?=.*((?<!p)rope|rotary|ntk|yarn|condense))"
    r"(?=.*(scal|factor|ratio|alpha|beta|ntk|condense|interpol))|use_logn_attn$"
)
"""Names at the top level that may change the rotation or the scores by the length."""
_HARMLESS: tuple[object, ...] = (None, False, 1, "", "none", "default", [], {})


class Fields:
    """Typed access to a mapping, with errors that name the field's path."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def name(self, field_: str) -> str:
        """Return the path of a field, for messages."""
        return f"{self.path}.{field_}" if self.path else field_

    def found(self, names: tuple[str, ...]) -> str | None:
        """Return the first of `names` that has a value."""
        return next((name for name in names if name in self), None)

    def number(self, *names: str) -> float | None:
        """Return the first of `names` that is there, as a finite number."""
        name = self.found(names)
        return None if name is None else _number(self.values[name], self.name(name))

    def count(self, *names: str) -> int | None:
        """Return the first of `names` that is there, as a whole number above 0."""
        name = self.found(names)
        value = self.number(*names)
        if name is None or value is None:
            return None
        if not (value.is_integer() and value > 0):
            raise RequestError(f"{self.name(name)} is {value:g}: expected a whole number above 0")
        return int(value)

    def required(self, *names: str) -> float:
        """Return a number that has to be there."""
        value = self.number(*names)
        if value is None:
            raise RequestError(f"{self.name(names[0])} is missing")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        """Return a field that is true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise RequestError(f"{self.name(name)} is {shown(value)}: expected true or false")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers that has to be there."""
        value = self.values.get(name)
        if not isinstance(value, list | tuple):
            raise RequestError(f"{self.name(name)} is {kind_of(value)}: expected a list of numbers")
        path = self.name(name)
        for index, item in enumerate(value):
            if item is None:
                raise RequestError(f"{path}.{index} is missing")
        return tuple(_number(item, f"{path}.{index}") for index, item in enumerate(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelClass:
    """What transformers' class of a `model_type` fills in, by layer type.

    `labels` are its layer types, and the one layer type is "" where they do not differ. `silent`
    are its RoPE parameters where the config has none; `bases` and `fractions` are what a section
    that names none gets. `scaled` has the layer types that a section for all layers acts on, by the
    section's name. `follows` are those that a `rope_theta` at the top level acts on, and
    `scaled_follows` likewise beside a section for all layers. `ignores` are sections that it does
    not read. `head_dims` are the head sizes of layer types with one of their own.
    """

    labels: tuple[str, ...]
    silent: Mapping[str, Any]
    bases: Mapping[str, float]
    fractions: Mapping[str, float]
    scaled: Mapping[str, tuple[str, ...]]
    follows: tuple[str, ...]
    scaled_follows: tuple[str, ...]
    ignores: tuple[str, ...]
    sizes: Mapping[str, int]
    head_dims: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The part of a config that describes the language model, its section and its class."""

    fields: Fields
    section: Fields
    model_type: str | None
    model_class: ModelClass | None

    def number(self, field_: str) -> float | None:
        """Return a field of `_NAMES` as a number."""
        return self.fields.number(*_NAMES[field_])

    def count(self, field_: str) -> int | None:
        """Return a field of `_NAMES` as a whole number above 0."""
        return self.fields.count(*_NAMES[field_])

    def counts(self, field_: str) -> list[int]:
        """Return all whole numbers that a field of `_NAMES` has under its names."""
        values = (self.fields.values.get(name) for name in _NAMES[field_])
        return [value for value in values if type(value) is int and value > 0]

    def base(self, kind: str, *, reads_theta: bool) -> float | None:
        """Return a base at the top level. `rope_theta` counts where `reads_theta`."""
        names = tuple(name for name in _NAMES[kind] if reads_theta or name != "rope_theta")
        name = self.fields.found(names)
        if name is None or self.per_layer(kind) is not None:
            return None
        return self.fields.number(name)

    def default(self, field_: str) -> int | None:
        """Return the class's default of a size."""
        return None if self.model_class is None else self.model_class.sizes.get(field_)

    def name(self, field_: str) -> str | None:
        """Return the name that a field of `_NAMES` has in this config."""
        return self.fields.found(_NAMES[field_])

    def per_layer(self, field_: str) -> tuple[float, ...] | None:
        """Return a field that has one number for each layer, None where it is one number."""
        name = self.name(field_)
        if name is None or not isinstance(self.fields.values[name], list | tuple):
            return None
        values = self.fields.numbers(name)
        layers = self.count("layers")
        extra = self.fields.count("num_nextn_predict_layers") or 0
        if not values or (layers is not None and len(values) not in (layers, layers + extra)):
            expected = "one for each layer" if layers is None else f"{layers}, one for each layer"
            raise RequestError(f"{name} has {len(values)} values: expected {expected}")
        return values

    def layer_types(self) -> tuple[str, ...]:
        """Return the type of each layer, empty where the config does not say."""
        value = self.fields.values.get("layer_types")
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            return ()
        return tuple(value)


def text_config(config: Mapping[str, Any]) -> TextConfig:
    """Return the text part of a decoded config.json. Raises RequestError where it is none."""
    if not isinstance(config, Mapping):
        raise RequestError(f"config is a {type(config).__name__}: expected a JSON object")
    values = _text_part(config)
    fields = Fields(values)
    section = _section(fields)
    model_type = values.get("model_type")
    model_type = model_type if isinstance(model_type, str) else None
    return TextConfig(
        fields=fields,
        section=section,
        model_type=model_type,
        model_class=None if model_type is None else model_class(model_type),
    )


@cache
def _classes() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("config_classes.json").read_text("utf-8")
    classes: Mapping[str, Any] = json.loads(text)["classes"]
    return classes


def model_class(model_type: str) -> ModelClass | None:
    """Return the defaults of a `model_type` of transformers, None where it is not known."""
    known = _classes()
    entry = known.get(model_type)
    if isinstance(entry, str):
        entry = known.get(entry)
    if not isinstance(entry, Mapping):
        return None
    return ModelClass(
        labels=tuple(entry.get("labels", ())),
        silent=entry.get("silent", {}),
        bases=entry.get("bases", {"": 10000.0}),
        fractions=entry.get("fractions", {}),
        scaled={name: tuple(labels) for name, labels in entry.get("scaled", {}).items()},
        follows=tuple(entry.get("follows", ("",))),
        scaled_follows=tuple(entry.get("scaled_follows", ("",))),
        ignores=tuple(entry.get("ignores", ())),
        sizes=entry.get("sizes", {}),
        head_dims=entry.get("head_dims", {}),
    )


def unreadable(names: list[str]) -> str:
    """Return why a config with `names` is refused."""
    return (
        f"the config has {', '.join(names)}, which may change the rotation and cannot be read: "
        "ask for a scheme by `scaling` and its parameters instead"
    )


def shown(value: object) -> str:
    """Return a value of a hostile config for a message: short, whatever it is."""
    short = isinstance(value, str | bool | float) or (isinstance(value, int) and abs(value) < 1e18)
    text = repr(value) if short else kind_of(value)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: object) -> str:
    """Return what a value is, in words."""
    return "missing" if value is None else f"a {type(value).__name__}"


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{path} is {shown(value)}: expected a number")
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(f"{path} is too large: expected a finite number") from None
    if not math.isfinite(number):
        raise RequestError(f"{path} is {number}: expected a finite number")
    return number


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a composite config that describes the language model."""
    for _ in range(8):
        name = next((name for name in _TEXT_CONFIGS if isinstance(config.get(name), Mapping)), None)
        if name is None:
            break
        inner = config[name]
        config = {**config, name: None, **inner}
    attention = config.get("attn_config")
    if isinstance(attention, Mapping):  # DBRX and MPT keep their positions there
        config = {**{name: attention.get(name) for name in _IN_ATTENTION}, **config}
        scaling = attention.get("rope_hf_config")
        if isinstance(scaling, Mapping) and scaling.get("type") != "no_scaling":
            config = {"rope_scaling": scaling, **config}
    if not any(name in config for name in (*_KNOWN, "rope_scaling", "rope_parameters")):
        names = {name for kind in ("width", "context", "base") for name in _NAMES[kind]}
        typed = isinstance(config.get("model_type"), str) and model_class(config["model_type"])
        if not (typed or names & config.keys()):
            raise RequestError(
                "this JSON has none of the fields of a model's config.json "
                f"({', '.join((*_KNOWN, 'rope_scaling', 'rope_parameters'))}): is it another file?"
            )
    return config


def _section(fields: Fields) -> Fields:
    """Return the section that says how positions are scaled; the one of two that say the same."""
    found: list[Fields] = []
    for name in _SECTIONS:
        value = fields.values.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise RequestError(f"{name} is {kind_of(value)}: expected an object")
        if value:
            found.append(Fields(value, name))
    for other in found[1:]:
        if _said(other) != _said(found[0]):
            raise RequestError(
                f"the config has {found[0].path} and {other.path}, which do not say the same: "
                "keep one of them"
            )
    beside = _beside(fields)
    read = () if beside is None else (*_BESIDE_TYPES, *_BESIDE_FACTORS, *_BESIDE_OTHERS)
    _refuse_suspects(fields, read, scaled=bool(found))
    if not found:
        return Fields({}, "rope_parameters") if beside is None else beside
    if beside is not None and found[0].number("factor") != beside.number("factor"):
        raise RequestError(
            f"the config has {found[0].path} and beside it a factor of "
            f"{beside.required('factor'):g}, which do not say the same: keep one of them"
        )
    return found[0]


def _beside(fields: Fields) -> Fields | None:
    """Return a scaling that is said at the top level, as a section; None where there is none.

    gpt-oss's own config and PLaMo 3 have YaRN (conversion/plamo.py 161-170), Grok 2 has it with a
    type of its own (conversion/grok.py 48-56), and LongChat has a linear factor.
    """
    ratio = fields.values.get("rope_condense_ratio")
    if not _is_harmless(ratio):
        return Fields({"rope_type": "linear", "factor": ratio})
    kind = fields.values.get(fields.found(_BESIDE_TYPES) or "")
    factor = fields.found(_BESIDE_FACTORS)
    if factor is None or _is_harmless(fields.values[factor]):
        return None
    said = {"factor": fields.values[factor]}
    if isinstance(kind, str) and not _is_harmless(kind):
        said |= {name: fields.values[name] for name in SCHEME_FIELDS if name in fields}
        growth = fields.number("attn_factor")  # of YaRN's own attention factor
        if growth not in (None, 1):
            raise RequestError(unreadable(["attn_factor"]))
        return Fields({**said, "rope_type": "yarn" if kind == "original" else kind})
    if factor != "rope_scaling_factor" or "initial_context_length" not in fields:
        return None
    return Fields(
        {
            **said,
            "rope_type": "yarn",
            "original_max_position_embeddings": fields.values["initial_context_length"],
            "beta_fast": fields.values.get("rope_ntk_beta"),
            "beta_slow": fields.values.get("rope_ntk_alpha"),
            "truncate": False,
        }
    )


def _is_harmless(value: object) -> bool:
    return value is not True and value in _HARMLESS


def _refuse_suspects(fields: Fields, read: tuple[str, ...], *, scaled: bool) -> None:
    """Refuse names that sound like a scaling and are not read. Beside a section a switch is one
    that the section answers."""
    known = {name for names in _NAMES.values() for name in names}
    known |= {*_SECTIONS, *read, "rope_ratio", "partial_rotary_factors"}
    refused = [
        name
        for name, value in fields.values.items()
        if name not in known
        and _SUSPECT.match(name)
        and not (_is_harmless(value) or (scaled and value is True))
    ]
    if refused:
        raise RequestError(unreadable(refused))


def _said(section: Fields) -> dict[str, Any]:
    """Return what a section says, whatever names its type has."""
    said = {name: value for name, value in section.values.items() if value is not None}
    kind = said.pop("type", None)
    said.setdefault("rope_type", kind or "default")
    return said
