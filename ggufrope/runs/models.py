"""The files that the model names of a plan mean, and what identifies each."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ggufrope._files import model_status, sha256_of, storage
from ggufrope.container.location import locate
from ggufrope.container.reader import read_header
from ggufrope.container.types import ArrayValue, Header, Scalar
from ggufrope.errors import RequestError
from ggufrope.evals.formats import USUAL_TOKENS, chat_frame
from ggufrope.evals.task import ASKING
from ggufrope.patching.inspection import read_model
from ggufrope.patching.request import ScalingName
from ggufrope.rope.keys import KEYS
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.purpose import require_generation
from ggufrope.rope.trained import declared_factor, trained_context, trained_state

if TYPE_CHECKING:
    from ggufrope.runs.plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One model of a run: its name in reports, and the file behind it.

    `header_sha256` covers everything before the tensor data; with `file_size` it distinguishes two
    models without reading the weights. `native_context` is the context in tokens that any scaling
    of the file starts from, None where the file does not say; under one of `native_scalings` the
    model rotates as it was trained to. `details` are the metadata that reports show.
    """

    name: str
    path: str
    file_size: int
    header_sha256: str
    native_context: int | None = None
    native_scalings: tuple[ScalingName, ...] = ("file",)
    details: tuple[tuple[str, str], ...] = ()
    vocabulary: tuple[tuple[str, str], ...] = field(
        default=(), metadata={"help": "what decides the tokens of a text, key by key, in short"}
    )


_DETAILS = ("general.name", "general.architecture", "general.size_label", "general.file_type")

_DETAIL_LENGTH = 400
REUSES, LACKS = "reuses prefixes", "not given by the server"
"""Details of a model at a server: whether a prompt in the order of a run keeps the beginning of the
one before, and what the server cannot give."""

_VOCABULARY = tuple(
    f"tokenizer.ggml.{name}"
    for name in (
        *("tokens", "model", "pre", "merges", "scores", "bos_token_id"),
        *("add_bos_token", "add_space_prefix"),
    )
)

Identify: TypeAlias = Callable[[str, Path], ModelFile]


def identify(name: str, path: Path) -> ModelFile:
    """Return the model in a GGUF file, from its header alone.

    Raises FileError, RequestError where the model generates no text to measure.
    """
    header = read_header(path)
    metadata = read_model(path).metadata
    require_generation(metadata, str(path))
    trained = trained_context(trained_state(metadata))
    details = {key: header.get(key) for key in (*_DETAILS, *map(metadata.key, KEYS))}
    return ModelFile(
        name=name,
        path=str(path),
        file_size=header.file_size,
        header_sha256=sha256_of(path, header.data_offset),
        native_context=None if trained is None else trained.original,
        native_scalings=_native_scalings(metadata),
        details=tuple(
            (key, str(value)[:_DETAIL_LENGTH])
            for key, value in details.items()
            if isinstance(value, Scalar)
        ),
        vocabulary=tuple(_vocabulary(header, path)),
    )


def _vocabulary(header: Header, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the keys that decide the tokens of a text, arrays by their hash."""
    with storage("read", path), open(path, "rb") as file:
        for key in _VOCABULARY:
            value = header.get(key)
            if isinstance(value, ArrayValue):
                file.seek(value.span.offset)
                yield key, f"{value.count} × {sha256(file.read(value.span.length)).hexdigest()[:8]}"
            elif value is not None:
                yield key, str(value)[:_DETAIL_LENGTH]


def resolve_base(
    plan: RunPlan, models: tuple[ModelFile, ...], identify: Identify = identify
) -> ModelFile | None:
    """Return the file of the plan's base, None where it names none.

    Raises RequestError where a model of the plan has another vocabulary, or is that file; else as
    `resolve_models` does.
    """
    if plan.base is None:
        return None
    path = locate(plan.base)
    model_status(path)
    base = identify(_labels([plan.base])[0], path)
    known = dict(base.vocabulary)
    for model in models:
        if Path(model.path).resolve() == path.resolve():
            raise RequestError(f"`base` {plan.base} is the model itself: it differs in nothing")
        differing = [
            f"{key} ({value} in {model.name}, {known[key]} in {base.name})"
            for key, value in model.vocabulary
            if known.get(key, value) != value
        ]
        if differing:
            raise RequestError(
                f"{model.name} and the base {base.name} have different vocabularies, so their "
                f"probabilities cannot be compared: {'; '.join(differing)}"
            )
    return base


def _native_scalings(metadata: RopeMetadata) -> tuple[ScalingName, ...]:
    """Return the requests that give the rotation the model was trained with: taking an earlier
    patch back, or leaving the file as it stands."""
    if metadata.trained is not None:
        return ("none",)
    scaled = declared_factor(metadata) > 1 or metadata.factor_tensors
    return ("file",) if scaled else ("file", "none")


def models_of(plan: RunPlan, identify: Identify = identify) -> tuple[ModelFile, ...]:
    """Return the models of a plan: files, or those of its server, which is asked.

    What a server tells identifies them: a run does not mix a context of 8k with one of 32k.
    Raises RequestError where two names mean one model, and what `resolve_models` or `open_server`
    raise.
    """
    if plan.runtime.server is None:
        return resolve_models(plan.models, identify)
    found = tuple(_served(plan, name) for name in plan.models or (None,))
    if len({model.name for model in found}) < len(found):
        raise RequestError(f"two of {', '.join(plan.models)} are one model; name it once")
    return found


def _served(plan: RunPlan, name: str | None) -> ModelFile:
    from ggufrope.backends.served import open_server
    from ggufrope.server.dialect import NO_LOG_PROBABILITIES

    with closing(open_server(plan.runtime, name)) as model:
        info = model.info
        if plan.limits.top_ranked is not None and NO_LOG_PROBABILITIES in model.lacks:
            raise RequestError(
                f"`top_ranked` needs log-probabilities to rank by: {info.dialect} gives none"
            )
        require_format(info.model, model.chat_template, plan, model.special_tokens)
    identity = (info.dialect, info.model, info.context_tokens, info.path, info.digest)
    details = {
        "server": info.dialect,
        "server context": info.context_tokens,
        "trained context": info.trained_tokens,
        REUSES: "yes" if model.reuses_prefixes and model.lanes == 1 else "no",
        LACKS: "; ".join(model.lacks),
        **dict(info.settings),
    }
    return ModelFile(
        name=info.model,
        path=info.model,
        file_size=info.file_size or 0,
        header_sha256=sha256(repr(identity).encode()).hexdigest(),
        native_context=info.trained_tokens,
        details=tuple(
            (key, str(value)[:_DETAIL_LENGTH])
            for key, value in details.items()
            if value not in (None, "")
        ),
    )


def resolve_models(names: tuple[str, ...], identify: Identify = identify) -> tuple[ModelFile, ...]:
    """Return the models that `names` mean, globs expanded in order of file names.

    Raises RequestError where a glob matches nothing or two names mean one file, StorageError where
    a file is missing, and what `identify` raises.
    """
    paths = [found for name in names for found in _expand(name)]
    seen: dict[Path, str] = {}
    for name, path in paths:
        model_status(path)
        if earlier := seen.get(path.resolve()):
            raise RequestError(f"{name} is the same file as {earlier}; name it once")
        seen[path.resolve()] = name
    labels = _labels([name for name, _ in paths])
    return tuple(identify(label, path) for label, (_, path) in zip(labels, paths, strict=True))


def require_formats(plan: RunPlan) -> None:
    """Raise RequestError where a model cannot be asked in the format of the plan, before anything
    is loaded: its chat template fails, or is not there, or has no switch for thinking.

    Raises MissingDependencyError where a template needs jinja2, FileError as `identify` does.
    """
    if plan.runtime.server is not None:
        return  # `models_of` asks for the template
    if not ASKING & set(plan.tasks):
        if plan.format != "auto" or plan.thinking is not None:
            asking = ", ".join(sorted(ASKING))
            raise RequestError(f"`format` and `thinking` are for the tasks {asking}")
        return
    for label, path in (found for name in plan.models for found in _expand(name)):
        if path.is_file():
            template = read_header(path).get("tokenizer.chat_template")
            require_format(label, str(template) if template else None, plan)


def require_format(
    label: str,
    template: str | None,
    plan: RunPlan,
    special_tokens: Mapping[str, str] = USUAL_TOKENS,
) -> None:
    """Raise RequestError where a model with this template cannot be asked in the format of the
    plan."""
    try:
        chat_frame(template, plan.format, plan.thinking, special_tokens)
    except RequestError as error:
        raise RequestError(f"{label}: {error}") from None


def _expand(name: str) -> Iterator[tuple[str, Path]]:
    if name.startswith(("ollama:", "hf:")) or not glob.has_magic(name) or Path(name).exists():
        yield name, locate(name)
        return
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # the pattern may be absolute
    if not matches:
        raise RequestError(f"models: {name!r} matches no file")
    yield from ((match, Path(match)) for match in matches)


def _labels(names: list[str]) -> list[str]:
    """Return file names where they all differ, else the names as given; always valid UTF-8."""
    short = [name if name.startswith(("ollama:", "hf:")) else Path(name).stem for name in names]
    chosen = short if len(set(short)) == len(short) else names
    return [name.encode("utf-8", "backslashreplace").decode() for name in chosen]
