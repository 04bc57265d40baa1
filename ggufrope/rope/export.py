"""The settings of a file for other tools, and what each tool cannot express."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ggufrope.errors import RequestError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.encode import SCALING_FIELDS
from ggufrope.rope.huggingface import to_config
from ggufrope.rope.overrides import Recognized, command_flags, context_overrides, recognize
from ggufrope.rope.scaling import Linear, Unscaled, Yarn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.rope.metadata import RopeMetadata

Tool: TypeAlias = Literal[
    "llama-server", "llama-cpp-python", "huggingface", "vllm", "ollama", "koboldcpp", "axolotl"
]

_LLAMA_TYPES = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`text` to pass to the tool; `inexpressible` has one sentence for each thing it leaves out."""

    tool: Tool
    text: str
    inexpressible: tuple[str, ...] = ()


def export(metadata: RopeMetadata, tool: Tool, *, context_tokens: int | None = None) -> Export:
    """Write the file's settings for `tool`, with a context of `context_tokens` (None: the file's).

    The llama.cpp tools read the file's settings by themselves; for them the text gives the same
    rotation to a file that lacks the settings. Raises RequestError where no one scheme describes
    the settings, or `tool` is unknown.
    """
    if tool not in _WRITERS:
        raise RequestError(
            f"cannot export to {tool!r}: expected one of {', '.join(get_args(Tool))}"
        )
    tokens = context_tokens or metadata.context_length
    if not tokens:
        raise RequestError("the file declares no context length: set context_tokens")
    text, inexpressible = _WRITERS[tool](recognize(metadata), metadata, tokens)
    return Export(tool=tool, text=text, inexpressible=tuple(inexpressible))


_Written: TypeAlias = "tuple[str, list[str]]"


def _run_time(found: Recognized, metadata: RopeMetadata) -> tuple[RopeOverrides, list[str]]:
    """Context parameters for a file of the model without any of the settings."""
    unset = dict.fromkeys(SCALING_FIELDS)
    bare = replace(metadata, factor_tensors=(), freq_base=found.base, **unset)  # type: ignore[arg-type]
    try:
        overrides, ignored = context_overrides(found.scaling, bare)
    except RequestError as error:
        return RopeOverrides(), [f"{error}; a patched file needs no flags"]
    lost = [f"{i.parameter} {i.value:.6g}: {i.reason}; {i.instead}" for i in ignored]
    return replace(overrides, freq_base=found.base), lost


def _llama_server(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    overrides, lost = _run_time(found, metadata)
    flags = " ".join(("--ctx-size", str(tokens), *command_flags(overrides)))
    return f"llama-server --model MODEL.gguf {flags}", lost


def _llama_cpp_python(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    overrides, lost = _run_time(found, metadata)
    arguments: dict[str, Any] = {"model_path": "MODEL.gguf", "n_ctx": tokens}
    if overrides.scaling_type is not None:
        arguments["rope_scaling_type"] = _LLAMA_TYPES[overrides.scaling_type]
    renamed = {"freq_base": "rope_freq_base", "freq_scale": "rope_freq_scale"}
    for name in ("freq_base", "freq_scale", "yarn_ext_factor", "yarn_orig_ctx"):
        if getattr(overrides, name) is not None:
            arguments[renamed.get(name, name)] = getattr(overrides, name)
    # Llama() sends these even when not given, which masks what the file says.
    for name, unset in (
        ("yarn_attn_factor", -1.0),
        ("yarn_beta_fast", -1.0),
        ("yarn_beta_slow", -1.0),
    ):
        given = getattr(overrides, name)
        arguments[name] = unset if given is None else given
    inner = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"Llama({inner})", lost


def _huggingface(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    parameters, lost = _parameters(found)
    if parameters is None:
        return "{}", lost
    fields = {"max_position_embeddings": tokens, "rope_parameters": parameters}
    return json.dumps(fields, indent=2), lost


def _vllm(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    parameters, lost = _parameters(found)
    if parameters is None:
        return f"vllm serve MODEL --max-model-len {tokens}", lost
    given = json.dumps({"rope_parameters": parameters}, separators=(",", ":"))
    if isinstance(found.scaling, Yarn):
        lost.append("vLLM applies YaRN at every length: short prompts are scaled too")
    return f"vllm serve MODEL --max-model-len {tokens} --hf-overrides '{given}'", lost


def _ollama(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    lost = []
    if not isinstance(found.scaling, Unscaled):
        name = type(found.scaling).__name__
        lost.append(f"{name}: a Modelfile has no RoPE parameters; Ollama reads the file's own")
    return f"FROM ./MODEL.gguf\nPARAMETER num_ctx {tokens}", lost


def _koboldcpp(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    command = f"koboldcpp --model MODEL.gguf --contextsize {tokens}"
    match found.scaling:
        case Unscaled():
            return f"{command} --ropeconfig 1.0 {found.base:.9g}", []
        case Linear(factor=factor):
            return f"{command} --ropeconfig {1 / factor:.9g} {found.base:.9g}", []
    name = type(found.scaling).__name__
    lost = f"{name}: --ropeconfig takes only a scale and a base; KoboldCpp reads the file's own"
    return command, [lost]


def _axolotl(found: Recognized, metadata: RopeMetadata, tokens: int) -> _Written:
    parameters, lost = _parameters(found)
    lines = [f"sequence_len: {tokens}"]
    if parameters is not None:
        base = parameters.pop("rope_theta")
        lines += ["overrides_of_model_config:", f"  rope_theta: {base}", "  rope_scaling:"]
        lines += [f"    {name}: {json.dumps(value)}" for name, value in parameters.items()]
    return "\n".join(lines), lost


def _parameters(found: Recognized) -> tuple[dict[str, Any] | None, list[str]]:
    """`rope_parameters` of transformers, and what they leave out."""
    try:
        parameters = to_config(found.scaling, base=found.base)
    except RequestError as error:
        return None, [f"{error}: use the GGUF file itself"]
    lost = []
    if isinstance(found.scaling, Yarn) and found.scaling.ext_factor != 1:
        lost.append(f"ext_factor {found.scaling.ext_factor:g}: transformers has no such parameter")
    return parameters, lost


_WRITERS: dict[str, Callable[[Recognized, RopeMetadata, int], _Written]] = {
    "llama-server": _llama_server,
    "llama-cpp-python": _llama_cpp_python,
    "huggingface": _huggingface,
    "vllm": _vllm,
    "ollama": _ollama,
    "koboldcpp": _koboldcpp,
    "axolotl": _axolotl,
}
