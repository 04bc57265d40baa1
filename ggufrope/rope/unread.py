"""Keys of a file that llama.cpp does not read, and what to do about each.

Two kinds: keys of llama.cpp that it reads for other architectures alone, such as `yarn_beta_fast`,
and names that no llama.cpp knows, such as Ollama's `rope.global.freq_base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from ggufrope.rope.effective import LLAMA_FLAGS, YARN_PARAMETERS
from ggufrope.rope.frequencies import yarn_mscale
from ggufrope.rope.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggufrope.rope.architectures import Architecture
    from ggufrope.rope.metadata import RopeMetadata

_ROUNDED = 1e-3
"""Attention factors nearer than this, relatively, are the same number written by hand."""

_WORDS = {
    "local": "swa",
    "sliding": "swa",
    "window": "swa",
    "theta": "base",
    "max": "length",
    "scale": "factor",
    "partial": "dimension",
    "mscale": "multiplier",
}
"""Words in which other programs say what llama.cpp's names say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadKey:
    """A key that llama.cpp reads for other architectures alone.

    `harmless` is whether leaving it changes nothing: llama.cpp assumes its value anyway. `remedy`
    is an imperative sentence without a period.
    """

    field: str
    value: float
    harmless: bool
    remedy: str


def near_keys(key: str, architecture: str) -> tuple[str, ...]:
    """Return the keys of llama.cpp that `key` may stand for, the nearest first; at most two."""
    prefix = f"{architecture}."
    suffix = key.removeprefix(prefix)
    if suffix == key and "rope" in key:
        suffix = key[key.index("rope") :]
    rope = [spec.suffix for spec in KEYS.values() if "rope" in spec.suffix]
    ranked = sorted(rope, key=lambda known: _likeness(suffix, known), reverse=True)
    best = _likeness(suffix, ranked[0])
    return tuple(prefix + known for known in ranked[:2] if _likeness(suffix, known) > 0.8 * best)


def dead_keys(metadata: RopeMetadata, arch: Architecture) -> Iterator[DeadKey]:
    """Yield each YaRN parameter of the file that llama.cpp does not read for `arch`."""
    for field in YARN_PARAMETERS:
        value = getattr(metadata, field)
        if value is None or field in arch.reads:
            continue
        yield DeadKey(
            field=field,
            value=value,
            harmless=_assumed(metadata, arch, field, value),
            remedy=dead_key_remedy(metadata, arch, field, value),
        )


def dead_key_remedy(metadata: RopeMetadata, arch: Architecture, field: str, value: float) -> str:
    """Return what to do about a YaRN parameter that is not read: an option, a key, or nothing."""
    if _assumed(metadata, arch, field, value):
        return "it is what llama.cpp assumes anyway" + _meant(metadata, field, value)
    if metadata.scaling_type != "yarn":
        return "remove it: only YaRN uses it"
    if field == "yarn_ext_factor" and not 0 <= value <= 1:
        return "remove it: it is a weight from 0 to 1, and 1 is assumed"
    if field == "yarn_attn_factor":
        return _attn_factor_remedy(metadata, value)
    bake = ", or bake the scaling into factors" if arch.loads_factors else ""
    return f"pass llama.cpp's {LLAMA_FLAGS[field]} {value:g} at run time{bake}"


def _attn_factor_remedy(metadata: RopeMetadata, value: float) -> str:
    """YaRN overwrites the flag of this name: `attn_factor` is what acts (llama-context.cpp 180)."""
    return (
        f"set {metadata.key('attn_factor')} to {value / _applied(metadata):.6g} if the attention "
        f"factor is to be {value:g}, or remove it"
    )


def _meant(metadata: RopeMetadata, field: str, value: float) -> str:
    """Say what a converter means by an attention factor of 1 beside YaRN, which applies its own
    (conversion/base.py 1477 writes attention_factor of config.json into this key)."""
    applied = _applied(metadata)
    if field != "yarn_attn_factor" or metadata.scaling_type != "yarn":
        return ""
    if abs(value - applied) <= _ROUNDED * applied:
        return ""
    return (
        f"; if config.json has attention_factor {value:g}, set {metadata.key('attn_factor')} to "
        f"{value / applied:.6g}"
    )


def _applied(metadata: RopeMetadata) -> float:
    """Return the attention factor that llama.cpp applies for YaRN by itself."""
    return yarn_mscale(metadata.factor or metadata.scale_linear or 1.0)


def _assumed(metadata: RopeMetadata, arch: Architecture, field: str, value: float) -> bool:
    """Return whether `value` is what llama.cpp takes where it does not read the key."""
    if field == "yarn_beta_fast":
        return value == arch.beta_fast
    if field == "yarn_ext_factor":
        return value < 0 or value == (1.0 if metadata.scaling_type == "yarn" else 0.0)
    if field == "yarn_attn_factor" and metadata.scaling_type == "yarn":
        return value == 1.0 or abs(value / _applied(metadata) - 1) <= _ROUNDED
    return value == 1.0


def _likeness(found: str, known: str) -> float:
    words, wanted = _parts(found), _parts(known)
    shared = len(words & wanted) / max(len(words | wanted), 1)
    return shared + SequenceMatcher(None, found, known).ratio()


def _parts(name: str) -> set[str]:
    split = name.lower().replace(".", "_").split("_")
    return {_WORDS.get(word, word) for word in split if word}
