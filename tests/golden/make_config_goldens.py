"""Write configs.json: what transformers makes of the configs of all its text models.

    pip install torch==2.14.0 transformers==5.24.0    (the CPU build of torch)
    python tests/golden/make_config_goldens.py > tests/golden/configs.json

Each config class is made in several forms: with nothing, dumped whole, and with every type of
scaling, as `rope_parameters` and as `rope_scaling`. The model's own rotary module then says which
frequencies and which attention factor that gives. The goldens keep three frequencies of a few
forms, and the fields of the config that matter; `cases` yields all, for a test that has
transformers at hand.
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

import torch
import transformers

_KEPT = (
    "model_type",
    "head_dim",
    "global_head_dim",
    "attention_head_dim",
    "hidden_size",
    "n_embd",
    "num_attention_heads",
    "n_head",
    "num_hidden_layers",
    "max_position_embeddings",
    "n_positions",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rotary_dim",
    "rotary_pct",
    "rotary_emb_base",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "rope_theta",
    "compress_rope_theta",
    "rope_parameters",
    "rope_scaling",
    "rope_local_base_freq",
    "layer_rope_theta",
    "layer_types",
    "per_layer_config",
    "position_embedding_type",
)
_ORIGINAL = 1024
_SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": _ORIGINAL},
    "yarn-mscale": {
        "factor": 40.0,
        "original_max_position_embeddings": _ORIGINAL,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn-step": {
        "factor": 32.0,
        "original_max_position_embeddings": _ORIGINAL,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "attention_factor": 1.25,
    },
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": _ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": _ORIGINAL},
    "proportional": {"partial_rotary_factor": 0.25, "factor": 2.0},
}
_BASE = 54321.0


def text_classes() -> Iterator[tuple[type[Any], list[type[Any]]]]:
    """Yield the config classes of text models, each with the rotary modules that may be its."""
    folder = Path(importlib.import_module("transformers.models").__file__ or "").parent
    for path in sorted(folder.glob("*/configuration_*.py")):
        name = path.parent.name
        modeling = path.parent / f"modeling_{name}.py"
        if not modeling.exists() or "RotaryEmbedding" not in modeling.read_text("utf-8"):
            continue
        configs = importlib.import_module(f"transformers.models.{name}.{path.stem}")
        models = importlib.import_module(f"transformers.models.{name}.{modeling.stem}")
        rotary = [
            found
            for title, found in sorted(inspect.getmembers(models, inspect.isclass))
            if "Rotary" in title
            and not any(word in title for word in ("Vision", "Audio", "ViT"))
            and found.__module__ == models.__name__
            and "config" in inspect.signature(found.__init__).parameters
        ]
        for title, found in sorted(inspect.getmembers(configs, inspect.isclass)):
            if (
                found.__module__ == configs.__name__
                and issubclass(found, transformers.PretrainedConfig)
                and not any(word in title for word in ("Vision", "Audio", "ViT"))
                and found.model_type  # type: ignore[attr-defined]
            ):
                yield found, [item for item in rotary if _fits(item, title)] or rotary


def _fits(rotary: type[Any], title: str) -> bool:
    annotation = str(inspect.signature(rotary.__init__).parameters["config"].annotation)
    return title in annotation


def forms(found: type[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and the values of the configs to make of a class."""
    yield "silent", {}
    yield "base", {"rope_theta": _BASE}
    silent = getattr(found(), "rope_parameters", None) or {}
    labels = [name for name, item in silent.items() if isinstance(item, dict)]
    for name, fields in _SCALED.items():
        kind = name.partition("-")[0]
        section = {"rope_type": kind, **fields}
        if kind == "longrope":
            pairs = _pairs(found)
            section |= {
                "long_factor": [1.0 + pair for pair in range(pairs)],
                "short_factor": [1.0 + pair / 8 for pair in range(pairs)],
            }
        yield f"{name} rope_scaling", {"rope_theta": _BASE, "rope_scaling": section}
        whole = {**section, "rope_theta": _BASE}
        yield f"{name} rope_parameters", {"rope_parameters": whole}
        if labels:
            nested = {label: {"rope_type": "default", "rope_theta": 77777.0} for label in labels}
            fraction = (silent[labels[0]] or {}).get("partial_rotary_factor")
            if fraction is not None and kind != "proportional":
                for item in (*nested.values(), whole):
                    item["partial_rotary_factor"] = fraction
            main = next((label for label in labels if "sliding" not in label), labels[0])
            main = "compress" if "compress" in labels else main
            yield f"{name} nested", {"rope_parameters": {**nested, main: whole}}


def _pairs(found: type[Any]) -> int:
    for rotary in dict(text_classes_cached()).get(found, []):
        measured = measure(rotary, found())
        if measured:
            return int(next(iter(measured.values()))[0].numel())
    return 32


_CACHE: list[tuple[type[Any], list[type[Any]]]] = []


def text_classes_cached() -> list[tuple[type[Any], list[type[Any]]]]:
    if not _CACHE:
        _CACHE.extend(text_classes())
    return _CACHE


def measure(rotary: type[Any], config: Any) -> dict[str, tuple[Any, float]]:
    """Return frequencies and attention factor by layer type, "" where layers do not differ."""
    try:
        module = rotary(config)
    except Exception:  # the module is of another part of the model, or refuses the config
        return {}
    found = {}
    for name, buffer in module.named_buffers():
        if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1:
            label = name.removesuffix("inv_freq")
            magnitude = getattr(module, f"{label}attention_scaling", 1.0)
            found[label.rstrip("_")] = (buffer.double(), float(magnitude))
    return found


def cases() -> Iterator[dict[str, Any]]:
    """Yield each config with what transformers makes of it: its frequencies by layer type.

    The fastest is first: multimodal models deal the pairs out to axes, in orders of their own.
    """
    for found, modules in text_classes_cached():
        try:
            default = found()
            text = default.get_text_config()
        except Exception:  # a class that needs values, or has two texts
            continue
        if type(text) is not found or not getattr(default, "rope_parameters", None):
            continue
        if hasattr(default, "image_size"):  # a model of images
            continue
        for form, values in forms(found):
            try:
                config = found(**copy.deepcopy(values))
            except Exception:  # transformers refuses it itself
                continue
            for rotary in modules:
                layers = measure(rotary, config)
                if not layers:
                    continue
                context = getattr(config, "max_position_embeddings", None)
                variants = [(form, {"model_type": found.model_type, **values}, layers)]
                if form in ("silent", "yarn rope_parameters", "yarn nested"):
                    dumped = config.to_dict()
                    dumped.pop("rope_scaling", None)
                    again = measure(rotary, found(**copy.deepcopy(dumped)))
                    dumped["model_type"] = found.model_type
                    variants.append((f"{form} dumped", dumped, again))
                for name, config_, layers_ in variants:
                    yield {
                        "name": f"{found.model_type} {name}",
                        "config": {key: config_[key] for key in _KEPT if key in config_},
                        "context": context,
                        "layers": {
                            label: {
                                "inverse_frequencies": sorted(f.tolist(), reverse=True),
                                "magnitude": magnitude,
                            }
                            for label, (f, magnitude) in layers_.items()
                        },
                    }
                break


def kept_cases() -> Iterator[dict[str, Any]]:
    """Yield a few cases of each model type: nothing, dumped, and another scaling for each."""
    kinds = [kind for name in _SCALED for kind in (f"{name} rope_parameters", f"{name} nested")]
    seen: dict[str, int] = {}
    for case in cases():
        model_type, form = case["name"].split(" ", 1)
        turn = seen.setdefault(model_type, 2 * len(seen)) % len(kinds)
        if form in ("silent", "silent dumped", kinds[turn], kinds[turn + 1]):
            yield case


def shortened(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with three frequencies of each layer type, and no list that says nothing."""
    for layer in case["layers"].values():
        numbers = layer["inverse_frequencies"]
        last = len(numbers) - 1
        picked = {pair: numbers[pair] for pair in (0, last // 2, last)}
        layer["pairs"] = len(numbers)
        layer["inverse_frequencies"] = {
            str(pair): float(f"{value:.8g}") for pair, value in picked.items()
        }
    config = case["config"]
    if "per_layer_config" not in config:
        config.pop("layer_types", None)
    return case


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    kept = [json.dumps(shortened(case), separators=(",", ":")) for case in kept_cases()]
    about = json.dumps({"transformers": transformers.__version__, "torch": torch.__version__})
    rows = ",\n".join(kept)
    sys.stdout.write(f'{{"made_with":{about},"cases":[\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
