"""A model file as it stands: what it declares, what llama.cpp makes of it, what is wrong.

`inspect` reports every finding in one list: about the layout of the file, such as a key that occurs
twice, about its RoPE settings, and what the model is for where it generates no text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ggufrope.container.checks import layout_findings
from ggufrope.container.ggml import F16, F32, F64
from ggufrope.container.reader import read_tensor
from ggufrope.container.remote import Place, local
from ggufrope.container.shards import ModelFiles, open_model
from ggufrope.container.types import Header
from ggufrope.errors import FileError
from ggufrope.rope.effective import EffectiveRope, RopeOverrides
from ggufrope.rope.frequencies import MAX_ROTARY_DIMENSIONS
from ggufrope.rope.keys import FACTOR_TENSORS, KEYS
from ggufrope.rope.lint import Finding, Severity, lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata, read_metadata
from ggufrope.rope.purpose import purpose
from ggufrope.rope.trained import read_record

_READABLE = {F32: "f", F16: "e", F64: "d"}
"""How the values of a factor tensor are stored: llama.cpp rotates with F32 alone, but what others
say is shown, and written again as F32 by a patch that goes on top of it."""

_MAX_FACTOR_BYTES = 4 * MAX_ROTARY_DIMENSIONS // 2
"""A larger factor tensor fits no model, and is not read."""


SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The worst first."""
_OTHER_KINDS = {
    "adapter": "an adapter (LoRA)",
    "imatrix": "an importance matrix",
    "mmproj": "a projector of images or sound",
}
"""Values of `general.type` (gguf-py's GGUFType) besides "model"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model, of one file or split over several, and what it declares; weights stay on disk."""

    place: Place
    files: ModelFiles
    metadata: RopeMetadata

    @property
    def path(self) -> Path:
        """The file on disk. Raises StorageError where it is on a server."""
        return local(self.place)

    @property
    def header(self) -> Header:
        """The header that has the metadata."""
        return self.files.header

    @property
    def declared(self) -> dict[str, object]:
        """Every positional key of the file and its value, in the order of `keys.KEYS`, and those
        under names that llama.cpp does not know."""
        fields = {field: getattr(self.metadata, field) for field in KEYS}
        known = {self.metadata.key(f): value for f, value in fields.items() if value is not None}
        return known | {unread.key: unread.value for unread in self.metadata.unread}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A model, what llama.cpp does with it, and all findings, errors first.

    `effective` is None where llama.cpp would not load the file; `refusal` then says why.
    """

    model: StoredModel
    effective: EffectiveRope | None
    refusal: str | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


@contextmanager
def naming(place: Place) -> Iterator[None]:
    """Name the file in errors about what it declares, which know its keys alone."""
    try:
        yield
    except FileError as error:
        if type(error) is not FileError or str(place) in str(error):
            raise
        raise FileError(f"{place}: {error}") from error


def read_model(place: Place) -> StoredModel:
    """Read the headers and factor tensors of a model.

    Raises FileError, or RequestError where `place` is a later file of a split model.
    """
    files = open_model(place)
    factors: dict[str, tuple[float, ...]] = {}
    for shard in files.shards:
        for name in FACTOR_TENSORS:
            tensor = shard.header.tensor(name)
            if tensor is None or tensor.type not in _READABLE or name in factors:
                continue
            if tensor.length <= _MAX_FACTOR_BYTES:
                data = read_tensor(shard.place, shard.header, name)
                code = _READABLE[tensor.type]
                count = len(data) // struct.calcsize(code)
                factors[name] = struct.unpack(f"{shard.header.byte_order}{count}{code}", data)
    whole = replace(files.header, tensors=files.tensors)
    metadata = read_metadata(whole, factors)
    metadata = replace(metadata, trained=read_record(whole, metadata))
    return StoredModel(place=place, files=files, metadata=metadata)


def inspect(
    place: Place, *, context_tokens: int | None = None, overrides: RopeOverrides | None = None
) -> Inspection:
    """Return declared and effective RoPE of the file, and every finding about it.

    `context_tokens` is the context to predict for, the file's own by default. Raises FileError
    where the file is no model, RequestError where the context or an override makes no sense.
    """
    model = read_model(place)
    rotation: EffectiveRope | None = None
    refusal: str | None = None
    try:
        rotation = effective(model.metadata, context_tokens=context_tokens, overrides=overrides)
    except FileError as error:
        refusal = str(error)
    return Inspection(
        model=model,
        effective=rotation,
        refusal=refusal,
        findings=_findings(model, refusal, context_tokens),
    )


def other_kind(header: Header) -> str | None:
    """Return what a GGUF file holds where that is no language model, in words; else None.

    `general.type` says so in files that gguf-py writes; older image projectors have the
    architecture clip.
    """
    kind = header.get("general.type")
    if header.architecture == "clip":
        kind = "mmproj"
    return _OTHER_KINDS.get(kind) if isinstance(kind, str) else None


def _findings(
    model: StoredModel, refusal: str | None, context_tokens: int | None
) -> tuple[Finding, ...]:
    """Findings about the layout of each file, the settings and the purpose, errors first.

    A file that llama.cpp would refuse has an error that says so, and one that is no language model
    is not judged as one.
    """
    shards = model.files.shards
    layout = [
        Finding(
            code=found.code,
            severity=found.severity,
            key=found.key,
            message=f"{shard.place.name}: {found.message}" if len(shards) > 1 else found.message,
        )
        for shard in shards
        for found in layout_findings(shard.header)
    ]
    found = [*layout, *_model_findings(model, context_tokens)]
    judged = other_kind(model.header) is None
    if judged and refusal is not None and all(each.severity != "error" for each in found):
        found.append(
            Finding(code="refused", severity="error", key="general.architecture", message=refusal)
        )
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _model_findings(model: StoredModel, context_tokens: int | None) -> tuple[Finding, ...]:
    kind = other_kind(model.header)
    if kind is not None:
        message = f"the file holds {kind}: it has no RoPE settings to check"
        return (Finding(code="no-model", severity="info", key="general.type", message=message),)
    found = lint(model.metadata, context_tokens=context_tokens)
    meant = purpose(model.metadata)
    if meant.generates:
        return found
    message = (
        f"the model is {meant.reason}; it does not generate text token by token, so nothing "
        "measures its recall or perplexity"
    )
    return (
        *found,
        Finding(code="no-generation", severity="info", key="general.architecture", message=message),
    )
