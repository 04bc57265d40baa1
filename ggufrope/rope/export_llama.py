"""What makes llama.cpp rotate a file as a scaling says that is not in it.

Context parameters say most schemes; overrides of metadata keys say more. Each way is compared with
what a patched file would do, and what it lacks is named.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ggufrope.container.types import ValueType
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.keys import KEYS
from ggufrope.rope.llamacpp import effective, file_base, file_scale, number
from ggufrope.rope.overrides import context_overrides
from ggufrope.rope.scaling import RopeScaling

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.rope.encode import Ignored
    from ggufrope.rope.metadata import RopeMetadata

_EQUAL = 1e-6
"""Relative; what a float32 keeps of a key."""
_NEUTRAL: Mapping[str, int | float | bool | str] = {
    "scaling_type": "linear",
    "factor": 0.0,
    "scale_linear": 0.0,
    "attn_factor": 1.0,
    "yarn_log_multiplier": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_slow": 1.0,
    "finetuned": False,
}
"""The value of a key that llama.cpp takes as it takes a file without that key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A scaling that is not in the file: what the file would declare with it written in.

    `scaling` is the scheme, over `base`. `overrides` are context parameters for what of it no file
    can say, `ignored` is what llama.cpp cannot do at all. `remedy` says what to do where a tool
    cannot take it. With `config_only` no file can say it, and `metadata` is unscaled.
    """

    metadata: RopeMetadata
    scaling: RopeScaling
    base: float
    overrides: RopeOverrides = field(default_factory=RopeOverrides)
    ignored: tuple[Ignored, ...] = ()
    remedy: str = "write it into a copy of the file"
    config_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is exported: the file as it stands, the scaling wanted, and the length to run at."""

    file: RopeMetadata
    wanted: Wanted | None
    tokens: int
    path: str

    @property
    def metadata(self) -> RopeMetadata:
        """What the exported settings mean, as metadata."""
        return self.file if self.wanted is None else self.wanted.metadata

    @property
    def overrides(self) -> RopeOverrides:
        """The context parameters that belong to it."""
        return RopeOverrides() if self.wanted is None else self.wanted.overrides

    def rotation(self) -> EffectiveRope:
        """Return what llama.cpp is to do. Raises FileError where it would not load the file."""
        return effective(self.metadata, context_tokens=self.tokens, overrides=self.overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What makes llama.cpp rotate an unchanged file as wanted: context parameters, and values of
    metadata keys by the field of RopeMetadata. `lost` says what they do not give."""

    overrides: RopeOverrides = field(default_factory=RopeOverrides)
    keys: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


def parameters(subject: Subject) -> Parameters:
    """Return the parameters for a tool that loads the file with llama.cpp."""
    file, wanted = subject.file, subject.wanted
    if wanted is None:
        keys = _raised(subject) if _short(subject) else {}
        return checked(subject, Parameters(keys=keys))
    flags = _by_flags(subject, wanted)
    tries = [None if flags is None else _slim(flags), flags, by_keys(subject, wanted)]
    if _is_tempered(file) or (flags is not None and _rounds_down(subject, flags.overrides)):
        tries.reverse()
    made = [checked(subject, found) for found in tries if found is not None]
    best = min(made, key=lambda found: len(found.lost))
    if best.lost and wanted.metadata.factor_tensors != file.factor_tensors:
        name = type(wanted.scaling).__name__
        lost = f"{name}: it needs factor tensors, which no option can give; {wanted.remedy}"
        return Parameters(keys=_raised(subject) if _short(subject) else {}, lost=(lost,))
    return best


def _short(subject: Subject) -> bool:
    """Return whether the file declares a shorter context than is wanted."""
    return (subject.file.context_length or 0) < subject.tokens


def _slim(found: Parameters) -> Parameters:
    """Return the parameters without YaRN's limits, which are often the defaults."""
    overrides = replace(found.overrides, yarn_beta_fast=None, yarn_beta_slow=None)
    return replace(found, overrides=overrides)


def _by_flags(subject: Subject, wanted: Wanted) -> Parameters | None:
    """Return the context parameters that say the scheme; None where a scheme has none."""
    file = subject.file
    own = number(file_base(file, architecture(file.architecture)))
    based = file if wanted.base == own else replace(file, freq_base=wanted.base)
    try:
        overrides, _ = context_overrides(wanted.scaling, based, context_tokens=subject.tokens)
    except RequestError:
        return None
    if overrides.freq_base is None and wanted.base != own:
        overrides = replace(overrides, freq_base=wanted.base)
    if _drops_alike(file, overrides):
        overrides = replace(overrides, scaling_type=None)
    keys = {} if _reach(subject, overrides) >= subject.tokens else _raised(subject)
    return Parameters(overrides=overrides, keys=keys)


def _drops_alike(file: RopeMetadata, overrides: RopeOverrides) -> bool:
    """Return whether type none says no more than the file does by itself."""
    unscaled = number(file_scale(file)) == 1 and file.scaling_type in (None, "none", "linear")
    return overrides.scaling_type == "none" and unscaled


def _reach(subject: Subject, overrides: RopeOverrides) -> int:
    """Return the context to which llama-server caps a slot, in tokens: the file's own, or what YaRN
    parameters adjust it to."""
    adjusted = _adjusted(subject, overrides)
    return subject.file.context_length or 0 if adjusted is None else adjusted


def _rounds_down(subject: Subject, overrides: RopeOverrides) -> bool:
    """Return whether YaRN parameters set the cap some tokens short, whatever keys say."""
    adjusted = _adjusted(subject, overrides)
    return adjusted is not None and adjusted < subject.tokens


def _adjusted(subject: Subject, overrides: RopeOverrides) -> int | None:
    """Return the context of the model after YaRN parameters with another factor than the file's,
    None without (src/llama-context.cpp 3891, in float32)."""
    if overrides.scaling_type != "yarn" or not (overrides.freq_scale and overrides.yarn_orig_ctx):
        return None
    scale = _single(overrides.freq_scale)
    if scale == _single(number(file_scale(subject.file))):
        return None
    return int(_single(overrides.yarn_orig_ctx / scale))


def _single(value: float) -> float:
    """Return a number as float32 holds it."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def _raised(subject: Subject) -> dict[str, int | float | bool | str]:
    """Return the keys that raise the context, with those kept that would follow it."""
    file = subject.file
    keys: dict[str, int | float | bool | str] = {"context_length": subject.tokens}
    if file.original_context is None and _follows_context(subject):
        original = subject.metadata.original_context or file.context_length
        if original:
            keys["original_context"] = original
    return keys


def _follows_context(subject: Subject) -> bool:
    """Return whether the original context, which is the context where unset, does anything."""
    file = subject.file
    return bool(
        file.scaling_type in ("yarn", "longrope") or file.factor_tensors or _is_tempered(file)
    )


def _is_tempered(file: RopeMetadata) -> bool:
    """Return whether an attention temperature starts at the key of the original context, which
    context parameters leave alone (src/models/mistral3.cpp 14-18)."""
    start = architecture(file.architecture).temperature
    return bool(file.temperature_scale) and start == "original-context"


def by_keys(subject: Subject, wanted: Wanted) -> Parameters | None:
    """Return the metadata keys in which a patched file would differ, as far as they can be given.

    A key to remove gets the value that means the same; None where there is none.
    """
    keys: dict[str, int | float | bool | str] = {}
    arch = architecture(subject.file.architecture)
    for name, spec in KEYS.items():
        old, new = getattr(subject.file, name), getattr(wanted.metadata, name)
        unread = name.startswith("yarn_") and name not in arch.reads
        if old == new or isinstance(new, tuple) or unread:
            continue
        value = _NEUTRAL.get(name) if new is None else new
        if new is None and name == "yarn_beta_fast":
            value = arch.beta_fast
        if new is None and name == "original_context":
            value = wanted.metadata.context_length
        if value is None:
            return None
        keys[name] = float(value) if spec.type is ValueType.FLOAT32 else value
    if (wanted.metadata.context_length or 0) < subject.tokens:
        keys["context_length"] = subject.tokens
    return Parameters(overrides=wanted.overrides, keys=keys)


def checked(subject: Subject, found: Parameters) -> Parameters:
    """Return `found` with what llama.cpp would do otherwise than wanted under `lost`."""
    wanted = subject.rotation()
    try:
        given = effective(
            replace(subject.file, **found.keys),  # type: ignore[arg-type]
            context_tokens=subject.tokens,
            overrides=found.overrides,
        )
        lost = tuple(_differences(given, wanted))
    except FileError as error:
        lost = (str(error),)
    if lost and subject.wanted is not None:
        lost = (f"{lost[0]}; {subject.wanted.remedy}", *lost[1:])
    return replace(found, lost=lost)


def _differences(given: EffectiveRope, wanted: EffectiveRope) -> list[str]:
    """Return in words how the rotation that parameters give differs from the wanted one."""
    found = []
    for target, group in zip(wanted.groups, given.groups, strict=True):
        pairs = zip(group.inverse_frequencies, target.inverse_frequencies, strict=True)
        apart = max((abs(a - b) / b for a, b in pairs if b > 0), default=0.0)
        if apart > _EQUAL:
            found.append(f"the frequencies of {target.name} layers, which would be {apart:.2%} off")
        if abs(group.magnitude / target.magnitude - 1) > _EQUAL:
            found.append(
                f"attention factor {target.magnitude:.6g} on {target.name} layers, which would "
                f"be {group.magnitude:.6g}"
            )
        # Beside the rotation: what keys do to attention scores.
        found += [
            f"{name.replace('_', ' ')} on {target.name} layers"
            for name in ("attention_scale", "temperature")
            if not _alike(getattr(group, name), getattr(target, name))
        ]
    return found


def _alike(given: object, wanted: object) -> bool:
    if isinstance(given, float) and isinstance(wanted, float):
        return abs(given - wanted) <= _EQUAL * abs(wanted)
    return given == wanted


def kv_texts(subject: Subject, keys: Mapping[str, int | float | bool | str]) -> list[str]:
    """Return metadata values as llama.cpp's --override-kv takes them."""
    return [f"{subject.file.key(name)}={_kv_text(value)}" for name, value in keys.items()]


def _kv_text(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return f"bool:{str(value).lower()}"
    if isinstance(value, str):
        return f"str:{value}"
    return f"int:{value}" if isinstance(value, int) else f"float:{value:.9g}"
