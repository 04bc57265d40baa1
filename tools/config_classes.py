"""Write ggufrope/rope/config_classes.json: what transformers' config classes fill in by model type.

    pip install transformers==5.24.0 torch    (the CPU build of torch)
    python tools/config_classes.py > ggufrope/rope/config_classes.json

Each class is asked, not read: it is made with nothing, with a base, with a section, and what its
`rope_parameters` are then is the answer. Configs of vision, audio and the like are left out, so far
as their rotation has axes of its own.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

_BASE = 12345.0
_LINEAR = {"rope_type": "linear", "factor": 2.0}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_FRACTION = "partial_rotary_factor"
_WIDTH = 12288
_SIZES = {
    "head_dim": ("attention_head_dim", "head_dim"),
    "rotary": ("qk_rope_head_dim",),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "context": ("max_position_embeddings", "n_positions"),
    "original": ("original_max_position_embeddings",),
}


def text_classes() -> Iterator[type[Any]]:
    """Yield the config classes of text models, by folder and name."""
    folder = Path(importlib.import_module("transformers.models").__file__ or "").parent
    for path in sorted(folder.glob("*/configuration_*.py")):
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for _, found in sorted(inspect.getmembers(module, inspect.isclass)):
            if found.__module__ == module.__name__ and issubclass(
                found, transformers.PretrainedConfig
            ):
                yield found


def made(found: type[Any], **values: Any) -> Any:
    """Return a config of the class, None where it refuses `values`."""
    try:
        return found(**copy.deepcopy(values))
    except Exception:  # whatever a class raises, it says nothing about these values
        return None


def ropes(found: type[Any], **values: Any) -> dict[str, Any]:
    """Return the `rope_parameters` of the class for `values`, empty where it refuses them."""
    return getattr(made(found, **values), "rope_parameters", None) or {}


def describe(found: type[Any], config: Any) -> dict[str, Any] | None:
    """Return the entry of a class, None where it has no RoPE of text."""
    silent = getattr(config, "rope_parameters", None)
    if not silent or silent.get("rope_type") == "axial" or hasattr(config, "image_size"):
        return None
    labels = [name for name, item in silent.items() if isinstance(item, dict) or item is None]
    kinds = labels or [""]
    moved, bare = ropes(found, rope_theta=_BASE), ropes(found, rope_scaling=_LINEAR)
    both = ropes(found, rope_theta=_BASE, rope_scaling=_LINEAR)
    plain = {"rope_type": "default", "rope_theta": _BASE}
    inner = ropes(found, rope_parameters=dict.fromkeys(labels, plain))
    if not labels:
        inner = ropes(found, rope_parameters={"rope_type": "default"})
    entry: dict[str, Any] = {
        "silent": {name: item for name, item in silent.items() if name != "mrope_section"},
        "labels": labels,
        "follows": [name for name in kinds if of(moved, name).get("rope_theta") == _BASE],
        "scaled_follows": [name for name in kinds if of(both, name).get("rope_theta") == _BASE],
        "bases": values(bare, kinds, "rope_theta"),
        "fractions": values(inner, kinds, _FRACTION),
        "scaled": scaled(found, labels) if labels else {},
        "ignores": ignored(found, config, inner, bare) if not labels else [],
        "sizes": sizes(found, config),
        "head_dims": head_dims(config),
    }
    if entry["silent"] == _PLAIN and entry["follows"]:
        entry["silent"] = {}
    for name, usual in (("follows", [""]), ("scaled_follows", [""]), ("bases", {"": 10000.0})):
        if entry[name] == usual:
            entry[name] = None
    return {
        name: value
        for name, value in entry.items()
        if value or (value == [] and name in ("follows", "scaled_follows"))
    }


def ignored(
    found: type[Any], config: Any, inner: dict[str, Any], bare: dict[str, Any]
) -> list[str]:
    """Return what the class does not read as others do: `rope_scaling`, where it does not scale or
    has another rotary fraction than `rope_parameters`, and `rotary_dim`, which it has for show."""
    names = []
    if bare and not (bare.get("factor") and bare.get(_FRACTION, 1.0) == inner.get(_FRACTION, 1.0)):
        names.append("rope_scaling")
    turned = of(ropes(found, rotary_dim=16), "").get(_FRACTION)
    if isinstance(attribute_of(config, "rotary_dim"), int) and turned == inner.get(_FRACTION):
        names.append("rotary_dim")
    return names


def of(parameters: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the section of a layer type, the whole for ""."""
    return (parameters.get(label) or {}) if label else parameters


def values(parameters: dict[str, Any], labels: list[str], name: str) -> dict[str, float]:
    """Return a value by layer type, where it has one."""
    found = {label: of(parameters, label).get(name) for label in labels}
    return {label: value for label, value in found.items() if value is not None}


def scaled(found: type[Any], labels: list[str]) -> dict[str, list[str]]:
    """Return the layer types that a section for all layers acts on, by the section's name."""
    acts = {}
    for section in ("rope_scaling", "rope_parameters"):
        after = ropes(found, **{section: _LINEAR})
        if after.get("rope_type") is None:
            acts[section] = [
                name for name in labels if (after.get(name) or {}).get("rope_type") == "linear"
            ]
    return {section: names for section, names in acts.items() if names}


def sizes(found: type[Any], config: Any) -> dict[str, int]:
    """Return the sizes that the class has, without a head size that is the width over the heads, or
    only the rotary part of the head; 0 where the class computes another."""
    dumped, wider = config.to_dict(), made(found, hidden_size=_WIDTH)
    known: dict[str, int] = {}
    for name, attributes in _SIZES.items():
        for attribute in attributes:
            value = dumped.get(attribute)
            value = attribute_of(config, attribute) if value is None else value
            if isinstance(value, int) and not isinstance(value, bool):
                known.setdefault(name, value)
    computed = attribute_of(wider, "head_dim") not in (None, known.get("head_dim"))
    divided = known.get("width", 0) // known.get("heads", 1)
    if computed and "rotary" not in known and known["head_dim"] != divided:
        return {**known, "head_dim": 0}
    if computed or known.get("head_dim") == known.get("rotary"):
        known.pop("head_dim", None)
    return known


def attribute_of(config: Any, name: str) -> Any:
    """Return an attribute, None where it is absent or differs between layers."""
    try:
        return getattr(config, name, None)
    except Exception:  # a config with sizes of its own per layer has no one number
        return None


def head_dims(config: Any) -> dict[str, int]:
    """Return the head sizes of layer types that have one of their own."""
    dumped = config.to_dict()
    types = dumped.get("layer_types") or []
    own = dumped.get("per_layer_config") or {}
    return {
        types[int(layer)]: item["head_dim"]
        for layer, item in own.items()
        if "head_dim" in item and int(layer) < len(types)
    }


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    classes: dict[str, Any] = {}
    for found in text_classes():
        config = made(found)
        if config is None or not found.model_type:
            continue
        try:
            text = config.get_text_config()
        except ValueError:  # an encoder and a decoder: neither is the one
            continue
        if type(text) is found:
            if entry := describe(found, config):
                classes[found.model_type] = entry
        elif text.model_type and text.model_type != found.model_type:
            classes.setdefault(found.model_type, text.model_type)
    known = {name for name, entry in classes.items() if isinstance(entry, dict)}
    kept = {
        name: entry
        for name, entry in sorted(classes.items())
        if name in known or (isinstance(entry, str) and entry in known)
    }
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in kept.items())
    made_with = json.dumps({"transformers": transformers.__version__})
    sys.stdout.write(f'{{"made_with": {made_with}, "classes": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
