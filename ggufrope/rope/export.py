"""The settings of a model for other tools, and what each tool cannot express.

Tools that load the GGUF file read its settings from it: for them a file that has the scaling needs
no flags. A scaling that is not in the file is written as context parameters, or as overrides of
metadata keys where those say more, and either way compared with what a patched file would do.
Tools that load the original model take a section of its config.json, which `config_section` makes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ggufrope.container.types import ValueType
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.export_config import Section, config_section
from ggufrope.rope.keys import KEYS
from ggufrope.rope.llamacpp import effective, file_base, file_scale, number
from ggufrope.rope.overrides import command_flags, context_overrides
from ggufrope.rope.scaling import RopeScaling

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.rope.metadata import RopeMetadata

Tool: TypeAlias = Literal[
    "llama-server",
    "llama-cpp-python",
    "huggingface",
    "vllm",
    "sglang",
    "ollama",
    "lmstudio",
    "koboldcpp",
    "axolotl",
]

_LLAMA_TYPES = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
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
class Export:
    """`text` to pass to the tool; `inexpressible` has one sentence for each thing it leaves out.

    `notes` are not about what is missing: that a file needs no flags, or where a value goes.
    """

    tool: Tool
    text: str
    inexpressible: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A scaling that is not in the file: what the file would declare with it written in.

    `scaling` is the scheme, over `base`. `overrides` are context parameters for what of it no file
    can say. `remedy` says what to do where a tool cannot take it.
    """

    metadata: RopeMetadata
    scaling: RopeScaling
    base: float
    overrides: RopeOverrides = field(default_factory=RopeOverrides)
    remedy: str = "write it into a copy of the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is exported: the file as it stands, the scaling wanted, and the length to run at."""

    file: RopeMetadata
    wanted: Wanted | None
    tokens: int
    path: str
    temperature_scale: float | None = None

    @property
    def metadata(self) -> RopeMetadata:
        """What the exported settings mean, as metadata."""
        return self.file if self.wanted is None else self.wanted.metadata

    @property
    def overrides(self) -> RopeOverrides:
        """The context parameters that belong to it."""
        return RopeOverrides() if self.wanted is None else self.wanted.overrides

    def section(self) -> Section:
        """Return the settings as a section of a Hugging Face config."""
        scaling = None if self.wanted is None else self.wanted.scaling
        base = None if self.wanted is None else self.wanted.base
        return config_section(
            self.metadata,
            context_tokens=self.tokens,
            scaling=scaling,
            base=base,
            overrides=self.overrides,
            temperature_scale=self.temperature_scale,
        )


@dataclass(slots=True)
class _Text:
    """An export in the making."""

    text: str
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export(
    metadata: RopeMetadata,
    tool: Tool,
    *,
    path: str | PurePath = "model.gguf",
    context_tokens: int | None = None,
    wanted: Wanted | None = None,
    temperature_scale: float | None = None,
) -> Export:
    """Write settings for `tool`: those of the file at `path`, or of the scaling that is `wanted`.

    `context_tokens` is the context to run at; None is the one that file or scaling declare.
    `temperature_scale` is the file's `attention.temperature_scale`, which Hugging Face configs keep
    beside RoPE. Raises RequestError where `tool` is unknown or there is no length, FileError where
    llama.cpp would not load the file.
    """
    if tool not in _WRITERS:
        raise RequestError(
            f"cannot export to {tool!r}: expected one of {', '.join(get_args(Tool))}"
        )
    declared = metadata if wanted is None else wanted.metadata
    tokens = context_tokens or declared.context_length
    if not tokens:
        raise RequestError("the file declares no context length: give `context_tokens`")
    subject = _Subject(
        file=metadata,
        wanted=wanted,
        tokens=tokens,
        path=_safe_path(path),
        temperature_scale=temperature_scale,
    )
    made = _WRITERS[tool](subject)
    return Export(
        tool=tool, text=made.text, inexpressible=tuple(made.lost), notes=tuple(made.notes)
    )


def _safe_path(path: str | PurePath) -> str:
    """Return a path that no command takes for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    """What makes llama.cpp rotate an unchanged file as wanted: context parameters, and values of
    metadata keys by the field of RopeMetadata. `lost` says what they do not give."""

    overrides: RopeOverrides = field(default_factory=RopeOverrides)
    keys: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


def _parameters(subject: _Subject) -> _Parameters:
    """Return the parameters for a tool that loads the file with llama.cpp."""
    file, wanted = subject.file, subject.wanted
    if wanted is None:
        keys = _raised(subject) if _short(subject) else {}
        return _checked(subject, _Parameters(keys=keys))
    flags = _by_flags(subject, wanted)
    tries = [None if flags is None else _slim(flags), flags, _by_keys(subject, wanted)]
    if file.architecture == "mistral3" and subject.temperature_scale:
        tries.reverse()  # the temperature starts at the key original_context_length (mistral3.cpp)
    made = [_checked(subject, found) for found in tries if found is not None]
    best = min(made, key=lambda found: len(found.lost))
    if best.lost and wanted.metadata.factor_tensors != file.factor_tensors:
        name = type(wanted.scaling).__name__
        lost = f"{name}: it needs factor tensors, which no option can give; {wanted.remedy}"
        return _Parameters(keys=_raised(subject) if _short(subject) else {}, lost=(lost,))
    return best


def _short(subject: _Subject) -> bool:
    """Return whether the file declares a shorter context than is wanted."""
    return (subject.file.context_length or 0) < subject.tokens


def _slim(found: _Parameters) -> _Parameters:
    """Return the parameters without YaRN's limits, which are often the defaults."""
    overrides = replace(found.overrides, yarn_beta_fast=None, yarn_beta_slow=None)
    return replace(found, overrides=overrides)


def _by_flags(subject: _Subject, wanted: Wanted) -> _Parameters | None:
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
    return _Parameters(overrides=overrides, keys=keys)


def _drops_alike(file: RopeMetadata, overrides: RopeOverrides) -> bool:
    """Return whether type none says no more than the file does by itself."""
    unscaled = number(file_scale(file)) == 1 and file.scaling_type in (None, "none", "linear")
    return overrides.scaling_type == "none" and unscaled


def _reach(subject: _Subject, overrides: RopeOverrides) -> int:
    """Return the context to which llama-server caps a slot, in tokens.

    That is the file's own, which only another YaRN factor than the file's raises
    (src/llama-context.cpp 3891).
    """
    file = subject.file
    own = file.context_length or 0
    if overrides.scaling_type != "yarn" or not (overrides.freq_scale and overrides.yarn_orig_ctx):
        return own
    scale = _single(overrides.freq_scale)
    if scale == _single(number(file_scale(file))):
        return own
    return int(_single(overrides.yarn_orig_ctx / scale))


def _single(value: float) -> float:
    """Return a number as float32 holds it."""
    import struct

    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def _raised(subject: _Subject) -> dict[str, int | float | bool | str]:
    """Return the keys that raise the context, with those kept that would follow it."""
    file = subject.file
    keys: dict[str, int | float | bool | str] = {"context_length": subject.tokens}
    if file.original_context is None and _follows_context(subject):
        original = subject.metadata.original_context or file.context_length
        if original:
            keys["original_context"] = original
    return keys


def _follows_context(subject: _Subject) -> bool:
    """Return whether the original context, which is the context where unset, does anything."""
    file = subject.file
    return bool(
        file.scaling_type in ("yarn", "longrope")
        or file.factor_tensors
        or subject.temperature_scale
    )


def _by_keys(subject: _Subject, wanted: Wanted) -> _Parameters | None:
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
    return _Parameters(overrides=wanted.overrides, keys=keys)


def _checked(subject: _Subject, found: _Parameters) -> _Parameters:
    """Return `found` with what llama.cpp would do otherwise than wanted under `lost`."""
    try:
        given = effective(
            replace(subject.file, **found.keys),  # type: ignore[arg-type]
            context_tokens=subject.tokens,
            overrides=found.overrides,
        )
        target = effective(
            subject.metadata, context_tokens=subject.tokens, overrides=subject.overrides
        )
        lost = tuple(_differences(given, target))
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
    return found


def _kv_texts(subject: _Subject, keys: Mapping[str, int | float | bool | str]) -> list[str]:
    """Return metadata values as llama.cpp's --override-kv takes them."""
    return [f"{subject.file.key(name)}={_kv_text(value)}" for name, value in keys.items()]


def _kv_text(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return f"bool:{str(value).lower()}"
    if isinstance(value, str):
        return f"str:{value}"
    return f"int:{value}" if isinstance(value, int) else f"float:{value:.9g}"


def _standing(subject: _Subject, found: _Parameters, tool: str) -> list[str]:
    """Return the note that the file needs no settings, where it needs none."""
    if subject.wanted is not None or found.keys:
        return []
    return [f"no flags needed: the file says it all, and {tool} reads it there"]


def _llama_server(subject: _Subject) -> _Text:
    found = _parameters(subject)
    words = ["llama-server", "-m", subject.path, "-c", str(subject.tokens)]
    words += command_flags(found.overrides)
    if found.keys:
        words += ["--override-kv", ",".join(_kv_texts(subject, found.keys))]
    notes = _standing(subject, found, "llama-server")
    return _Text(shlex.join(words), list(found.lost), notes)


def _llama_cpp_python(subject: _Subject) -> _Text:
    found = _parameters(subject)
    overrides = found.overrides
    arguments: dict[str, Any] = {"model_path": subject.path, "n_ctx": subject.tokens}
    if overrides.scaling_type is not None:
        arguments["rope_scaling_type"] = _LLAMA_TYPES[overrides.scaling_type]
    renamed = {"freq_base": "rope_freq_base", "freq_scale": "rope_freq_scale"}
    for name in ("freq_base", "freq_scale", "yarn_ext_factor", "yarn_orig_ctx"):
        if getattr(overrides, name) is not None:
            arguments[renamed.get(name, name)] = getattr(overrides, name)
    # Llama() sends these even when not given, which masks what the file says.
    for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
        given = getattr(overrides, name)
        arguments[name] = -1.0 if given is None else given
    if found.keys:
        arguments["kv_overrides"] = {
            subject.file.key(name): value for name, value in found.keys.items()
        }
    inner = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    notes = _standing(subject, found, "llama.cpp")
    notes.append("-1 leaves to the file what Llama() would set by itself")
    return _Text(f"Llama({inner})", list(found.lost), notes)


def _ollama(subject: _Subject) -> _Text:
    # A Modelfile takes the rest of the line after FROM: no shell reads it.
    path = PurePath(subject.path)
    start = subject.path if path.is_absolute() else f"./{path}"
    made = _Text(f"FROM {start}\nPARAMETER num_ctx {subject.tokens}")
    return _only_from_file(subject, made, "Ollama", "a Modelfile")


def _lmstudio(subject: _Subject) -> _Text:
    name = PurePath(subject.path).stem
    lines = (
        shlex.join(("lms", "import", "--symbolic-link", subject.path)),
        shlex.join(("lms", "load", name, "--context-length", str(subject.tokens))),
    )
    made = _only_from_file(subject, _Text("\n".join(lines)), "LM Studio", "lms load")
    made.notes.append("`lms ls` shows the name under which LM Studio imported the model")
    overrides = _parameters(subject).overrides
    if overrides.scaling_type == "linear" and overrides.freq_scale:
        made.notes.append(
            f"LM Studio's load settings have it: RoPE Frequency Scale {overrides.freq_scale:.9g}"
        )
    if subject.wanted is not None and overrides.freq_base:
        made.notes.append(
            f"LM Studio's load settings have it: RoPE Frequency Base {overrides.freq_base:.9g}"
        )
    return made


def _only_from_file(subject: _Subject, made: _Text, tool: str, where: str) -> _Text:
    """Add what a tool that takes a context length alone does with the scaling."""
    if subject.wanted is None:
        made.notes.append(
            f"no flags needed: {tool} reads the settings from the file, and they take effect"
        )
        if subject.tokens > (subject.file.context_length or 0):
            made.lost.append(
                f"{subject.tokens} tokens: {tool} caps the context at the file's own "
                f"{subject.file.context_length}"
            )
        return made
    name = type(subject.wanted.scaling).__name__
    made.lost.append(f"{name}: {where} has no RoPE parameters; {subject.wanted.remedy}")
    return made


def _koboldcpp(subject: _Subject) -> _Text:
    found = _parameters(subject)
    words = ["koboldcpp", "--model", subject.path, "--contextsize", str(subject.tokens)]
    overrides, lost = found.overrides, list(found.lost)
    keys: dict[str, int | float | bool | str] = dict(found.keys)
    if subject.wanted is not None:
        simple = overrides.scaling_type in (None, "none", "linear") and (
            overrides != RopeOverrides()
        )
        base = overrides.freq_base or number(effective(subject.file).values["freq_base"])
        if simple:
            words += ["--ropeconfig", f"{overrides.freq_scale or 1.0:.9g}", f"{base:.9g}"]
        elif (by_keys := _by_keys(subject, subject.wanted)) is not None:
            by_keys = _checked(subject, by_keys)
            keys, lost = dict(by_keys.keys), list(by_keys.lost)
    if keys:
        words += ["--overridekv", ",".join(_kv_texts(subject, keys))]
    return _Text(shlex.join(words), lost, _standing(subject, found, "KoboldCpp"))


def _huggingface(subject: _Subject) -> _Text:
    section = subject.section()
    text = json.dumps(section.config(), indent=2)
    return _Text(text, list(section.lost), [*section.notes, "merge this into config.json"])


def _vllm(subject: _Subject) -> _Text:
    section = subject.section()
    words = ["vllm", "serve", subject.path, "--max-model-len", str(subject.tokens)]
    words += ["--hf-overrides", _compact(section.config(engine=True))]
    made = _Text(shlex.join(words), list(section.lost), list(section.notes))
    made.notes.append(_ORIGINAL_MODEL)
    if section.scaled:
        made.notes.append("vLLM scales at every length: short prompts are scaled too")
    return made


def _sglang(subject: _Subject) -> _Text:
    section = subject.section()
    words = ["python", "-m", "sglang.launch_server", "--model-path", subject.path]
    words += ["--context-length", str(subject.tokens)]
    words += ["--json-model-override-args", _compact(section.config(engine=True))]
    # Without it SGLang refuses a context above what the config of the model declares.
    text = f"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 {shlex.join(words)}"
    return _Text(text, list(section.lost), [*section.notes, _ORIGINAL_MODEL])


_ORIGINAL_MODEL = "for the original model, give its folder or repository in place of the GGUF file"


def _axolotl(subject: _Subject) -> _Text:
    section = subject.section()
    lines = [f"sequence_len: {subject.tokens}", "overrides_of_model_config:"]
    lines += _yaml(section.config(), depth=1)
    return _Text("\n".join(lines), list(section.lost), list(section.notes))


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _yaml(values: Mapping[str, Any], *, depth: int) -> list[str]:
    """Return a mapping as lines of YAML; lists and words as JSON, which is YAML too."""
    lines = []
    for name, value in values.items():
        start = f"{'  ' * depth}{name}:"
        if isinstance(value, Mapping):
            lines += [start, *_yaml(value, depth=depth + 1)]
        else:
            lines.append(f"{start} {json.dumps(value)}")
    return lines


_WRITERS: dict[str, Callable[[_Subject], _Text]] = {
    "llama-server": _llama_server,
    "llama-cpp-python": _llama_cpp_python,
    "huggingface": _huggingface,
    "vllm": _vllm,
    "sglang": _sglang,
    "ollama": _ollama,
    "lmstudio": _lmstudio,
    "koboldcpp": _koboldcpp,
    "axolotl": _axolotl,
}
