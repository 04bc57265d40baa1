"""A model file as it stands: what it declares, what llama.cpp makes of it, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggufrope.container import Header, read_header, read_tensor
from ggufrope.errors import FileError
from ggufrope.rope import EffectiveRope, RopeMetadata, RopeOverrides, effective, read_metadata
from ggufrope.rope.keys import FACTOR_TENSORS, KEYS
from ggufrope.rope.lint import Finding, lint


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A GGUF file and what its header declares; the weights stay on disk."""

    path: Path
    header: Header
    metadata: RopeMetadata

    @property
    def declared(self) -> dict[str, object]:
        """Every positional key of the file and its value, in the order of `keys.KEYS`."""
        fields = {field: getattr(self.metadata, field) for field in KEYS}
        return {self.metadata.key(f): value for f, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """`effective` is None where llama.cpp would not load the file; `refusal` then says why."""

    model: StoredModel
    effective: EffectiveRope | None
    refusal: str | None
    findings: tuple[Finding, ...]


def read_model(path: Path) -> StoredModel:
    """Read the header and factor tensors of a model file. Raises FileError."""
    import numpy as np

    header = read_header(path)
    factors = {
        tensor.name: np.frombuffer(
            read_tensor(path, header, tensor.name), dtype=f"{header.byte_order}f4"
        )
        for tensor in header.tensors
        if tensor.name in FACTOR_TENSORS and tensor.type == 0
    }
    return StoredModel(path=path, header=header, metadata=read_metadata(header, factors))


def inspect(
    path: Path, *, context_tokens: int | None = None, overrides: RopeOverrides | None = None
) -> Inspection:
    """Declared and effective RoPE of the file, and every finding about it.

    `context_tokens` is the context to predict for, the file's own by default. Raises FileError
    where the file is no model, WishError where the context or an override makes no sense.
    """
    model = read_model(path)
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
        findings=lint(model.metadata),
    )
