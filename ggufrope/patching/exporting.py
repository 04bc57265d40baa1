"""A model file, or a scaling of it that is not written yet, as settings for another tool."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.container.remote import Place, RemoteFile
from ggufrope.errors import RequestError
from ggufrope.patching.command import patch_command
from ggufrope.patching.compose import check_start, encode_request, patched
from ggufrope.patching.inspection import read_model
from ggufrope.patching.request import resolve
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import LLAMA_FLAGS, RopeOverrides
from ggufrope.rope.export import LLAMA_CPP_TOOLS, Export, Tool, export
from ggufrope.rope.export_llama import Wanted
from ggufrope.rope.llamacpp import file_base, number
from ggufrope.rope.overrides import recognize
from ggufrope.rope.scaling import Unscaled

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.rope.encode import Ignored
    from ggufrope.rope.metadata import RopeMetadata


def export_model(
    place: Place,
    tool: Tool,
    *,
    request: ScalingRequest | None = None,
    context_tokens: int | None = None,
) -> Export:
    """Write the settings of the model at `place` for `tool`, or those that `request` means on it.

    Nothing is written to the file. `context_tokens` is the context to run at; None is the one that
    the file declares, or the request reaches. Raises RequestError where the request contradicts
    itself or the file, or does not start from the scaling that the file has.
    """
    model = read_model(place)
    # What the commands of other tools name: a file on a server, when it is here.
    path = Path(place.name) if isinstance(place, RemoteFile) else place
    wanted = None
    if request is not None and not request.is_file:
        wanted = _wanted(request, model.metadata, path, tool)
    return export(
        model.metadata,
        tool,
        path=path,
        context_tokens=context_tokens,
        wanted=wanted,
    )


def _wanted(request: ScalingRequest, metadata: RopeMetadata, path: Path, tool: Tool) -> Wanted:
    """Return the scaling that `request` means; for tools that take a config, where no file can say
    it too."""
    try:
        return wanted_scaling(request, metadata, path)
    except RequestError:
        if tool in LLAMA_CPP_TOOLS or not isinstance(recognize(metadata).scaling, Unscaled):
            raise
    target = resolve(request, metadata)
    base = number(file_base(metadata, architecture(metadata.architecture)))
    return Wanted(
        metadata=replace(metadata, context_length=target.context_length),
        scaling=target.scaling,
        base=target.freq_base or base,
        config_only=True,
    )


def wanted_scaling(request: ScalingRequest, metadata: RopeMetadata, path: Path) -> Wanted:
    """Return what the file at `path` would declare with `request` written into it.

    Raises as `export_model` does.
    """
    target, expression = encode_request(request, metadata)
    after = patched(metadata, expression)
    check_start(request, target, metadata, after)
    own = number(file_base(metadata, architecture(metadata.architecture)))
    return Wanted(
        metadata=after,
        scaling=target.scaling,
        base=target.freq_base or own,
        overrides=_run_time(expression.ignored),
        ignored=expression.ignored,
        remedy=f"write it into a copy: {patch_command(request, path, _copy(path, request.name))}",
    )


def _copy(path: Path, name: str) -> Path:
    """Return where a patched copy may go: beside the model, but not into a store of blobs."""
    if path.suffix != ".gguf":
        return Path(f"model-{name}.gguf")
    split = re.fullmatch(r"(.+)(-\d{5}-of-\d{5})", path.stem)
    prefix, number = (path.stem, "") if split is None else (split[1], split[2])
    return path.with_name(f"{prefix}-{name}{number}{path.suffix}")


def _run_time(ignored: tuple[Ignored, ...]) -> RopeOverrides:
    """Return the context parameters for what llama.cpp would not read from a file."""
    return RopeOverrides(
        **{item.parameter: float(item.value) for item in ignored if item.parameter in LLAMA_FLAGS}  # type: ignore[arg-type]
    )
