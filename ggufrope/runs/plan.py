"""What a run measures: models × scalings × KV cache types × tasks × seeds; as TOML, and checked.

A person writes a plan as TOML; `validate` and `compare` build one from their options. Nothing in it
depends on the machine: `models` finds the file that a model's name means.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from ggufrope._files import read_text
from ggufrope._plain import Plain, decode, encode, json_schema, non_finite
from ggufrope.backends import RuntimeSettings
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import RequestError
from ggufrope.evals.task import TaskName, TaskSettings
from ggufrope.evals.verdict import Thresholds
from ggufrope.patching.request import ScalingName, ScalingRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_CONTEXT = 128
"""Tokens: below, a question and its answer leave no room for a haystack."""
MAX_CONTEXT = 2**31 - 1
"""Tokens: llama.cpp counts positions in 32 bits."""
MAX_CELLS = 1_000_000
"""Of one model in a plan: a run keeps each of them in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(TaskSettings):
    """Everything that repeats a run, except the files it names: the settings of its tasks, and what
    they are run on."""

    models: tuple[str, ...] = field(
        metadata={"help": "paths, globs, ollama:NAME or hf:OWNER/REPO/FILE"}
    )
    contexts: tuple[int, ...] = field(metadata={"help": "context lengths in tokens"})
    name: str = "run"
    tasks: tuple[TaskName, ...] = ("needle",)
    scalings: tuple[ScalingName | ScalingRequest, ...] = field(
        default=("file",), metadata={"help": "schemes by name, or tables with their parameters"}
    )
    kv: tuple[str, ...] = field(
        default=("f16",), metadata={"help": "KV cache types, K or K/V, e.g. q8_0/q4_0"}
    )
    seeds: tuple[int, ...] = (0,)
    runtime: RuntimeSettings = RuntimeSettings()  # noqa: RUF009 (frozen)
    thresholds: Thresholds = field(default_factory=Thresholds)
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        problems = [*self._empty(), *self._repeated(), *self._out_of_range()]
        if problems:
            raise RequestError("; ".join(problems))

    @property
    def requests(self) -> tuple[ScalingRequest, ...]:
        """`scalings`, with a request for each name."""
        return tuple(
            item if isinstance(item, ScalingRequest) else ScalingRequest(scaling=item)
            for item in self.scalings
        )

    @property
    def kv_types(self) -> tuple[KvTypes, ...]:
        return tuple(KvTypes.parse(text) for text in self.kv)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the plan names, without its models."""
        named = (name for request in self.requests for name in request.files)
        return tuple(dict.fromkeys((*self.setting_files, *named)))

    def _empty(self) -> list[str]:
        names = ("models", "contexts", "tasks", "scalings", "kv", "seeds")
        return [f"`{name}` is empty" for name in names if getattr(self, name) == ()]

    def _repeated(self) -> list[str]:
        lists: dict[str, tuple[object, ...]] = {
            "`models`": self.models,
            "`contexts`": self.contexts,
            "`tasks`": self.tasks,
            "names of scalings": tuple(request.name for request in self.requests),
            "`kv`": tuple(map(_short_form, self.kv)),
            "`seeds`": self.seeds,
        }
        return [
            f"{name} has {value!r} more than once"
            for name, values in lists.items()
            for value, count in Counter(values).items()
            if count > 1
        ]

    def _out_of_range(self) -> list[str]:
        problems = [
            f"context {tokens} is too short: at least {MIN_CONTEXT} tokens"
            for tokens in self.contexts
            if tokens < MIN_CONTEXT
        ]
        problems += [
            f"context {tokens} is too long: at most {MAX_CONTEXT} tokens"
            for tokens in self.contexts
            if tokens > MAX_CONTEXT
        ]
        problems += self.setting_problems()
        problems += [
            f"scalings{path} {value} must be a finite number"
            for path, value in non_finite(self.scalings)
        ]
        for text in self.kv:
            try:
                KvTypes.parse(text)
            except RequestError as error:
                problems.append(str(error))
        if self.tasks and "divergence" in self.tasks and self._is_base_alone():
            problems.append(
                "divergence is from the file with an f16 cache: give another scaling or cache type"
            )
        if not problems and self._cells_per_model > MAX_CELLS:
            problems.append(
                f"the plan has up to {self._cells_per_model} cells per model, at most {MAX_CELLS} "
                "are possible; give fewer contexts, depths, samples, seeds, scalings or cache types"
            )
        return problems

    @property
    def _cells_per_model(self) -> int:
        """Upper limit of the cells of one model, RULER's tasks aside."""
        depths = self.depths if isinstance(self.depths, int) else len(self.depths)
        axes = (self.contexts, self.tasks, self.scalings, self.kv, self.seeds)
        return prod(map(len, axes)) * depths * self.samples

    def _is_base_alone(self) -> bool:
        return set(map(_short_form, self.kv)) == {"f16"} and all(
            request.is_file for request in self.requests
        )


def _short_form(kv: str) -> str:
    """A pair of cache types as reports write it, so that f16/f16 is f16; unknown types as given."""
    try:
        return str(KvTypes.parse(kv))
    except RequestError:
        return kv


def read_plan(path: Path) -> RunPlan:
    """Read the plan in a TOML file.

    Raises StorageError where the file cannot be read, RequestError where it is not TOML (with line
    and column) or not a plan (with every problem, and the nearest known key for an unknown one).
    """
    return parse_plan(read_text(path), where=str(path))


def parse_plan(text: str, *, where: str = "plan") -> RunPlan:
    """Return the plan in TOML `text`; messages call it `where`. Raises RequestError."""
    try:
        return decode(RunPlan, tomllib.loads(text), where=where)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{where}: not TOML: {error}") from error
    except RecursionError:
        raise RequestError(f"{where}: its lists are nested too deeply") from None


def format_plan(plan: RunPlan) -> str:
    """Return TOML that `parse_plan` reads back to an equal plan."""
    settings = {item.name for item in fields(TaskSettings)}
    plain = _without_none(encode(plan, exact=True))
    plain = dict(sorted(plain.items(), key=lambda item: item[0] in settings))
    tables = {name: value for name, value in plain.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def changed_keys(before: RunPlan, after: RunPlan) -> tuple[str, ...]:
    """Return "KEY OLD -> NEW" for each key that two plans differ in, tables key by key."""
    old, new = dict(_leaves(encode(before, exact=True))), dict(_leaves(encode(after, exact=True)))
    return tuple(
        f"{key} {_shown(old.get(key))} -> {_shown(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    )


def judged_as(before: RunPlan, after: RunPlan) -> RunPlan:
    """Return plan `before` with the thresholds and the name of `after`: nothing is measured by
    them."""
    return replace(before, thresholds=after.thresholds, name=after.name)


def plan_schema() -> dict[str, Plain]:
    """Return the JSON Schema of a plan; `plan.schema.json` in this package holds it for editors."""
    return json_schema(RunPlan, title="A ggufrope run plan")


def _leaves(table: dict[str, Plain], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Plain) -> str:
    """A value as a plan writes it, cut short."""
    text = "nothing" if value is None else _toml(_brief(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _brief(value: Plain) -> Plain:
    """The value without absent fields and switches that are off; a bare scaling is its name."""
    if isinstance(value, dict):
        given = {
            key: _brief(item)
            for key, item in value.items()
            if item is not None and item is not False
        }
        return given["scaling"] if given.keys() == {"scaling"} else given
    return [_brief(item) for item in value] if isinstance(value, list) else value


def _without_none(value: Plain) -> Plain:
    """The value without the absent fields of its tables: TOML has no word for them."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _toml(value: Plain) -> str:
    """A value on one line. JSON's strings, numbers and lists are TOML's, but for U+007F."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
