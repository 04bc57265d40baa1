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
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ggufrope.errors import RequestError
from ggufrope.rope.effective import LLAMA_FLAGS, RopeOverrides
from ggufrope.rope.export_config import Section, config_section
from ggufrope.rope.export_llama import (
    Parameters,
    Subject,
    Wanted,
    by_keys,
    checked,
    kv_texts,
    parameters,
)
from ggufrope.rope.llamacpp import effective, number
from ggufrope.rope.overrides import command_flags
from ggufrope.rope.scaling import DynamicNtk

if TYPE_CHECKING:
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

LLAMA_CPP_TOOLS = ("llama-server", "llama-cpp-python", "ollama", "lmstudio", "koboldcpp")
"""The tools that load the file with llama.cpp."""

_LLAMA_TYPES = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`text` to pass to the tool; `inexpressible` has one sentence for each thing it leaves out.

    `notes` are not about what is missing: that a file needs no flags, or where a value goes.
    """

    tool: Tool
    text: str
    inexpressible: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
) -> Export:
    """Write settings for `tool`: those of the file at `path`, or of the scaling that is `wanted`.

    `context_tokens` is the context to run at; None is the one that file or scaling declare. Raises
    RequestError where `tool` is unknown or there is no length, FileError where llama.cpp would not
    load the file.
    """
    if tool not in _WRITERS:
        raise RequestError(
            f"cannot export to {tool!r}: expected one of {', '.join(get_args(Tool))}"
        )
    declared = metadata if wanted is None else wanted.metadata
    tokens = context_tokens or declared.context_length
    if not tokens:
        raise RequestError("the file declares no context length: give `context_tokens`")
    subject = Subject(
        file=metadata,
        wanted=wanted,
        tokens=tokens,
        path=_safe_path(path),
    )
    subject.rotation()
    made = _WRITERS[tool](subject)
    if wanted is not None:
        _add_ignored(made, wanted, by_llama_cpp=tool in LLAMA_CPP_TOOLS)
    return Export(
        tool=tool, text=made.text, inexpressible=tuple(made.lost), notes=tuple(made.notes)
    )


def _add_ignored(made: _Text, wanted: Wanted, *, by_llama_cpp: bool) -> None:
    """Name what llama.cpp does not do of a scheme. transformers does some of it."""
    for item in wanted.ignored:
        if item.parameter in LLAMA_FLAGS:
            continue
        sentence = f"{item.parameter} {item.value:g}: {item.reason}"
        if isinstance(wanted.scaling, DynamicNtk):
            if by_llama_cpp:
                made.notes.append(sentence)
        elif by_llama_cpp or item.parameter != "truncate":
            made.lost.append(sentence)


def _safe_path(path: str | PurePath) -> str:
    """Return a path that no command takes for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _standing(subject: Subject, found: Parameters, tool: str) -> list[str]:
    """Return the note that the file needs no settings, where it needs none."""
    if subject.wanted is not None or found.keys:
        return []
    return [f"no flags needed: the file says it all, and {tool} reads it there"]


def _llama_server(subject: Subject) -> _Text:
    found = parameters(subject)
    words = ["llama-server", "-m", subject.path, "-c", str(subject.tokens)]
    words += command_flags(found.overrides)
    if found.keys:
        words += ["--override-kv", ",".join(kv_texts(subject, found.keys))]
    notes = _standing(subject, found, "llama-server")
    return _Text(shlex.join(words), list(found.lost), notes)


def _llama_cpp_python(subject: Subject) -> _Text:
    found = parameters(subject)
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


def _ollama(subject: Subject) -> _Text:
    # A Modelfile takes the rest of the line after FROM: no shell reads it.
    path = PurePath(subject.path)
    start = subject.path if path.is_absolute() else f"./{path}"
    made = _Text(f"FROM {start}\nPARAMETER num_ctx {subject.tokens}")
    return _only_from_file(subject, made, "Ollama", "a Modelfile")


def _lmstudio(subject: Subject) -> _Text:
    name = PurePath(subject.path).stem
    lines = (
        shlex.join(("lms", "import", "--symbolic-link", subject.path)),
        shlex.join(("lms", "load", name, "--context-length", str(subject.tokens))),
    )
    made = _only_from_file(subject, _Text("\n".join(lines)), "LM Studio", "lms load")
    made.notes.append("`lms ls` shows the name under which LM Studio imported the model")
    base = parameters(subject).overrides.freq_base
    if subject.wanted is not None and base:
        made.notes.append(
            f"LM Studio's load settings have RoPE Frequency Base: set it to {base:.9g}"
        )
    return made


def _only_from_file(subject: Subject, made: _Text, tool: str, where: str) -> _Text:
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


def _koboldcpp(subject: Subject) -> _Text:
    found = parameters(subject)
    words = ["koboldcpp", "--model", subject.path, "--contextsize", str(subject.tokens)]
    overrides, wanted = found.overrides, subject.wanted
    if wanted is not None and overrides.scaling_type in ("yarn", "longrope"):
        # KoboldCpp has --ropeconfig for a scale and a base, keys for others, and no YaRN flags.
        written = by_keys(subject, wanted)
        if written is not None:
            found = checked(subject, Parameters(keys=written.keys))
    elif wanted is not None and overrides != RopeOverrides():
        base = overrides.freq_base or number(effective(subject.file).values["freq_base"])
        words += ["--ropeconfig", f"{overrides.freq_scale or 1.0:.9g}", f"{base:.9g}"]
    if found.keys:
        words += ["--overridekv", ",".join(kv_texts(subject, found.keys))]
    return _Text(shlex.join(words), list(found.lost), _standing(subject, found, "KoboldCpp"))


def _section(subject: Subject) -> Section:
    """Return the settings as a section of a Hugging Face config."""
    wanted = subject.wanted
    return config_section(
        subject.metadata,
        context_tokens=subject.tokens,
        scaling=None if wanted is None else wanted.scaling,
        base=None if wanted is None else wanted.base,
        trusted=wanted is not None and wanted.config_only,
        overrides=subject.overrides,
    )


def _huggingface(subject: Subject) -> _Text:
    section = _section(subject)
    text = json.dumps(section.config(), indent=2)
    return _Text(text, list(section.lost), [*section.notes, "merge this into config.json"])


def _vllm(subject: Subject) -> _Text:
    section = _section(subject)
    words = ["vllm", "serve", subject.path, "--max-model-len", str(subject.tokens)]
    words += ["--hf-overrides", _compact(section.config(engine=True))]
    made = _Text(shlex.join(words), list(section.lost), list(section.notes))
    made.notes.append(_ORIGINAL_MODEL)
    if section.scaled:
        made.notes.append("vLLM scales at every length: short prompts are scaled too")
    return made


def _sglang(subject: Subject) -> _Text:
    section = _section(subject)
    words = ["python", "-m", "sglang.launch_server", "--model-path", subject.path]
    words += ["--context-length", str(subject.tokens)]
    words += ["--json-model-override-args", _compact(section.config(engine=True))]
    # Without it SGLang refuses a context above what the config of the model declares.
    text = f"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 {shlex.join(words)}"
    return _Text(text, list(section.lost), [*section.notes, _ORIGINAL_MODEL])


_ORIGINAL_MODEL = "for the original model, give its folder or repository in place of the GGUF file"


def _axolotl(subject: Subject) -> _Text:
    section = _section(subject)
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


_WRITERS: dict[str, Callable[[Subject], _Text]] = {
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
