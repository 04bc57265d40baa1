"""The words of our own command line, for a scaling request: the one module of the library that
has them.

Reports and search results end in a command to paste, and `advise` is made of them. They are part
of a result, so the library writes them, and it writes them here alone. Everywhere else a message
names a field in backquotes, as `target_context`, and the command line puts the flag of `FLAGS` in
its place.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufrope.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.request import ScalingRequest

FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "scaling": "--scaling",
        "factor": "--factor",
        "target_context": "--target-ctx",
        "original_context": "--orig-ctx",
        "freq_base": "--freq-base",
        "beta_fast": "--beta-fast",
        "beta_slow": "--beta-slow",
        "ext_factor": "--ext-factor",
        "attn_factor": "--attn-factor",
        "low_freq_factor": "--low-freq-factor",
        "high_freq_factor": "--high-freq-factor",
        "long_factors": "--long-factors",
        "short_factors": "--short-factors",
        "from_config": "--from-config",
        "bake": "--bake",
        "keep_short_context": "--keep-short-context",
        "replace_scaling": "--replace-scaling",
    }
)
"""The flag of each field of `ScalingRequest`; `label`, a name in reports, has none."""


def patch_command(request: ScalingRequest, model: Path | str, output: Path | str) -> str:
    """Return the shell command that writes `request` into a copy of `model` at `output`.

    Raises RequestError where the request is the model as it stands: there is nothing to write.
    """
    if request.is_file:
        raise RequestError("the model as it stands needs no patch")
    return command_line(
        "patch", path_word(model), "-o", path_word(output), *scaling_options(request)
    )


def name_beside(model: Path | str, added: str) -> str:
    """Return the name of a new file beside `model`: its own with `added`, before a shard's number.

    A model named by `ollama:`, `hf:` or an address gets a name in the current folder.
    """
    text = os.fspath(model)
    if text.startswith(("ollama:", "hf:", "https:", "http:")):
        folder, name = PurePath(), re.split(r"[/:]", text)[-1]
    else:
        folder, name = PurePath(text).parent, PurePath(text).name
    stem, _, _ = name.partition(".gguf")
    part = re.search(r"-\d{5}-of-\d{5}$", stem)
    shard = part[0] if part else ""
    return str(folder / f"{stem.removesuffix(shard)}{added}{shard}.gguf")


def probe_command(model: Path | str) -> str:
    """Return the shell command that measures the rotation of `model`."""
    return command_line("probe", path_word(model))


def validate_command(model: Path | str, contexts: Sequence[int] = ()) -> str:
    """Return the shell command that measures `model` at these lengths, or up to its context."""
    lengths = ("--ctx", ",".join(map(str, contexts))) if contexts else ()
    return command_line("validate", path_word(model), *lengths)


def compare_command(model: Path | str, schemes: Sequence[str], target_context: int) -> str:
    """Return the shell command that measures `model` under schemes, up to a length, and writes
    nothing."""
    target = FLAGS["target_context"], str(target_context)
    return command_line("compare", path_word(model), *target, FLAGS["scaling"], ",".join(schemes))


def serve_command(
    model: Path | str,
    context_tokens: int,
    kv: KvTypes | None = None,
    flags: Sequence[str] = (),
) -> str:
    """Return the shell command that serves `model` with llama.cpp's server, in a context of so many
    tokens, with these cache types and further `flags`."""
    words = ["llama-server", "-m", path_word(model), "-c", str(context_tokens)]
    if kv is not None and str(kv) != "f16":
        words += ["--cache-type-k", kv.k, "--cache-type-v", kv.v]
        words += ["--flash-attn", "on"] if kv.v != "f16" else []
    return shlex.join((*words, *flags))


def card_command(card: str, model: Path | str) -> str:
    """Return the shell command that says whether `model` is the one that a card speaks of."""
    return command_line("check", "--card", card, path_word(model))


def search_command(model: Path | str, target_context: int) -> str:
    """Return the shell command that searches factors for `model`."""
    return command_line("search", path_word(model), FLAGS["target_context"], str(target_context))


def scaling_options(request: ScalingRequest) -> tuple[str, ...]:
    """Return the options that make `request`, unquoted; none for the model as it stands."""
    words: list[str] = []
    for field in fields(request):
        value = getattr(request, field.name)
        stands = field.name == "scaling" and value == "file"
        if field.name not in FLAGS or value is None or value is False or stands:
            continue
        words.append(FLAGS[field.name])
        if value is not True:
            words.append(_word(value))
    return tuple(words)


def command_line(*words: str) -> str:
    """Return `ggufrope` and these words as one shell command, each quoted where it must be."""
    return shlex.join(("ggufrope", *words))


def _word(value: float | str | tuple[float, ...]) -> str:
    """A value as an option takes it: numbers exactly, an array as JSON."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def path_word(path: Path | str) -> str:
    """Return a path in a form that no command takes for an option."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith("-") else text
