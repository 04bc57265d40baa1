"""What a run is to measure: models × trial scalings × KV cache types × tasks × seeds.

A plan is written as TOML by a person or built by `validate` and `compare` from their options.
Nothing in it depends on the machine: which file a model's name means is settled by `models`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from ggufrope._files import read_text
from ggufrope._plain import Plain, decode, encode, json_schema
from ggufrope.container.ggml import KvTypes as KvTypes
from ggufrope.errors import RequestError
from ggufrope.evals.task import TaskName, TaskSettings
from ggufrope.evals.verdict import Thresholds
from ggufrope.patching.request import ScalingName, ScalingRequest

if TYPE_CHECKING:
    from pathlib import Path


MIN_CONTEXT = 128
"""Tokens: below, a question and its answer leave no room for a haystack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """How models are loaded and evaluated. What is None is left to the runtime."""

    gpu_layers: Literal["all", "auto"] | int = "all"
    devices: tuple[str, ...] = field(
        default=(),
        metadata={"help": "CUDA devices, one worker for each; none: one for all"},
    )
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] = ()
    flash_attention: bool | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(TaskSettings):
    """Everything needed to repeat a run, but for the files it names: the settings of its tasks, and
    what they are run on."""

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
    runtime: RuntimeSettings = RuntimeSettings()
    thresholds: Thresholds = field(default_factory=Thresholds)
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        problems = [*self._empty(), *self._repeated(), *self._out_of_range()]
        if problems:
            raise RequestError("; ".join(problems))

    @property
    def trials(self) -> tuple[ScalingRequest, ...]:
        """`scalings`, the short forms spelled out."""
        return tuple(
            item if isinstance(item, ScalingRequest) else ScalingRequest(scaling=item)
            for item in self.scalings
        )

    @property
    def kv_types(self) -> tuple[KvTypes, ...]:
        return tuple(KvTypes.parse(text) for text in self.kv)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file the plan names, its models aside."""
        named = (name for trial in self.trials for name in trial.files)
        return tuple(dict.fromkeys((*self.setting_files, *named)))

    def _empty(self) -> list[str]:
        names = ("models", "contexts", "tasks", "scalings", "kv", "seeds")
        return [f"{name} is empty" for name in names if getattr(self, name) == ()]

    def _repeated(self) -> list[str]:
        lists: dict[str, tuple[object, ...]] = {
            "models": self.models,
            "contexts": self.contexts,
            "tasks": self.tasks,
            "names of scalings": tuple(trial.name for trial in self.trials),
            "kv": self.kv,
            "seeds": self.seeds,
        }
        return [
            f"{name} has {value!r} more than once"
            for name, values in lists.items()
            for value in dict.fromkeys(v for v in values if values.count(v) > 1)
        ]

    def _out_of_range(self) -> list[str]:
        problems = [
            f"context {tokens} is too short: at least {MIN_CONTEXT} tokens"
            for tokens in self.contexts
            if tokens < MIN_CONTEXT
        ]
        problems += self.setting_problems()
        for text in self.kv:
            try:
                KvTypes.parse(text)
            except RequestError as error:
                problems.append(str(error))
        if self.tasks and "divergence" in self.tasks and self._is_base_alone():
            problems.append(
                "divergence is from the file with an f16 cache: give another scaling or cache type"
            )
        return problems

    def _is_base_alone(self) -> bool:
        return set(self.kv) == {"f16"} and all(trial.is_file for trial in self.trials)


# Plans as TOML files, and the JSON Schema that lets an editor complete them.

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_plan(path: Path) -> RunPlan:
    """The plan in a TOML file.

    Raises StorageError where the file cannot be read, RequestError where it is not TOML (with line
    and column) or not a plan (with every problem, and the nearest known key for an unknown one).
    """
    return parse_plan(read_text(path), where=str(path))


def parse_plan(text: str, *, where: str = "plan") -> RunPlan:
    """The plan in TOML `text`; `where` is what messages call it. Raises RequestError."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{where}: not TOML: {error}") from error
    return decode(RunPlan, plain, where=where)


def format_plan(plan: RunPlan) -> str:
    """TOML that `parse_plan` reads back to an equal plan."""
    settings = {item.name for item in fields(TaskSettings)}
    plain = dict(sorted(encode(plan).items(), key=lambda item: item[0] in settings))
    tables = {name: value for name, value in plain.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def plan_schema() -> dict[str, Plain]:
    """The JSON Schema of a plan file; `plan.schema.json` in this package holds it for editors."""
    return json_schema(RunPlan, title="A ggufrope run plan")


def _toml(value: Plain) -> str:
    """A value on one line. JSON's strings, numbers and lists are TOML's, but for U+007F."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
