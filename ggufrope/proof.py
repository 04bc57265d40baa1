"""Proof by others: a model read by the gguf package and loaded by llama.cpp.

What an edit wrote has been read back by our own reader, which may be wrong as our writer is. Here
two programs that share no code with it say what they find: the gguf package key by key and tensor
by tensor, and llama.cpp, which creates all tensors of the model and allocates none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope.container.reader import read_span
from ggufrope.container.shards import open_model
from ggufrope.container.types import PADDING_KEY, ArrayValue, Span
from ggufrope.errors import MissingDependencyError
from ggufrope.patching.inspection import other_kind
from ggufrope.rope.findings import Finding, error
from ggufrope.runtime import library

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ggufrope.container.pieces import Piece, Rewrite
    from ggufrope.container.planning import StorePlan
    from ggufrope.container.shards import Shard
    from ggufrope.container.types import KeyValue

_SHOWN = 20
"""Differences of one file that are shown; one misread length makes all that follows differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A program that read the model, and its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who read the model at `path`, and where what they found is not what it should be."""

    path: Path
    witnesses: tuple[Witness, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not self.findings


def witnesses() -> tuple[Witness, Witness]:
    """Return the programs that a proof takes. Raises MissingDependencyError where one is absent."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        import gguf  # noqa: F401

        reader = Witness(name="gguf", version=version("gguf"))
    except (ImportError, PackageNotFoundError) as problem:
        raise MissingDependencyError(
            'a proof needs the gguf package: pip install "ggufrope[prove]"'
        ) from problem
    found = library.versions()
    return reader, Witness(name="llama.cpp", version=found.shown)


def prove(path: str | os.PathLike[str], planned: Sequence[StorePlan] = ()) -> Proof:
    """Let the gguf package and llama.cpp read the model at `path`, all its files.

    With `planned`, the plans that it was written by, they must find what those say. Codes of
    findings: gguf-reads-otherwise, llamacpp-refuses. What holds no language model is not loaded.
    Raises MissingDependencyError, and FileError where our own reader refuses the file.
    """
    by_gguf, by_llamacpp = witnesses()
    path = Path(path)
    model = open_model(path)
    plans = {plan.target: plan.edit.rewrite for plan in planned}
    findings = [
        error("gguf-reads-otherwise", key, f"gguf {by_gguf.version}: {shard.path.name}: {message}")
        for shard in model.shards
        for key, message in _differences(shard, plans.get(shard.path.resolve()))
    ]
    if other_kind(model.header) is not None:
        return Proof(path=path, witnesses=(by_gguf,), findings=tuple(findings))
    refusal = _refusal(path)
    if refusal is not None:
        message = f"llama.cpp {by_llamacpp.version}: {refusal}"
        findings.append(error("llamacpp-refuses", "", message))
    return Proof(path=path, witnesses=(by_gguf, by_llamacpp), findings=tuple(findings))


def _differences(shard: Shard, planned: Rewrite | None) -> list[tuple[str, str]]:
    """Return (key or tensor, what is different) of what the gguf package reads of one file."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(shard.path)
        found = [*_of_keys(reader, shard), *_of_tensors(reader, shard)]
        if planned is not None:
            found += _of_plan(reader, planned)
    except Exception as problem:  # whatever its checks or numpy's raise
        return [("", f"it cannot read the file: {type(problem).__name__}: {problem}")]
    return found if len(found) <= _SHOWN else [*found[:_SHOWN], ("", f"{len(found)} in all")]


def _of_keys(reader: Any, shard: Shard) -> Iterator[tuple[str, str]]:
    """Yield the keys that are not the same records to the gguf package and to us."""
    header = shard.header
    fields = dict(list(reader.fields.items())[3:])  # the first three are counts and version
    names = [kv.key for kv in header.key_values]
    if list(fields) != names:
        yield "", f"its {len(fields)} keys are not the {len(names)} of the file, in their order"
    for kv in header.key_values:
        field = fields.get(kv.key)
        if field is None:
            yield kv.key, f"it has no key {kv.key!r}"
        elif _bytes_of(field) != read_span(shard.path, kv.span) or field.offset != kv.span.offset:
            yield kv.key, f"the record of {kv.key} begins or ends elsewhere"
        elif (said := _stated(kv)) is not None and repr(field.contents()) != repr(said):
            yield kv.key, f"{kv.key} is {field.contents()!r:.80}, and not {said!r:.80}"


def _stated(kv: KeyValue) -> object:
    """Return the value of a key as the gguf package gives it; None where we have not decoded it."""
    if not isinstance(kv.value, ArrayValue):
        return kv.value
    return list(kv.value.items) if kv.value.items else None


def _of_tensors(reader: Any, shard: Shard) -> Iterator[tuple[str, str]]:
    """Yield the tensors whose name, shape, type or place differ."""
    header = shard.header
    mine = {
        tensor.name: (list(tensor.shape), tensor.type, header.data_span(tensor))
        for tensor in header.tensors
    }
    if [tensor.name for tensor in reader.tensors] != list(mine):
        yield "", f"its {len(reader.tensors)} tensors are not the {len(mine)} of the file"
    for tensor in reader.tensors:
        place = Span(offset=int(tensor.data_offset), length=int(tensor.n_bytes))
        found = ([int(size) for size in tensor.shape], int(tensor.tensor_type), place)
        if found != mine.get(tensor.name):
            yield tensor.name, f"tensor {tensor.name} has another shape, type or place"


def _of_plan(reader: Any, planned: Rewrite) -> Iterator[tuple[str, str]]:
    """Yield where what the gguf package reads is not what the edit was to write."""
    fields = dict(list(reader.fields.items())[3:])
    if [key for key in fields if key != PADDING_KEY] != list(planned.keys):
        yield "", "its keys are not the planned ones"
    old = {kv.span: kv for kv in planned.source.key_values}
    for key, piece in zip(planned.keys, planned.key_values, strict=True):
        if key not in fields or not _is_planned(fields[key], piece, old):
            yield key, f"{key} is not as planned"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if list(tensors) != list(planned.tensor_names):
        yield "", "its tensors are not the planned ones"
    infos = {info.span: info for info in planned.source.tensors}
    for name, piece in zip(planned.tensor_names, planned.tensor_infos, strict=True):
        tensor = tensors.get(name)
        if tensor is None:
            same = False
        elif isinstance(piece, bytes):
            same = _bytes_of(tensor.field) == piece
        else:
            info = infos[piece]
            same = (list(map(int, tensor.shape)), tensor.tensor_type) == (
                list(info.shape),
                info.type,
            )
        if not same:
            yield name, f"tensor {name} is not as planned"


def _is_planned(field: Any, piece: Piece, old: Mapping[Span, KeyValue]) -> bool:
    """Return whether a field is the record to write, or says what the old file's record said."""
    if isinstance(piece, bytes):
        return _bytes_of(field) == piece
    said = _stated(old[piece])
    same = said is None or repr(field.contents()) == repr(said)
    return same and len(_bytes_of(field)) == piece.length


def _bytes_of(field: Any) -> bytes:
    return b"".join(part.tobytes() for part in field.parts)


def _refusal(path: Path) -> str | None:
    """Return why llama.cpp does not load the model, None where it does.

    In a process of its own: there are files on which llama.cpp ends the process.
    """
    code = (
        "import json, sys; from pathlib import Path; from ggufrope.runtime.loading import refusal; "
        "print(json.dumps(refusal(Path(sys.argv[1]))))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, os.fspath(path.absolute())], capture_output=True, check=False
    )
    if child.returncode == 0:
        answer = json.loads(child.stdout.splitlines()[-1])
        return None if answer is None else str(answer)
    last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"it ended the process (exit code {child.returncode}): {''.join(last) or 'no reason'}"
