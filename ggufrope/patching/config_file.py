"""A config.json beside a model file: reading it, whether it is of the same model, and its bases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope._files import read_json
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.huggingface import ConfigRope, from_config
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.scaling import Unscaled

if TYPE_CHECKING:
    from ggufrope.rope.metadata import RopeMetadata

MAX_CONFIG_BYTES = 16 << 20
"""The largest config.json that is read; published ones have some KiB."""


def read_config(path: Path) -> ConfigRope:
    """Read a config.json or params.json. Raises RequestError where it is none, or cannot be read in
    full, StorageError where the file cannot be read."""
    return from_config(read_json(path, most=MAX_CONFIG_BYTES))


def check_model(config: ConfigRope, metadata: RopeMetadata) -> None:
    """Refuse a config of another model, by the sizes that both name.

    Latent attention has no one head size in a file: its parts are compared.
    """
    latent = config.kv_lora_rank is not None
    divisor = architecture(metadata.architecture).global_rot_divisor
    turning = None if metadata.n_rot is None else metadata.n_rot // divisor
    sizes = (
        ("head size", "head_size", config.head_size, None if latent else metadata.head_size),
        ("rank of latent keys", "kv_lora_rank", config.kv_lora_rank, metadata.kv_lora_rank),
        ("rotary dimensions", "n_rot", config.n_rot or None, turning),
    )
    for what, name, theirs, ours in sizes:
        if None not in (theirs, ours) and theirs != ours and name not in config.assumed:
            raise RequestError(
                f"the config is of another model: {what} {theirs}, the file has {ours}"
            )
    _check_rotation(config, metadata)
    base: float | None = metadata.compress_freq_base
    if base and config.compress_base and abs(config.compress_base / base - 1) > 1e-6:
        raise RequestError(
            f"the config has compress_rope_theta {config.compress_base:g}, the file has {base:g}: "
            "convert the model again"
        )


def _check_rotation(config: ConfigRope, metadata: RopeMetadata) -> None:
    if config.rotates is None:
        return
    try:
        turns = any(group.n_rot for group in effective(metadata).groups)
    except FileError:  # a finding of its own
        return
    if turns != config.rotates:
        theirs, ours = ("", "no layer does") if config.rotates else ("do not ", "layers do")
        raise RequestError(
            f"the config is of another model: its layers {theirs}rotate, and in the file {ours}"
        )


def not_carried(config: ConfigRope, metadata: RopeMetadata) -> str | None:
    """Return what a patch leaves out of a config, None where it writes all that the file lacks."""
    kept = metadata.dimension_sections
    own = tuple(kept[: len(config.sections)]) if isinstance(kept, tuple) else ()
    if config.sections == own:
        return None
    listed = ", ".join(map(str, config.sections))
    return (
        f"not carried over: mrope_section [{listed}]. Text rotates alike without it; for images, "
        "convert the model again"
    )


def scales_windows(config: ConfigRope, metadata: RopeMetadata) -> bool:
    """Return whether llama.cpp scales the sliding-window layers of a file with `metadata`, which
    the config leaves unscaled."""
    window = architecture(metadata.architecture).sliding
    if config.sliding is None or window is None or window.scale == "1":
        return False
    both = (config.scaling, config.sliding.scaling)
    slides = any(group.name == "sliding-window" for group in effective(metadata).groups)
    return slides and not isinstance(both[0], Unscaled) and isinstance(both[1], Unscaled)


def config_base(config: ConfigRope, metadata: RopeMetadata) -> float | None:
    """Return the base to write: the config's own, or its class's where the file has none."""
    if config.base is None or ("base" in config.assumed and metadata.freq_base is not None):
        return None
    if config.alpha is None or metadata.alpha is None or config.n_rot is None:
        return config.base
    if abs(metadata.alpha / config.alpha - 1) > 1e-6:
        raise RequestError(
            f"the config has alpha {config.alpha:g}, {metadata.key('alpha')} is "
            f"{metadata.alpha:g}: convert the model again"
        )
    # llama.cpp stretches the base of such a file itself
    return float(config.base / config.alpha ** (config.n_rot / (config.n_rot - 2)))


def sliding_base(config: ConfigRope, metadata: RopeMetadata, base: float | None) -> float | None:
    """Return the base to write for sliding-window layers, None where theirs is that of the config
    already, or no key says it. `base` is that of the others."""
    window, rope = architecture(metadata.architecture).sliding, config.sliding
    if window is None or not window.reads_base or rope is None or rope.base is None:
        return None
    usual = 10000.0 if window.base == "10000" else base or metadata.freq_base
    own = usual if metadata.freq_base_swa is None else metadata.freq_base_swa
    same = own is not None and abs(rope.base / own - 1) <= 1e-6
    return None if same or "base" in rope.assumed else rope.base
