"""Write exports.json: what transformers makes of exported Hugging Face sections, for real models.

    pip install torch==2.14.0 transformers==5.24.0    (the CPU build of torch)
    PYTHONPATH=. python tests/golden/make_export_goldens.py > tests/golden/exports.json

Each case is a model as its GGUF file declares it, in the dimensions of published models, and a
scaling requested for it or none. Its export is merged into a config as a person would, loaded by
transformers' own config class, and the rotary module of that model's own code says how it turns.
transformers computes in float32.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from ggufrope.patching.exporting import wanted_scaling
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.export import export
from ggufrope.rope.metadata import FactorTensor, RopeMetadata

LLAMA = {"block_count": 4, "embedding_length": 512, "head_count": 4, "context_length": 8192}
"""Heads of 128 dimensions."""
WIDE = {**LLAMA, "key_length": 256, "value_length": 256, "embedding_length": 1024}
"""Heads of 256 dimensions."""
MROPE = (24, 20, 20, 0)


def rising(pairs: int, last: float) -> list[float]:
    """Factors that rise as searched ones do."""
    return [round(1.05 * (last / 1.05) ** ((j / (pairs - 1)) ** 2), 6) for j in range(pairs)]


def case(
    model: str,
    architecture: str,
    fields: dict[str, Any],
    request: dict[str, Any] | None = None,
    *,
    factors: dict[str, list[float]] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """A case; `model` is the folder of transformers' models, `config` what its config has beside
    the export."""
    return {
        "model": model,
        "architecture": architecture,
        "fields": fields,
        "request": request,
        "factors": factors or {},
        "config": config,
    }


def plain(**more: Any) -> dict[str, Any]:
    """A config of the language model in the dimensions of `LLAMA`."""
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    return {**sizes, "num_hidden_layers": 4, "head_dim": 128, **more}


def to(scaling: str, factor: float, **more: Any) -> dict[str, Any]:
    return {"scaling": scaling, "factor": factor, **more}


def cases() -> dict[str, dict[str, Any]]:
    """Return every case by name."""
    base = {**LLAMA, "freq_base": 500000.0}
    made: dict[str, dict[str, Any]] = {
        "llama": case("llama", "llama", base, None, **plain()),
        "llama linear": case("llama", "llama", base, to("linear", 4), **plain()),
        "llama ntk": case("llama", "llama", base, to("ntk", 4), **plain()),
        "llama dynamic ntk": case("llama", "llama", base, to("dynamic-ntk", 4), **plain()),
        "llama ntk by parts": case("llama", "llama", base, to("ntk-by-parts", 4), **plain()),
        "llama yarn": case("llama", "llama", base, to("yarn", 3), **plain()),
        "llama yarn base": case(
            "llama", "llama", base, to("yarn", 4, freq_base=2e6, attn_factor=1.0), **plain()
        ),
        "llama yarn betas": case(
            "llama", "llama", base, to("yarn", 4, beta_fast=16.0, beta_slow=2.0), **plain()
        ),
        "llama yarn mix": case("llama", "llama", base, to("yarn", 4, ext_factor=0.5), **plain()),
        "llama baked yarn": case("llama", "llama", base, to("yarn", 4, bake=True), **plain()),
        "llama short context kept": case(
            "llama", "llama", base, to("yarn", 4, keep_short_context=True), **plain()
        ),
        "llama llama3": case("llama", "llama", base, to("llama3", 8), **plain()),
        "llama factors": case(
            "llama",
            "llama",
            base,
            to("factors", 4, long_factors=tuple(rising(64, 6.0)), attn_factor=1.1),
            **plain(),
        ),
        "llama 3.1 under yarn": case(
            "llama",
            "llama",
            {**base, "scaling_type": "yarn", "factor": 2.0, "original_context": 4096},
            factors={"rope_freqs.weight": rising(64, 8.0)},
            **plain(),
        ),
        "phi3 longrope": case(
            "phi3",
            "phi3",
            {
                **LLAMA,
                "context_length": 131072,
                "freq_base": 10000.0,
                "dimension_count": 96,
                "original_context": 4096,
                "attn_factor": 1.19,
                "scaling_type": "longrope",
            },
            factors={
                "rope_factors_long.weight": rising(48, 48.0),
                "rope_factors_short.weight": rising(48, 2.0),
            },
            **plain(pad_token_id=0),
        ),
        "phi3 yarn": case("phi3", "phi3", base, to("yarn", 4), **plain(pad_token_id=0)),
        "phimoe yarn": case("phimoe", "phimoe", base, to("yarn", 4), **plain()),
        "qwen2 yarn": case("qwen2", "qwen2", {**base, "freq_base": 1e6}, to("yarn", 4), **plain()),
        "glm4 yarn": case(
            "glm4",
            "glm4",
            {**LLAMA, "freq_base": 10000.0, "dimension_count": 64},
            to("yarn", 4),
            **plain(),
        ),
        "stablelm linear": case(
            "stablelm",
            "stablelm",
            {**LLAMA, "freq_base": 10000.0, "dimension_count": 32},
            to("linear", 2),
            **plain(),
        ),
        "deepseek": case(
            "deepseek_v3",
            "deepseek2",
            {
                **LLAMA,
                "context_length": 163840,
                "freq_base": 10000.0,
                "key_length": 576,
                "value_length": 512,
                "kv_lora_rank": 512,
                "dimension_count": 64,
                "scaling_type": "yarn",
                "factor": 40.0,
                "original_context": 4096,
                "yarn_log_multiplier": 0.1,
            },
            **plain(qk_rope_head_dim=64, qk_nope_head_dim=128, kv_lora_rank=512, head_dim=64),
        ),
        "deepseek 4": case(
            "deepseek_v4",
            "deepseek4",
            {
                **LLAMA,
                "context_length": 1048576,
                "key_length": 512,
                "dimension_count": 64,
                "freq_base": 10000.0,
                "compress_freq_base": 160000.0,
                "compress_ratios": (0, 0, 4, 128),
                "sliding_window": 128,
                "scaling_type": "yarn",
                "factor": 16.0,
                "original_context": 65536,
            },
            **plain(head_dim=512, compress_ratios=[0, 0, 4, 128]),
        ),
        "gpt-oss": case(
            "gpt_oss",
            "gpt-oss",
            {
                **LLAMA,
                "context_length": 131072,
                "freq_base": 150000.0,
                "sliding_window": 128,
                "scaling_type": "yarn",
                "factor": 32.0,
                "original_context": 4096,
            },
            **plain(),
        ),
        "cohere2": case(
            "cohere2",
            "cohere2",
            {**LLAMA, "freq_base": 50000.0, "sliding_window": 4096},
            **plain(),
        ),
    }
    return {**made, **nested_cases(), **composite_cases()}


def nested_cases() -> dict[str, dict[str, Any]]:
    """Return models whose layer types rotate differently."""
    gemma = {
        **WIDE,
        "block_count": 12,
        "context_length": 131072,
        "freq_base": 1e6,
        "sliding_window": 1024,
    }
    text = plain(num_hidden_layers=12, head_dim=256, hidden_size=1024)
    larger = plain(num_hidden_layers=34, head_dim=256, hidden_size=1024)
    proportional = {
        **gemma,
        "key_length": 512,
        "key_length_swa": 256,
        "dimension_count": 512,
        "dimension_count_swa": 256,
        "sliding_window_pattern": (1, 1, 1, 1, 1, 0) * 2,
    }
    linear = {"scaling_type": "linear", "factor": 8.0}
    still = [1.0] * 64 + [1e30] * 192
    return {
        "gemma3 1b": case(
            "gemma3_text",
            "gemma3",
            {**gemma, "block_count": 26},
            **{**text, "num_hidden_layers": 26},
        ),
        "gemma3 4b": case(
            "gemma3", "gemma3", {**gemma, **linear, "block_count": 34}, text_config=larger
        ),
        "gemma3 4b yarn mix": case(
            "gemma3",
            "gemma3",
            {**gemma, "block_count": 34},
            to("yarn", 2, ext_factor=0.5),
            text_config=larger,
        ),
        "gemma3n": case("gemma3n", "gemma3n", {**gemma, "context_length": 32768}, text_config=text),
        "gemma4": case(
            "gemma4",
            "gemma4",
            proportional,
            factors={"rope_freqs.weight": still},
            text_config={**text, "global_head_dim": 512},
        ),
        "gemma4 linear": case(
            "gemma4",
            "gemma4",
            {**proportional, **linear},
            factors={"rope_freqs.weight": still},
            text_config={**text, "global_head_dim": 512},
        ),
        "mimo2": case(
            "mimo_v2_flash",
            "mimo2",
            {
                **LLAMA,
                "key_length": 192,
                "dimension_count": 64,
                "freq_base": 5e6,
                "freq_base_swa": 10000.0,
                "sliding_window": 128,
                "sliding_window_pattern": (0, 1, 1, 1),
            },
            **plain(
                head_dim=192,
                layer_types=["full_attention", *["sliding_attention"] * 3],
            ),
        ),
        "olmo3 yarn": case(
            "olmo3",
            "olmo2",
            {**LLAMA, "freq_base": 500000.0, "sliding_window": 4096},
            to("yarn", 8),
            **plain(),
        ),
        "laguna": case(
            "laguna",
            "laguna",
            {
                **LLAMA,
                "context_length": 131072,
                "freq_base": 500000.0,
                "freq_base_swa": 10000.0,
                "dimension_count": 64,
                "dimension_count_swa": 128,
                "sliding_window": 512,
                "scaling_type": "yarn",
                "factor": 32.0,
                "original_context": 4096,
            },
            **plain(
                layer_types=["full_attention", *["sliding_attention"] * 3],
                num_attention_heads_per_layer=[4] * 4,
            ),
        ),
        "mellum linear": case(
            "mellum",
            "mellum",
            {**LLAMA, "freq_base": 500000.0, "sliding_window": 1024},
            to("linear", 2),
            **plain(layer_types=[*["sliding_attention"] * 3, "full_attention"]),
        ),
    }


def composite_cases() -> dict[str, dict[str, Any]]:
    """Return models whose language model is one part of the config."""
    rope = {**LLAMA, "freq_base": 1e6, "dimension_sections": MROPE}
    part = {
        **WIDE,
        "freq_base": 1e7,
        "dimension_count": 64,
        "dimension_sections": (11, 11, 10, 0),
        "context_length": 262144,
        "full_attention_interval": 4,
    }
    ministral = {
        **LLAMA,
        "context_length": 262144,
        "freq_base": 1e6,
        "scaling_type": "yarn",
        "factor": 16.0,
        "original_context": 16384,
        "yarn_log_multiplier": 1.0,
        "yarn_beta_fast": 32.0,
        "yarn_beta_slow": 1.0,
    }
    wide = plain(head_dim=256, hidden_size=1024)
    return {
        "qwen2-vl linear": case(
            "qwen2_vl",
            "qwen2vl",
            {**rope, "dimension_sections": (16, 24, 24, 0)},
            to("linear", 2),
            text_config=plain(),
        ),
        "qwen3-vl yarn": case("qwen3_vl", "qwen3vl", rope, to("yarn", 4), text_config=plain()),
        "qwen3.5 yarn": case("qwen3_5", "qwen35", part, to("yarn", 4), text_config=wide),
        "hunyuan-vl": case(
            "hunyuan_vl",
            "hunyuan_vl",
            {**rope, "dimension_sections": (16, 16, 16, 16)},
            to("linear", 2),
            text_config=plain(),
        ),
        "qwen3.5 ntk": case("qwen3_5", "qwen35", part, to("ntk", 2), text_config=wide),
        "ministral 3": case(
            "mistral3",
            "mistral3",
            {**ministral, "temperature_scale": 0.1},
            text_config=plain(model_type="ministral3"),
        ),
        "llama 4": case(
            "llama4",
            "llama4",
            {**LLAMA, "freq_base": 500000.0, "sliding_window": 8192},
            to("linear", 2),
            text_config=plain(),
        ),
    }


def with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a value of which JSON has made tuples lists."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def metadata_of(case: dict[str, Any]) -> RopeMetadata:
    """Return what the model's file declares."""
    fields = with_tuples(case["fields"])
    tensors = tuple(
        FactorTensor(name=name, length=len(values), values=tuple(values))
        for name, values in case["factors"].items()
    )
    return RopeMetadata(architecture=case["architecture"], factor_tensors=tensors, **fields)


def exported(case: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the export puts into a config."""
    metadata = metadata_of(case)
    wanted = None
    if case["request"] is not None:
        request = ScalingRequest(**with_tuples(case["request"]))
        wanted = wanted_scaling(request, metadata, Path("model.gguf"))
    made = export(metadata, "huggingface", wanted=wanted)
    fields = json.loads(made.text)
    assert isinstance(fields, dict)
    return fields


def merged(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the fields of an export merged into it, as jq's `*` does."""
    made = dict(config)
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(made.get(name), dict):
            value = merged(made[name], value)
        made[name] = value
    return made


def loaded(case: dict[str, Any], fields: dict[str, Any]) -> tuple[Any, Any]:
    """Return the config of the language model as transformers loads it, and its rotary module."""
    from transformers import CONFIG_MAPPING

    given = json.loads(json.dumps(merged(case["config"], fields)))  # transformers changes it
    config = CONFIG_MAPPING[case["model"]].from_dict(given)
    text = config.get_text_config()
    name = type(text).__module__.replace("configuration_", "modeling_")
    modeling = importlib.import_module(name)
    modules = [
        getattr(modeling, word)
        for word in dir(modeling)
        if word.endswith("RotaryEmbedding") and "Vision" not in word and "Audio" not in word
    ]
    own = [module for module in modules if module.__module__ == modeling.__name__]
    assert own, name
    return text, own[0]


def computed(case: dict[str, Any], fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what transformers' own module for that model does with an export, by layer type."""
    import torch

    text, module = loaded(case, fields)
    rotary = module(config=text)
    parameters = text.rope_parameters
    kinds = [name for name in parameters if isinstance(parameters[name], dict)]
    found = {}
    for kind in kinds or [""]:
        prefix = f"{kind}_" if kind else ""
        section = parameters[kind] if kind else parameters
        layer = {"layer_type": kind} if kind else {}
        if section["rope_type"] in ("dynamic", "longrope"):
            # These choose by the length of a prompt, in the forward pass.
            length = case_tokens(case, text)
            positions = torch.tensor([[length - 1]])
            rotary(torch.zeros(1), positions, **layer)
        values = getattr(rotary, f"{prefix}inv_freq")
        magnitude = getattr(rotary, f"{prefix}attention_scaling")
        found[kind] = {
            "inverse_frequencies": [float(f"{value:.9g}") for value in values.tolist()],
            "magnitude": float(f"{float(magnitude):.9g}"),
        }
    return found


def case_tokens(case: dict[str, Any], text: Any) -> int:
    """Return the length that a case is exported for."""
    factor = (case["request"] or {}).get("factor", 1)
    return int(case["fields"]["context_length"] * factor)


def main() -> None:
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    made = {}
    for name, given in cases().items():
        case = json.loads(json.dumps(given))
        fields = exported(case)
        made[name] = {**case, "exported": fields, "results": computed(case, fields)}
    about = {"transformers": transformers.__version__, "torch": torch.__version__}
    text = json.dumps({"made_with": about, "cases": made}, separators=(",", ":"))
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
