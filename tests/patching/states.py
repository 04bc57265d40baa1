"""Files in every state of scaling, and what each scheme has to make of them, computed with numpy.

`expected` knows nothing of keys and tensors: it takes the frequencies of the file as they are, and
multiplies them by what a scheme does to plain RoPE. Only YaRN onto YaRN, and linear onto linear,
are the same scheme with a larger factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.effective import LayerGroup
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import FactorTensor, RopeMetadata

Array = NDArray[np.float64]
BASE = 10000.0
PAIRS = 16

PLAIN = RopeMetadata(
    architecture="llama",
    context_length=2048,
    block_count=6,
    embedding_length=64,
    head_count=2,
    head_count_kv=1,
    key_length=32,
    value_length=32,
    dimension_count=32,
    freq_base=BASE,
)
GROWTH = 4


def tensor(name: str, last: float) -> FactorTensor:
    values = np.geomspace(1, last, PAIRS).astype(np.float32).astype(np.float64)
    return FactorTensor(name=f"{name}.weight", length=PAIRS, values=tuple(values.tolist()))


YARN: dict[str, Any] = {"scaling_type": "yarn", "factor": 4.0, "original_context": 512}
LONG: dict[str, Any] = {
    "scaling_type": "longrope",
    "original_context": 512,
    "attn_factor": 1.19,
    "factor_tensors": (tensor("rope_factors_long", 16.0), tensor("rope_factors_short", 1.2)),
}
CHANGES: dict[str, dict[str, Any]] = {
    "unscaled": {},
    "raised base": {"freq_base": 5e6},
    "linear": {"scaling_type": "linear", "factor": 4.0},
    "linear, no type": {"factor": 4.0},
    "linear, old key": {"scale_linear": 4.0},
    "none with a factor": {"scaling_type": "none", "factor": 4.0, "attn_factor": 1.1},
    "yarn": YARN,
    "yarn, attn_factor": {**YARN, "attn_factor": 0.7},
    "yarn, no original": {"scaling_type": "yarn", "factor": 4.0},
    "rope_freqs": {"factor_tensors": (tensor("rope_freqs", 8.0),)},
    "rope_freqs, linear": {"factor": 2.0, "factor_tensors": (tensor("rope_freqs", 8.0),)},
    "longrope": LONG,
    "longrope, factor": {**LONG, "factor": 2.0},
}
WITHOUT_TENSORS = {name for name in CHANGES if not name.startswith(("rope_freqs", "longrope"))}
LOADS = {
    "llama": set(CHANGES),
    "granite": set(CHANGES),
    "mistral3": set(CHANGES),
    "phi3": {name for name in CHANGES if not name.startswith("rope_freqs")},
    "arcee": {name for name in CHANGES if not name.startswith("longrope")},
    "qwen2": WITHOUT_TENSORS,
    "gemma2": WITHOUT_TENSORS,
    "gemma3": WITHOUT_TENSORS,
    "gpt-oss": WITHOUT_TENSORS,
    "cohere2": WITHOUT_TENSORS,
    "deepseek2": WITHOUT_TENSORS,
}
LOG_MULTIPLIER = {"mistral3": 1.0, "deepseek2": 0.1}


def state(architecture: str, name: str) -> RopeMetadata:
    fields = dict(CHANGES[name])
    if architecture in LOG_MULTIPLIER and name.startswith("yarn"):
        fields["yarn_log_multiplier"] = LOG_MULTIPLIER[architecture]
    if architecture in ("gemma2", "gemma3", "cohere2", "gpt-oss"):
        fields["sliding_window"] = 32
    if architecture == "deepseek2":
        fields |= {"kv_lora_rank": 64, "key_length": 96}
    return replace(PLAIN, architecture=architecture, **fields)


STATES = [(arch, name) for arch, names in LOADS.items() for name in CHANGES if name in names]
SCHEMES: dict[str, dict[str, Any]] = {
    "none": {"scaling": "none"},
    "linear": {"scaling": "linear"},
    "ntk": {"scaling": "ntk"},
    "ntk-by-parts": {"scaling": "ntk-by-parts"},
    "dynamic-ntk": {"scaling": "dynamic-ntk"},
    "yarn": {"scaling": "yarn"},
    "llama3": {"scaling": "llama3"},
    "linear, baked": {"scaling": "linear", "bake": True},
    "ntk, baked": {"scaling": "ntk", "bake": True},
    "yarn, baked": {"scaling": "yarn", "bake": True},
    "yarn, short kept": {"scaling": "yarn", "keep_short_context": True},
    "ntk, short kept": {"scaling": "ntk", "keep_short_context": True},
    "linear, short kept": {"scaling": "linear", "keep_short_context": True},
}


def trained_tokens(file: RopeMetadata) -> int:
    """Return the trained context: for YaRN that is its factor times its original context."""
    if file.scaling_type == "yarn":
        return round((file.factor or 1) * (file.original_context or file.context_length or 0))
    return file.context_length or 0


def request(scheme: str, file: RopeMetadata, growth: int = GROWTH) -> ScalingRequest:
    return ScalingRequest(**SCHEMES[scheme], target_context=growth * trained_tokens(file))


def whole(file: RopeMetadata, tokens: int) -> LayerGroup:
    """Return the layers that a scaling is for."""
    groups = {group.name: group for group in effective(file, context_tokens=tokens).groups}
    return groups["global"]


@dataclass(frozen=True)
class Expected:
    inverse_frequencies: Array
    magnitude: float


def threshold(file: RopeMetadata) -> int:
    """Return the longest context in which short factors act, once there are some."""
    has_long = any("factors_long" in each.name for each in file.factor_tensors)
    original = file.original_context if has_long else trained_tokens(file)
    return original or file.context_length or 0


def expected(scheme: str, file: RopeMetadata, tokens: int, growth: int = GROWTH) -> Expected:
    """Return what the global layers of `file` do under `scheme` in a context of `tokens`."""
    words = SCHEMES[scheme]
    before = whole(file, tokens)
    own, magnitude = np.array(before.inverse_frequencies), before.magnitude
    if words.get("keep_short_context"):
        if tokens <= threshold(file):
            return Expected(own, magnitude)
        own = np.array(whole(file, trained_tokens(file)).inverse_frequencies)
    base = file.freq_base or BASE
    plain = base ** (-np.arange(PAIRS) / PAIRS)
    ramp = start_of_ramp(file)
    name = words["scaling"]
    if name == "yarn":
        factor = {"yarn": (file.factor or 1) * growth}.get(file.scaling_type or "", growth)
        mscale = 1 + 0.1 * math.log(factor)
        if file.scaling_type == "yarn":
            own = yarn(plain, base, factor, ramp)
            magnitude = (file.attn_factor or 1) * (1 if file.yarn_log_multiplier else mscale)
        else:
            own = own * yarn(plain, base, factor, ramp) / plain
            whole_scores = file.architecture == "deepseek2"  # has an attention scale in its place
            magnitude *= 1 if file.yarn_log_multiplier or whole_scores else mscale
    else:
        own = own * ratio(name, plain, base, growth, ramp)
    if words.get("keep_short_context"):
        magnitude = before.magnitude
    return Expected(own, magnitude)


def start_of_ramp(file: RopeMetadata) -> float:
    """Return the context in which plain RoPE turns as often as the file does while trained."""
    if file.scaling_type == "yarn":
        return file.original_context or file.context_length or 0
    factor = 1.0 if file.scaling_type == "none" else file.factor or file.scale_linear or 1.0
    return (file.context_length or 0) / factor


def yarn(plain: Array, base: float, factor: float, original: float) -> Array:
    def pair(turns: float) -> float:
        return PAIRS * math.log(original / (turns * 2 * math.pi)) / math.log(base)

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), 2 * PAIRS - 1)
    ramp = np.clip((np.arange(PAIRS) - low) / max(high - low, 0.001), 0, 1)
    return plain * (1 - ramp) + plain / factor * ramp


def ratio(scheme: str, plain: Array, base: float, growth: float, ramp: float) -> Array:
    turns = ramp * plain / (2 * math.pi)
    exponents = np.arange(PAIRS) / (PAIRS - 1)
    match scheme:
        case "none":
            return np.ones(PAIRS)
        case "linear":
            return np.full(PAIRS, 1 / growth)
        case "ntk":
            return growth**-exponents
        case "dynamic-ntk":
            return (growth * growth - (growth - 1)) ** -exponents
        case "ntk-by-parts":
            kept = np.clip((turns - 1) / 31, 0, 1)
        case "llama3":
            kept = np.clip((turns - 1) / 3, 0, 1)
        case _:
            raise ValueError(scheme)
    return kept + (1 - kept) / growth
