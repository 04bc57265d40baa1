"""What a run measures: models × scalings × KV cache types × tasks × seeds; as TOML, and checked.

A person writes a plan as TOML; `validate` and `compare` build one from their options. Nothing in it
depends on the machine: `models` finds the file that a model's name means.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ggufrope._files import read_text
from ggufrope._plain import Plain, decode, encode, json_schema, non_finite
from ggufrope.backends.settings import SERVED_AS_IT_IS, RuntimeSettings
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import RequestError
from ggufrope.evals.task import ASKING, TaskName, TaskSettings, carried_out
from ggufrope.evals.thresholds import LIMITS, Thresholds, without_task
from ggufrope.patching.request import ScalingName, ScalingRequest, check_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

MIN_CONTEXT = 128
"""Tokens: below, a question and its answer leave no room for a haystack."""
MAX_CONTEXT = 1 << 25
"""Tokens: three times the longest context that any model claims."""
MAX_CELLS = 1_000_000
"""Of one model in a plan: a run keeps each of them in memory."""
MAX_PLAN_BYTES = 1 << 20
MAX_ITEMS = 100_000
"""Of any list in a plan."""
MAX_TEXT = 4096
"""Characters of any text in a plan; the longest that Linux takes for a path."""
MAX_FOLDER_NAME = 200
"""Bytes of the name of a run where its folder is named after it."""
MAX_THREADS = 4096
KV_TYPES = ("f16", "q8_0", "q5_1", "q4_0")
"""Cache types whose pairs the task `kv` measures where a plan names no others."""
MAX_LAYERS = 512
"""Of any model that llama.cpp loads."""
MAX_PARALLEL = 256
MAX_TIMEOUT = 1_000_000
"""Seconds: eleven days."""
_SERVER_SETTINGS = ("server", "timeout_seconds", "parallel", "num_ctx")
AS_SERVED = "as served"
"""The scaling and the cache types of what a server runs, which it chose."""
_KEY_CHARACTERS = re.compile(r"""[\w"'\t -]+""")
_MAX_KEY_DOTS = 100
"""Of one key: thousands of tables in each other take the TOML parser seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(TaskSettings):
    """Everything that repeats a run, except the files it names: the settings of its tasks, and what
    they are run on."""

    models: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "paths, globs, ollama:NAME or hf:OWNER/REPO/FILE; with `server` names of its "
            "models, none: its only one"
        },
    )
    contexts: tuple[int, ...] = field(metadata={"help": "context lengths in tokens"})
    name: str = "run"
    tasks: tuple[TaskName, ...] = ("needle",)
    scalings: tuple[ScalingName | ScalingRequest, ...] = field(
        default=("file",), metadata={"help": "schemes by name, or tables with their parameters"}
    )
    kv: tuple[str, ...] = field(
        default=("f16",),
        metadata={
            "help": "KV cache types, K or K/V, e.g. q8_0/q4_0; the task kv measures f16 too, and "
            f"where it is alone all pairs of {', '.join(KV_TYPES)}"
        },
    )
    base: str | None = field(
        default=None,
        metadata={
            "help": "another file to compare with in place of the model's own: of divergence and "
            "short-context"
        },
    )
    seeds: tuple[int, ...] = (0,)
    runtime: RuntimeSettings = RuntimeSettings()  # noqa: RUF009 (frozen)
    thresholds: Thresholds = field(default_factory=Thresholds)
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        # First what the other checks would take long to look at, or could not say.
        problems = list(_oversized(self)) or [
            *self._empty(),
            *self._repeated(),
            *self._out_of_range(),
        ]
        if problems:
            raise RequestError("; ".join(problems))

    @property
    def requests(self) -> tuple[ScalingRequest, ...]:
        """`scalings`, with a request for each name; a server has its own."""
        if self.runtime.server is not None:
            return (ScalingRequest(scaling="file", label=AS_SERVED),)
        return tuple(
            item if isinstance(item, ScalingRequest) else ScalingRequest(scaling=item)
            for item in self.scalings
        )

    @property
    def kv_types(self) -> tuple[KvTypes, ...]:
        """The pairs of cache types to measure, f16 first for the task `kv`."""
        given = tuple(KvTypes.parse(text) for text in self.kv)
        if not self.answers_kv:
            return given
        f16 = KvTypes.parse("f16")
        if set(given) == {f16}:
            return tuple(KvTypes(k=k, v=v) for k, v in product(KV_TYPES, repeat=2))
        return (f16, *(kv for kv in given if kv != f16))

    @property
    def answers_kv(self) -> bool:
        """Whether the plan asks which KV cache is safe."""
        return "kv" in self.tasks

    @property
    def measured(self) -> tuple[TaskName, ...]:
        """The tasks to carry out, with those that `kv` stands for in its place."""
        return carried_out(self.tasks)

    @property
    def limits(self) -> Thresholds:
        """The thresholds to judge by: for the task `kv` only those that are given, because it
        compares caches with f16, whatever the model itself can do."""
        if not self.answers_kv:
            return self.thresholds
        none: dict[str, Any] = dict.fromkeys({*LIMITS} - {*self.gates})
        return replace(self.thresholds, **none)

    @property
    def gates(self) -> tuple[str, ...]:
        """The names of the limits that are given: they are listed, or differ from their
        defaults."""
        at, default = self.thresholds, Thresholds()
        usual = {name: (None, getattr(default, name)) for name in LIMITS}
        return tuple(
            name for name in LIMITS if name in at.given or getattr(at, name) not in usual[name]
        )

    def settings_of(self, task: TaskName) -> TaskSettings:
        """Return the settings of one task. The needles of `kv` have no whole prompts unless their
        recall is to be judged: each cache is compared with f16 on the same spliced ones."""
        judged = {"recall", "recall_share"} & set(self.limits.applied(("needle",)))
        if task == "needle" and self.answers_kv and task not in self.tasks and not judged:
            return replace(self, whole_prompts=0)
        return self

    @property
    def folder_name(self) -> str:
        """`name`, as that of a folder. Raises RequestError where it could be none, or another's."""
        name = self.name
        usable = name.isprintable() and not any(character in "/\\:" for character in name)
        if not usable or not name.strip(" .") or len(name.encode()) > MAX_FOLDER_NAME:
            raise RequestError(
                f"name {name[:MAX_FOLDER_NAME]!r} cannot be that of a folder; give the folder of "
                f"the run, or a name of at most {MAX_FOLDER_NAME} bytes without slashes, colons "
                "and control characters"
            )
        return name

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the plan names, without its models."""
        named = (name for request in self.requests for name in request.files)
        return tuple(dict.fromkeys((*self.setting_files, *named)))

    def _empty(self) -> list[str]:
        names = ("models", "contexts", "tasks", "scalings", "kv", "seeds")
        empty = [name for name in names if getattr(self, name) == ()]
        if self.runtime.server is not None:
            empty = [name for name in empty if name != "models"]
        return [f"`{name}` is empty" for name in empty]

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
            f"{name!r} has a NUL character, which no file has"
            for name in (*self.models, *self.files)
            if "\0" in name
        ]
        problems += _runtime_problems(self.runtime)
        problems += self._unserved()
        problems += [
            f"scalings{path} {value} must be a finite number"
            for path, value in non_finite(self.scalings)
        ]
        problems += _refusals(KvTypes.parse, self.kv)
        problems += _refusals(check_parameters, self.requests)
        problems += self._gates_of_nothing()
        problems += self._base_problems()
        if "divergence" in self.tasks and self.base is None and self._is_base_alone():
            problems.append(
                "divergence is from the file with an f16 cache: give another scaling or cache type"
            )
        if "rounding" in self.tasks and all(str(kv) != "f16" for kv in self.kv_types):
            problems.append("rounding is measured with an f16 cache: give it in `kv` too")
        if not problems and self._cells_per_model > MAX_CELLS:
            problems.append(
                f"the plan has up to {self._cells_per_model} cells per model, at most {MAX_CELLS} "
                "are possible; give fewer contexts, depths, samples, seeds, scalings or cache types"
            )
        return problems

    def _gates_of_nothing(self) -> Iterator[str]:
        """Say which thresholds apply to nothing that the plan measures."""
        at = self.thresholds
        yield from without_task(self.gates, self.measured)
        for name in ("ruler_share", "long_context_nll"):
            if name in self.gates and len(self.contexts) == 1:
                yield f"`{name}` compares lengths: give two `contexts` or more"
        if at.recall_share is not None and not self.control:
            yield "`recall_share` needs `control`"
        if at.top_ranked is not None and not self.distractors and "multikey" not in self.tasks:
            yield "`top_ranked` needs `distractors`"
        names = {name: None for each in self.requests for name in (each.scaling, each.name)}
        if at.require is not None and at.require not in names:
            yield f"`require` {at.require}: no scaling of the plan; it has {', '.join(names)}"
        if at.require is not None and not self.limits.applied(self.measured):
            yield f"`require` {at.require}: no threshold applies to `tasks` {' '.join(self.tasks)}"

    def _unserved(self) -> Iterator[str]:
        """Say what of the plan a server cannot do."""
        if self.runtime.server is None:
            return
        own = ("file", ScalingRequest(scaling="file"))
        if any(each not in own for each in self.scalings) or self.kv != ("f16",):
            yield SERVED_AS_IT_IS
        if self.mode == "spliced" and not self.whole_prompts:
            yield "`whole_prompts` 0: a server takes nothing else"
        if self.runtime.llama_lib is not None:
            yield "`llama_lib` is for models in this process, and a server has its own"
        if self.base is not None:
            yield "`base` is for files: what a server gives is compared with no other model"
        if unable := [task for task in self.measured if task not in ASKING]:
            yield (
                f"`tasks` {', '.join(unable)}: a server gives no logits; it can be asked "
                f"{', '.join(sorted(ASKING - {'kv'}))}"
            )

    @property
    def _cells_per_model(self) -> int:
        """Upper limit of the cells of one model, RULER's tasks aside."""
        depths = self.depths if isinstance(self.depths, int) else len(self.depths)
        axes = (self.contexts, self.measured, self.scalings, self.kv_types, self.seeds)
        return prod(map(len, axes)) * depths * self.needle_samples

    def _base_problems(self) -> Iterator[str]:
        if self.base is None:
            return
        if "\0" in self.base:
            yield f"{self.base!r} has a NUL character, which no file has"
        if not {"divergence", "short-context"} & set(self.tasks):
            yield "`base` needs `tasks` divergence or short-context"
        if self.answers_kv:
            yield (
                "`base` and `tasks` kv: what a cache costs is measured from the same file with an "
                "f16 cache; what the file costs is a run of its own"
            )

    def _is_base_alone(self) -> bool:
        if self.answers_kv:
            return False
        return set(map(_short_form, self.kv)) == {"f16"} and all(
            request.is_file for request in self.requests
        )


def _refusals(check: Callable[[T], object], values: Iterable[T]) -> Iterator[str]:
    """Yield what `check` says of each value that it refuses."""
    for value in values:
        try:
            check(value)
        except RequestError as error:
            yield str(error)


def _oversized(value: object, path: str = "") -> Iterator[str]:
    """Say which lists, texts and numbers of a record are larger than any that can be meant."""
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _oversized(getattr(value, item.name), f"{path}.{item.name}".lstrip("."))
    elif isinstance(value, tuple):
        if len(value) > MAX_ITEMS:
            yield f"`{path}` has {len(value)} items, at most {MAX_ITEMS} are possible"
        else:
            for index, each in enumerate(value):
                yield from _oversized(each, f"{path}[{index}]")
    elif isinstance(value, str):
        if len(value) > MAX_TEXT:
            yield f"`{path}` has {len(value)} characters, at most {MAX_TEXT} are possible"
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        yield f"`{path}` is a number of {value.bit_length()} bits, at most 63 are possible"


def _runtime_problems(runtime: RuntimeSettings) -> Iterator[str]:
    """Say which numbers of the runtime's settings it cannot take."""
    counts = {
        "gpu_layers": (0, 1 << 31),
        "main_gpu": (0, 1 << 10),
        "experts_on_cpu": (0, MAX_LAYERS),
        "threads": (1, MAX_THREADS),
        "batch_tokens": (1, MAX_CONTEXT),
        "micro_batch_tokens": (1, MAX_CONTEXT),
        "parallel": (1, MAX_PARALLEL),
        "num_ctx": (1, MAX_CONTEXT),
    }
    for name, (least, most) in counts.items():
        value = getattr(runtime, name)
        if isinstance(value, int) and not least <= value <= most:
            yield f"`{name}` {value} must be {least} to {most}"
    yield from runtime.rpc_problems()
    if runtime.server is not None:
        from ggufrope.server.address import normal_address

        yield from _refusals(normal_address, [runtime.server])
    for item in fields(runtime):
        of_server = item.name in _SERVER_SETTINGS
        if getattr(runtime, item.name) != item.default and of_server == (runtime.server is None):
            yield f"`{item.name}` is for {'a `server`' if of_server else 'models loaded here'}"
    if runtime.timeout_seconds is not None and not 0 < runtime.timeout_seconds < MAX_TIMEOUT:
        yield f"`timeout_seconds` {runtime.timeout_seconds:g} must be above 0, below {MAX_TIMEOUT}"
    for share in runtime.tensor_split:
        if not (math.isfinite(share) and share >= 0):
            yield f"`tensor_split` {share} must be a finite number, 0 or more"


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
    return parse_plan(read_text(path, most=MAX_PLAN_BYTES), where=str(path))


def parse_plan(text: str, *, where: str = "plan") -> RunPlan:
    """Return the plan in TOML `text`; messages call it `where`. Raises RequestError."""
    if len(text) > MAX_PLAN_BYTES:
        raise RequestError(f"{where}: longer than {MAX_PLAN_BYTES} characters: not a plan")
    if "." * _MAX_KEY_DOTS in _KEY_CHARACTERS.sub("", text):
        raise RequestError(f"{where}: its tables are nested too deeply")
    try:
        plain = tomllib.loads(text)
        limits = plain.get("thresholds")
        if isinstance(limits, dict):
            limits.setdefault("given", [name for name in limits if name in LIMITS])
        return decode(RunPlan, plain, where=where)
    except RequestError:
        raise
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{where}: not TOML: {error}") from error
    except (ValueError, OverflowError):  # Python's limit on the digits of a number
        raise RequestError(f"{where}: a number in it has too many digits") from None
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
    """Return plan `before` with the thresholds, the name and the patience with a server of `after`:
    nothing is measured by them."""
    runtime = replace(before.runtime, timeout_seconds=after.runtime.timeout_seconds)
    return replace(before, thresholds=after.thresholds, name=after.name, runtime=runtime)


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
