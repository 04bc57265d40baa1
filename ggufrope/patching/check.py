"""Many files checked at once: what each declares, what is wrong, and whether a config.json agrees.

Headers alone are read, so a folder of models takes seconds. A file that cannot be read is an error
of that file and does not stop the others. Nothing is written, and nothing is repaired.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.container.location import find, find_models
from ggufrope.container.remote import Place, RemoteFile
from ggufrope.container.shards import needs_recovery
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.command import name_beside, patch_command
from ggufrope.patching.compose import check_start, encode_request, patched
from ggufrope.patching.config_file import read_config, scales_windows
from ggufrope.patching.inspection import SEVERITIES, Inspection, StoredModel, inspect, other_kind
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.keys import KEYS
from ggufrope.rope.lint import Finding
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.trained import scaling_in_words

if TYPE_CHECKING:
    from ggufrope.patching.plan import Shown
    from ggufrope.rope.effective import EffectiveRope
    from ggufrope.rope.encode import Expression
    from ggufrope.rope.huggingface import ConfigRope
    from ggufrope.rope.metadata import RopeMetadata

_SIZES = ("dimension_count", "key_length")
"""Fields that may say how many dimensions turn; where neither does, llama.cpp divides."""
_TOLERANCE = 1e-6
"""Relative; keys and factors are stored as float32."""

Name: TypeAlias = str | os.PathLike[str]
"""A model file, a folder of them, `ollama:NAME`, `hf:OWNER/REPO/FILE` or an `https:` address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCheck:
    """One key or factor tensor: what the file has and what the config asks for, None for absent."""

    key: str
    file: Shown
    config: Shown
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCheck:
    """A file compared with a config.json.

    `agrees` is whether the file rotates as the config says and has its context length; keys may
    differ where they mean the same. `refusal` says why the config does not apply to this file,
    `command` is the shell command that writes what it says, None where there is nothing to write or
    nothing to be done about it. `notes` are what llama.cpp would not honor of the config.
    """

    agrees: bool
    keys: tuple[KeyCheck, ...] = ()
    refusal: str | None = None
    command: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """One model, as it was named: what it declares, and all findings, errors first.

    What the file does not say is None, and everything is where it cannot be read (`readable`).
    `scaling` is in words, "none" where the file is not scaled.
    """

    name: str
    place: Place
    architecture: str | None
    context_length: int | None
    scaling: str | None
    findings: tuple[Finding, ...]
    readable: bool = True
    config: ConfigCheck | None = None

    @property
    def worst(self) -> Finding | None:
        """The first of the most severe findings, None where there is none."""
        return self.findings[0] if self.findings else None

    @property
    def passed(self) -> bool:
        """Whether no finding is an error."""
        return self.worst is None or self.worst.severity != "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The files checked, in the order in which they were named, folders in the order of paths."""

    files: tuple[FileCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether no file has an error finding."""
        return all(file.passed for file in self.files)

    @property
    def unreadable_only(self) -> bool:
        """Whether the only files that fail are those that cannot be read."""
        failed = [file for file in self.files if not file.passed]
        return bool(failed) and not any(file.readable for file in failed)

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings by severity, zeros included."""
        found = Counter(finding.severity for file in self.files for finding in file.findings)
        return {severity: found[severity] for severity in SEVERITIES}


def check(
    *names: Name,
    config: Name | None = None,
    examine: Callable[[Place], Iterable[Finding]] | None = None,
    whole: bool = False,
) -> CheckReport:
    """Check model files, and all those in folders; `config` is a config.json to compare each with.

    `examine` yields further findings about a model that can be read, such as those of a proof.
    `whole` permits a server to send a file from its start.
    Raises RequestError where no name is given or the config cannot be understood, FileError where
    it cannot be read, or a folder cannot, or has no model.
    """
    if not names:
        raise RequestError("nothing to check: name a file or a folder")
    said = None if config is None else _Config.read(Path(config))
    found: dict[Place, str] = {}
    for given in names:
        for name, place in _expand(os.fspath(given), whole=whole):
            found[place] = name
    return CheckReport(
        files=tuple(_check(name, place, said, examine) for place, name in found.items())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """A config.json: where it is, and what it says."""

    path: Path
    rope: ConfigRope

    @classmethod
    def read(cls, path: Path) -> _Config:
        return cls(path=path, rope=read_config(path))


def _expand(name: str, *, whole: bool) -> Iterable[tuple[str, Place]]:
    """Return the models that a name means; one that is nowhere to be found stays as it is."""
    try:
        place = find(name, whole=whole)
    except FileError:
        return [(name, Path(name))]
    if isinstance(place, RemoteFile):
        return [(str(place), place)]
    if not place.is_dir():
        return [(name, place)]
    found = find_models(place)
    if not found:
        raise FileError(f"{place}: no .gguf file in this folder or below it; name another folder")
    return [(os.fspath(each), each) for each in found]


def _check(
    name: str,
    place: Place,
    config: _Config | None,
    examine: Callable[[Place], Iterable[Finding]] | None,
) -> FileCheck:
    try:
        if not isinstance(place, RemoteFile):
            find(name)  # says why a store does not have it
        found = inspect(place)
    except (FileError, RequestError) as error:
        return _unreadable(name, place, str(error))
    findings = list(found.findings)
    if isinstance(place, Path) and needs_recovery(place):
        findings.append(_unfinished())
    compared = None
    if config is not None and other_kind(found.model.header) is None:
        here = place.name_here if isinstance(place, RemoteFile) else name
        compared = _against_config(found.model, config, here)
        findings += _config_findings(compared, config)
    if examine is not None:
        findings += examine(place)
    metadata = found.model.metadata
    return FileCheck(
        name=name,
        place=place,
        architecture=metadata.architecture,
        context_length=metadata.context_length,
        scaling=_scaling(found),
        findings=tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity))),
        config=compared,
    )


def _scaling(found: Inspection) -> str | None:
    if other_kind(found.model.header) is not None:
        return None
    return scaling_in_words(found.model.metadata) or "none"


def _unreadable(name: str, place: Place, reason: str) -> FileCheck:
    finding = Finding(code="unreadable", severity="error", key="", message=reason)
    return FileCheck(
        name=name,
        place=place,
        architecture=None,
        context_length=None,
        scaling=None,
        findings=(finding,),
        readable=False,
    )


def _unfinished() -> Finding:
    return Finding(
        code="unfinished-edit",
        severity="error",
        key="",
        message="an edit of the file is under way, or was interrupted: wait for it, or run inspect "
        "on the file, which finishes it or takes it back",
    )


# Against a config.json ----------------------------------------------------------------------------


def _against_config(model: StoredModel, config: _Config, name: str) -> ConfigCheck:
    """Compare what the file declares and does with what a config.json says, key by key.

    `name` is how the command that mends the file names it.
    """
    request = ScalingRequest(scaling="file", from_config=os.fspath(config.path))
    before = model.metadata
    try:
        target, expression = encode_request(request, before)
        after = patched(before, expression)
        check_start(request, target, before, after)
        same = _rotates_alike(before, after)
        others = tuple(
            row for row in _not_written(before, config.rope) if row.key not in expression.keys
        )
        keys = (*_keys(model, expression), *others)
    except (RequestError, FileError) as error:
        return ConfigCheck(agrees=False, refusal=str(error))
    written = same and before.context_length == after.context_length
    notes = [
        f"{ignored.parameter} {ignored.value}: {ignored.reason}" for ignored in expression.ignored
    ]
    if scales_windows(config.rope, after):
        notes.append(
            "sliding-window layers are scaled too, and the config leaves them as they are: "
            "llama.cpp has no way to leave them out"
        )
    notes += [
        f"patch does not write {row.key}: convert the model again"
        for row in others
        if not row.agrees
    ]
    output = name_beside(name, "-from-config")
    return ConfigCheck(
        agrees=written and all(row.agrees for row in others),
        keys=keys,
        command=None if written else patch_command(request, name, output),
        notes=tuple(notes),
    )


def _not_written(metadata: RopeMetadata, config: ConfigRope) -> Iterable[KeyCheck]:
    """Return what the config says and a patch leaves alone: rotary dimensions, and the base of
    sliding-window layers where no key of theirs says it."""
    found = effective(metadata)
    turning = {group.name: group.n_rot for group in found.groups if group.n_rot}
    if turning and config.n_rot and config.n_rot == metadata.n_rot:  # another was refused
        said = next((size for size in _SIZES if getattr(metadata, size) is not None), None)
        yield KeyCheck(
            key=metadata.key(said or "dimension_count"),
            file=None if said is None else metadata.n_rot,
            config=config.n_rot,
            agrees=True,
        )
    window = config.sliding
    if window is None:
        return
    ours = turning.get("sliding-window")
    if ours and window.n_rot and "n_rot" not in window.assumed:
        yield KeyCheck(
            key=metadata.key("dimension_count_swa"),
            file=ours,
            config=window.n_rot,
            agrees=ours == window.n_rot,
        )
    base = found.values.get("freq_base_swa")
    if window.base is not None and "base" not in window.assumed and base is not None:
        used = float(base.value) if isinstance(base.value, int | float) else 0.0
        yield KeyCheck(
            key=metadata.key("freq_base_swa"),
            file=used,
            config=window.base,
            agrees=_close((used,), (window.base,)),
        )


def _keys(model: StoredModel, expression: Expression) -> tuple[KeyCheck, ...]:
    """Return what the config decides, in the order of `keys.KEYS`, factor tensors last."""
    # These load what writes files.
    from ggufrope.container.pieces import encode_key_value
    from ggufrope.patching.plan import describe, edits_of

    metadata, header = model.metadata, model.header
    changed = {edit.key for edit in describe(edits_of(expression, header.byte_order), model)}
    wanted = {key: None if value is None else value.value for key, value in expression.keys.items()}
    for key, typed in expression.keys.items():
        if typed is not None:
            encode_key_value(key, typed, header.byte_order)  # refuses what no file can hold
    rows = []
    for field in KEYS:
        key = metadata.key(field)
        found, value = header.get(key), wanted.get(key)
        if key not in wanted or (found is None and value is None):
            continue
        said = [each for each in (found, value) if each is not None]
        agrees = key not in changed or said == [_assumed(field, metadata)]
        rows.append(KeyCheck(key=key, file=_shown(found), config=_shown(value), agrees=agrees))
    for name, factors in expression.tensors.items():
        tensor = metadata.tensor(name)
        if factors is None and tensor is None:
            continue
        rows.append(
            KeyCheck(
                key=name,
                file=None if tensor is None else f"{tensor.length} factors",
                config=None if factors is None else f"{len(factors)} factors",
                agrees=_close(
                    () if tensor is None else tensor.values or (),
                    () if factors is None else factors,
                ),
            )
        )
    return tuple(rows)


def _assumed(field: str, metadata: RopeMetadata) -> Shown:
    """Return what llama.cpp takes for an absent key (src/llama-model.cpp 1407-1432), where that is
    one value: a file that says it and one that does not mean the same."""
    scaled = metadata.factor is not None or metadata.scale_linear is not None
    assumed = {"factor": 1.0, "attn_factor": 1.0, "freq_base": 10000.0}
    return assumed.get(field, "none" if field == "scaling_type" and not scaled else None)


def _shown(value: object) -> Shown:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _rotates_alike(before: RopeMetadata, after: RopeMetadata) -> bool:
    """Return whether llama.cpp makes the same of both in a short and in a long context."""
    longest = max(before.context_length or 1, after.context_length or 1)
    original = after.original_context or before.original_context or longest
    try:
        return all(
            _same(effective(before, context_tokens=n), effective(after, context_tokens=n))
            for n in {min(original, longest), longest}
        )
    except FileError:
        return False


def _same(one: EffectiveRope, other: EffectiveRope) -> bool:
    layers = [layer for group in one.groups for layer in group.layers]
    return all(
        _close(one.group(layer).inverse_frequencies, other.group(layer).inverse_frequencies)
        and _close((one.group(layer).magnitude,), (other.group(layer).magnitude,))
        for layer in layers
    )


def _close(one: Iterable[float], other: Iterable[float]) -> bool:
    a, b = tuple(one), tuple(other)
    return len(a) == len(b) and all(
        abs(x - y) <= _TOLERANCE * max(abs(x), abs(y)) for x, y in zip(a, b, strict=True)
    )


def _config_findings(compared: ConfigCheck, config: _Config) -> Iterable[Finding]:
    if compared.refusal is not None:
        yield Finding(code="config-refused", severity="error", key="", message=compared.refusal)
    elif not compared.agrees:
        different = [row.key for row in compared.keys if not row.agrees]
        yield Finding(
            code="config-differs",
            severity="error",
            key=different[0] if different else "",
            message=f"the file is not what {config.path} says: {', '.join(different)}",
        )
