"""What a task is: its settings, the cells it fills, what it is given, and what it yields.

A task measures one thing in many cells: needles at every length and depth, or the perplexity of a
text at every length. Each task is one module of this package that ends in a `Task` value, listed in
`ggufrope.evals.registry`. Whoever carries out a plan asks the task which cells it fills
(`places`) and how many tokens that takes (`tokens`), then runs it and stores each `CellResult` as
it comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.facts import NeedleKind, ValueKind
from ggufrope.evals.results import Method
from ggufrope.evals.ruler.specs import BY_NAME, RULER_TASKS, RulerSpec

if TYPE_CHECKING:
    from ggufrope.evals.results import Cell, CellResult
    from ggufrope.lm import LanguageModel, OpenContext, Progress

TaskName: TypeAlias = Literal[
    "needle",
    "passkey",
    "multikey",
    "ruler",
    "perplexity",
    "divergence",
    "rounding",
    "short-context",
    "kv-cache",
    "arithmetic",
    "tool-call",
    "ordered-copies",
    "graph-walk",
    "code-bug",
    "kv",
]
KV_TASKS: tuple[TaskName, ...] = (
    *("divergence", "rounding", "needle"),
    *("arithmetic", "tool-call", "ordered-copies", "graph-walk", "code-bug"),
    "kv-cache",
)
"""What the task `kv` stands for: all that tells whether a KV cache is safe."""


def carried_out(tasks: Iterable[TaskName]) -> tuple[TaskName, ...]:
    """Return the tasks to carry out, each once, with those that `kv` stands for in its place."""
    each = (KV_TASKS if name == "kv" else (name,) for name in tasks)
    return tuple(dict.fromkeys(chain.from_iterable(each)))


ASKING: frozenset[TaskName] = frozenset(
    {
        *("needle", "passkey", "multikey", "ruler", "kv"),
        *("arithmetic", "tool-call", "ordered-copies", "graph-walk", "code-bug"),
    }
)
"""The tasks whose prompts have the `format` of the settings."""
FormatName: TypeAlias = Literal["auto", "chat", "completion"]
"""How a model is asked: `auto` is chat where the file has a chat template."""
SPLICED_SAMPLES = 4
"""Samples of a needle cell by default: in one prefill, each costs its needle and its question."""
DEFAULT_DEPTHS = 11
"""Needle depths of a grid: 0, 10, ... 100 percent."""
Cost: TypeAlias = Literal["cache", "scaling", "file"]
"""What a model differs in from its base."""
BaseKind: TypeAlias = Literal["reference", "original", "itself"]
"""What a task compares a model with. `reference`: the same scaling with an f16 cache, and for that
itself the file as it stands. `original`: the model with no scaling added and an f16 cache.
`itself`: the same setting, its RoPE base changed in its last bits; of f16 caches alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Haystack:
    """The text around needles: `noise`, `essay`, or a text file of the user's."""

    kind: Literal["noise", "essay", "text"] = "essay"
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "text") != (self.file is not None):
            raise RequestError(
                'a haystack of kind "text" needs a file, and only that kind takes one: '
                f"kind is {self.kind!r}, file is {self.file!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSettings:
    """Which RULER-style tasks to run, and the files they need.

    Raises RequestError for an unknown task, and for a question task without its file.
    """

    tasks: tuple[str, ...] = field(
        default=(), metadata={"help": "by RULER's names; none: all there is data for"}
    )
    squad: str | None = field(default=None, metadata={"help": "a SQuAD file, for qa_1"})
    hotpotqa: str | None = field(default=None, metadata={"help": "a HotpotQA file, for qa_2"})
    templates: str | None = field(
        default=None, metadata={"help": "a JSON file of prompts that replace ours"}
    )

    def __post_init__(self) -> None:
        problems = [
            f"unknown RULER task {name!r}; expected some of {', '.join(BY_NAME)}"
            if name not in BY_NAME
            else f"the RULER task {name} needs a {BY_NAME[name].data} file"
            for name in self.tasks
            if name not in BY_NAME or not self._has_data(BY_NAME[name])
        ]
        if problems:
            raise RequestError("; ".join(problems))

    def _has_data(self, spec: RulerSpec) -> bool:
        files = {"squad": self.squad, "hotpotqa": self.hotpotqa}
        return spec.data is None or files[spec.data] is not None

    @property
    def parts(self) -> tuple[str, ...]:
        """The tasks to run, in RULER's order."""
        return tuple(
            spec.name
            for spec in RULER_TASKS
            if (spec.name in self.tasks if self.tasks else self._has_data(spec))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """How tasks measure: the part of a run plan that they read.

    Raises RequestError where a number is out of range.
    """

    depths: int | tuple[float, ...] = field(
        default=DEFAULT_DEPTHS, metadata={"help": "how many, evenly spread, or a list in percent"}
    )
    mode: Method = field(
        default="spliced",
        metadata={
            "help": "spliced: all needles in one prefill, and whole prompts until they decide; "
            "whole: a prompt for every needle"
        },
    )
    whole_prompts: int = field(
        default=44,
        metadata={"help": "at most so many whole prompts at each length confirm spliced needles"},
    )
    control: bool = field(
        default=True,
        metadata={"help": "measure the unscaled model within its native context, for comparison"},
    )
    needle: NeedleKind = field(
        default="standard",
        metadata={"help": "kind: standard states one fact, the others four that are alike"},
    )
    value: ValueKind = field(default="number", metadata={"help": "what a needle's value is"})
    samples: int | None = field(
        default=None,
        metadata={
            "help": "of each cell, with different needles; "
            f"none: {SPLICED_SAMPLES} of a needle, 16 of a damage task, 1 of other tasks"
        },
    )
    distractors: int = field(
        default=0, metadata={"help": "wrong answers that a needle's answer is ranked among"}
    )
    haystack: Haystack = Haystack()
    text: str | None = field(
        default=None, metadata={"help": "text file of perplexity and divergence"}
    )
    chunks: int = field(
        default=4,
        metadata={"help": "at most so many contexts of text for perplexity and divergence"},
    )
    ruler: RulerSettings = RulerSettings()
    format: FormatName = field(
        default="auto", metadata={"help": "auto: in the chat template of the file, if it has one"}
    )
    thinking: bool | None = field(
        default=None, metadata={"help": "of chat models whose template has the choice; none: off"}
    )

    def __post_init__(self) -> None:
        problems = tuple(self.setting_problems())
        if problems:
            raise RequestError("; ".join(problems))

    def setting_problems(self) -> Iterator[str]:
        """Say what is wrong with the settings, one sentence for each problem."""
        if isinstance(self.depths, int):
            if self.depths < 1:
                yield f"depths {self.depths} must be 1 or more, or a list of percents"
        elif not self.depths:
            yield "depths is empty"
        else:
            for percent in self.depths:
                if not 0 <= percent <= 100:
                    yield f"depth {percent:g} is not a percentage from 0 to 100"
            for percent, count in Counter(self.depths).items():
                if count > 1:
                    yield f"`depths` has {percent:g} more than once"
        if self.needle == "latent" and self.value != "number":
            yield f"value {self.value} has no effect: the answers to latent needles are names"
        for name in ("samples", "chunks"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"{name} {value} must be 1 or more"
        for name in ("whole_prompts", "distractors"):
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)} must be 0 or more"

    @property
    def depth_percents(self) -> tuple[float, ...]:
        """Needle depths in percent of the context, ascending."""
        if isinstance(self.depths, tuple):
            return tuple(sorted(self.depths))
        if self.depths == 1:
            return (50.0,)
        return tuple(round(100 * i / (self.depths - 1), 3) for i in range(self.depths))

    @property
    def needle_samples(self) -> int:
        """Samples of each needle cell."""
        return SPLICED_SAMPLES if self.samples is None else self.samples

    @property
    def setting_files(self) -> tuple[str, ...]:
        """Every file that the settings name, once each."""
        ruler = self.ruler
        named = (self.haystack.file, self.text, ruler.squad, ruler.hotpotqa, ruler.templates)
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths in tokens that cells are placed at, `contexts`, and the `native` context that
    the model was trained for, None where the file does not say."""

    contexts: tuple[int, ...]
    native: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Where one cell of a task lies: the fields of `Cell` that a task decides."""

    context_tokens: int
    depth_percent: float | None = None
    sample: int | None = None
    part: str | None = None
    method: Method | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What cells are compared with: its name, and how to open contexts of it. `cost_of` is what
    the comparison is the cost of."""

    name: str
    cost_of: Cost
    open_context: OpenContext


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """One job for a task: fill the `cells` that are not `done`.

    `done` are the results that an earlier try gave. `open_context` opens contexts of the model as
    it is to be measured, `base` is what a task that compares compares it with. `recall_minimum` is
    the recall that a verdict will require, where measuring may end as soon as that is decided.
    `planned` is called with the tokens that the calls of `progress` will add up to, for one part of
    the job after another.
    """

    settings: TaskSettings
    model: LanguageModel
    open_context: OpenContext
    cells: tuple[Cell, ...]
    done: tuple[CellResult, ...] = ()
    recall_minimum: float | None = None
    seed: int = 0
    base: Base | None = None
    planned: Progress | None = None
    progress: Progress | None = None

    @property
    def todo(self) -> tuple[Cell, ...]:
        """The cells to fill, in order."""
        done = {result.cell for result in self.done}
        return tuple(cell for cell in self.cells if cell not in done)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths of the whole job, ascending."""
        return tuple(sorted({cell.context_tokens for cell in self.cells}))

    def plan_tokens(self, count: int) -> None:
        """Report how many tokens will be evaluated."""
        if self.planned is not None:
            self.planned(count)

    @property
    def base_notes(self) -> tuple[tuple[str, str], ...]:
        """What the cells are compared with, for the record of each."""
        base = self.required_base()
        return ("base", base.name), ("cost of", base.cost_of)

    def required_base(self) -> Base:
        """Return the base. Raises RequestError where there is none to compare with."""
        if self.base is None:
            raise RequestError("the file with an f16 cache is the base: it diverges from nothing")
        return self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One evaluation, as a value.

    `places` yields the cells it fills, shortest context first. `tokens` returns the most tokens
    that given cells take to evaluate. `run` yields the result of each cell as it is known, so that
    it can be stored before the next; a BackendError becomes the reason of the cells it concerns,
    and RequestError, where the job cannot be carried out, is raised before anything is evaluated.
    `has_control` is whether a plan measures it within the native context of the unscaled model too,
    in at most `control_tokens` where a shorter context tells what the model cannot do.
    """

    name: TaskName
    places: Callable[[TaskSettings, Lengths], Iterator[Coordinates]]
    tokens: Callable[[TaskSettings, Sequence[Cell]], int]
    run: Callable[[TaskRequest], Iterator[CellResult]]
    compares_with: BaseKind | None = None
    has_control: bool = False
    control_tokens: int | None = None

    @property
    def contexts_at_once(self) -> int:
        """How many contexts it holds open together: a comparison reads its base in lockstep."""
        return 1 if self.compares_with is None else 2


def one_cell_per_length(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    """Yield one cell for each context of the plan."""
    return (Coordinates(context_tokens=tokens) for tokens in sorted(lengths.contexts))
