"""The options of `validate` and `compare`: what is measured, how, and the limits of the verdict.

Defaults, choices and the words of the thresholds are those of the run plan.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_origin, get_type_hints

import typer

from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.evals.ruler.specs import BY_NAME
from ggufrope.evals.task import (
    ASKING,
    SPLICED_SAMPLES,
    Haystack,
    RulerSettings,
    TaskName,
    carried_out,
)
from ggufrope.evals.thresholds import Thresholds, without_task
from ggufrope.runs.plan import KV_TYPES, RunPlan

from .errors import OTHER_FLAGS, OptionError
from .options import RPC_HELP, option
from .start import default_contexts
from .values import (
    cache_type,
    experts,
    kv_types,
    layers,
    llama_lib,
    seconds,
    server_address,
    servers,
    share,
    token_counts,
    tokens,
    word,
    words,
)

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest

_WHAT, _HOW, _JUDGE = "What is measured", "How it is run", "Verdict"
_DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(RunPlan)}
_KINDS = get_type_hints(RunPlan)
_THRESHOLDS = {item.name: item for item in fields(Thresholds)}


def _choices(name: str) -> tuple[str, ...]:
    """Return the words that a field of the plan accepts, or accepts several of."""
    kind = _KINDS[name]
    return get_args(get_args(kind)[0] if get_origin(kind) is tuple else kind)


def _threshold(name: str, metavar: str) -> Any:
    """Return the option of a threshold, with the help and the default that the plan has."""
    item, flag = _THRESHOLDS[name], OTHER_FLAGS[name]
    default = "no limit" if item.default is None else f"{item.default:g}"
    words = item.metadata["help"]
    help_ = f"{words[0].upper()}{words[1:]}; default: {default}."
    return option(flag, help_, metavar, _JUDGE, parser=share(flag) if metavar == "SHARE" else None)


GridsOption = Annotated[
    bool, typer.Option("--grids", help="Show the needles too, depth by length.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The values of the options; `plan` turns them into a RunPlan."""

    ctx: Annotated[
        str | None,
        option(
            "--ctx",
            "Context lengths in tokens: 4096,8k,16k. A scaling reaches the longest; default: up to "
            "the target, or the file's.",
            "A,B,…",
            _WHAT,
        ),
    ] = None
    depths: Annotated[
        str,
        option(
            "--depths",
            "Number of needle depths, evenly spread, or depths in percent: 0,50,100.",
            "N|A,B,…",
            _WHAT,
        ),
    ] = str(_DEFAULTS["depths"])
    kv: Annotated[
        str,
        option(
            "--kv",
            "KV cache types, K or K/V: f16,q8_0,q8_0/q4_0; default of the task kv: all pairs of "
            f"{', '.join(KV_TYPES)}.",
            "TYPES",
            _WHAT,
            known=kv_types,
        ),
    ] = ",".join(_DEFAULTS["kv"])
    tasks: Annotated[
        str,
        option(
            "--tasks",
            f"Tasks: {', '.join(_choices('tasks'))}; kv answers which cache is safe.",
            "TASKS",
            _WHAT,
            known=partial(_choices, "tasks"),
        ),
    ] = ",".join(_DEFAULTS["tasks"])
    base: Annotated[
        str | None,
        option(
            "--base",
            "File to compare with in divergence and short-context, in place of the model's own: "
            "what a quantization costs.",
            "FILE",
            _WHAT,
        ),
    ] = None
    mode: Annotated[
        str,
        option(
            "--mode",
            "spliced: all needles in one prefill, and whole prompts until they decide; "
            "whole: one prompt per needle.",
            "MODE",
            _WHAT,
            known=partial(_choices, "mode"),
        ),
    ] = _DEFAULTS["mode"]
    whole_prompts: Annotated[
        int,
        option(
            "--whole-prompts",
            "At most so many whole prompts at each length confirm spliced needles.",
            "N",
            _WHAT,
            min=0,
        ),
    ] = _DEFAULTS["whole_prompts"]
    control: Annotated[
        bool,
        typer.Option(
            "--control/--no-control",
            help="Measure the unscaled model within its native context, for comparison.",
            rich_help_panel=_WHAT,
        ),
    ] = _DEFAULTS["control"]
    haystack: Annotated[
        str,
        option(
            "--haystack",
            "Text around the needles: noise, essay or a file.",
            "KIND|FILE",
            _WHAT,
            known=partial(tuple, ("noise", "essay")),
        ),
    ] = _DEFAULTS["haystack"].kind
    needle: Annotated[
        str,
        option(
            "--needle",
            f"Kind of needle: {', '.join(_choices('needle'))}.",
            "KIND",
            _WHAT,
            known=partial(_choices, "needle"),
        ),
    ] = _DEFAULTS["needle"]
    value: Annotated[
        str,
        option(
            "--value",
            f"Value of a needle: {', '.join(_choices('value'))}.",
            "KIND",
            _WHAT,
            known=partial(_choices, "value"),
        ),
    ] = _DEFAULTS["value"]
    distractors: Annotated[
        int,
        option(
            "--distractors",
            "Wrong answers that a needle's answer is ranked among.",
            "N",
            _WHAT,
            min=0,
        ),
    ] = _DEFAULTS["distractors"]
    samples: Annotated[
        int | None,
        option(
            "--samples",
            f"Samples per cell, each with a new needle; default: {SPLICED_SAMPLES} of a needle, "
            "16 of a damage task, 1 of other tasks.",
            "N",
            _WHAT,
            min=1,
        ),
    ] = None
    seed: Annotated[int, option("--seed", "Seed of all prompts.", "N", _WHAT)] = _DEFAULTS["seeds"][
        0
    ]
    text: Annotated[
        Path | None,
        option(
            "--text",
            "Text for perplexity and divergence; default: Python's help topics.",
            "FILE",
            _WHAT,
        ),
    ] = None
    chunks: Annotated[
        int,
        option(
            "--chunks", "Maximum number of context-length chunks of the text.", "N", _WHAT, min=1
        ),
    ] = _DEFAULTS["chunks"]
    format: Annotated[
        str,
        option(
            "--format",
            "How a model is asked: chat, in the template of the file; completion; auto: chat "
            "where there is a template.",
            "FORMAT",
            _WHAT,
            known=partial(_choices, "format"),
        ),
    ] = _DEFAULTS["format"]
    thinking: Annotated[
        str | None,
        option(
            "--thinking",
            "Whether a chat model thinks, on or off, where its template has the choice; "
            "default: off.",
            "on|off",
            _WHAT,
            known=partial(tuple, ("on", "off")),
        ),
    ] = None
    ruler_tasks: Annotated[
        str | None,
        option(
            "--ruler-tasks",
            "Tasks by RULER's names; default: all that have their data.",
            "A,B,…",
            _WHAT,
            known=partial(tuple, BY_NAME),
        ),
    ] = None
    squad: Annotated[
        Path | None, option("--squad", "SQuAD file, for RULER's qa_1.", "FILE", _WHAT)
    ] = None
    hotpotqa: Annotated[
        Path | None, option("--hotpotqa", "HotpotQA file, for RULER's qa_2.", "FILE", _WHAT)
    ] = None
    templates: Annotated[
        Path | None,
        option("--templates", "JSON of RULER prompts that replace ours.", "FILE", _WHAT),
    ] = None
    llama_lib: Annotated[
        str | None,
        option(
            "--llama-lib",
            "Folder of another build of llama.cpp; default: LLAMA_CPP_LIB_PATH, else the one "
            "installed.",
            "FOLDER",
            _HOW,
        ),
    ] = None
    gpu_layers: Annotated[
        str,
        option(
            "--gpu-layers",
            "Layers on the GPU: all, auto or a number.",
            "N",
            _HOW,
            known=partial(tuple, ("all", "auto")),
        ),
    ] = "all"
    experts_on_cpu: Annotated[
        str,
        option(
            "--experts-on-cpu",
            "Layers, from the first, whose experts stay on the CPU in a mixture of experts: all or "
            "a number.",
            "N",
            _HOW,
            known=partial(tuple, ("all",)),
        ),
    ] = "0"
    rpc: Annotated[str | None, option("--rpc", RPC_HELP, "HOST:PORT,…", _HOW)] = None
    threads: Annotated[
        int | None, option("--threads", "CPU threads; default: every CPU.", "N", _HOW, min=1)
    ] = None
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="Use flash attention, or do not; default: llama.cpp decides.",
            rich_help_panel=_HOW,
        ),
    ] = None
    server: Annotated[
        str | None,
        option(
            "--server",
            "Ask a running server in the place of a FILE: http://localhost:8080. A key it requires "
            "is read from GGUFROPE_API_KEY.",
            "URL",
            _HOW,
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        option(
            "--model",
            "Model of the server; default: its only one. `compare` takes several.",
            "NAME",
            _HOW,
        ),
    ] = None
    num_ctx: Annotated[
        int | None,
        typer.Option(
            "--num-ctx",
            metavar="TOKENS",
            help="Context that each request to an Ollama server asks for.",
            rich_help_panel=_HOW,
            parser=tokens("--num-ctx"),
        ),
    ] = None
    parallel: Annotated[
        int | None,
        option(
            "--parallel",
            "Prompts to a server at once; default: its slots, where it tells them.",
            "N",
            _HOW,
            min=1,
        ),
    ] = None
    timeout: Annotated[
        str | None,
        option(
            "--timeout",
            "Longest silence of a server before a cell is an error; default: 30m.",
            "TIME",
            _HOW,
        ),
    ] = None
    out: Annotated[
        Path | None,
        option(
            "--out",
            "Folder that keeps the results; the same command resumes. Default: runs/NAME-1, -2, …",
            "DIR",
            _HOW,
        ),
    ] = None
    min_recall: Annotated[float | None, _threshold("recall", "SHARE")] = None
    min_recall_share: Annotated[float | None, _threshold("recall_share", "SHARE")] = None
    min_top_ranked: Annotated[float | None, _threshold("top_ranked", "SHARE")] = None
    min_ruler_share: Annotated[float | None, _threshold("ruler_share", "SHARE")] = None
    max_short_nll: Annotated[float | None, _threshold("short_context_nll", "NAT")] = None
    max_long_nll: Annotated[float | None, _threshold("long_context_nll", "NAT")] = None
    max_divergence: Annotated[float | None, _threshold("divergence", "NAT")] = None
    allow_undecided: Annotated[
        bool,
        typer.Option(
            "--allow-undecided",
            help="Exit 0 where a check is undecided, and none fails.",
            rich_help_panel=_JUDGE,
        ),
    ] = False

    def plan(
        self, file: str | None, requests: tuple[ScalingRequest, ...], *, require: str | None = None
    ) -> RunPlan:
        """Return the plan for a file under these scalings, or for models of a server; `require` is
        the scaling to judge.

        Raises OptionError or RequestError.
        """
        models = self._models(file)
        ruler_tasks: tuple[str, ...] = ()
        if self.ruler_tasks is not None:
            ruler_tasks = words(self.ruler_tasks, "--ruler-tasks", tuple(BY_NAME))
        if self.ctx is not None:
            contexts = token_counts(self.ctx, "--ctx")
        elif file is None:
            raise OptionError("--server needs --ctx, such as 8k,16k: the lengths to measure")
        else:
            contexts = default_contexts(file, requests)
        chosen: dict[str, Any] = {
            "tasks": words(self.tasks, "--tasks", _choices("tasks")),
            "mode": word(self.mode, "--mode", _choices("mode")),
            "needle": word(self.needle, "--needle", _choices("needle")),
            "value": word(self.value, "--value", _choices("value")),
            "format": word(self.format, "--format", _choices("format")),
            "thinking": _switch(self.thinking, "--thinking"),
        }
        self._refuse_idle(chosen["tasks"])
        return RunPlan(
            models=models,
            contexts=contexts,
            scalings=requests,
            base=self.base,
            kv=tuple(cache_type(each, "--kv") for each in self.kv.split(",")),
            depths=_depths(self.depths),
            samples=self.samples,
            whole_prompts=self.whole_prompts,
            distractors=self.distractors,
            control=self.control,
            seeds=(self.seed,),
            haystack=_haystack(self.haystack),
            text=_name(self.text),
            chunks=self.chunks,
            ruler=RulerSettings(
                tasks=ruler_tasks,
                squad=_name(self.squad),
                hotpotqa=_name(self.hotpotqa),
                templates=_name(self.templates),
            ),
            runtime=RuntimeSettings(
                llama_lib=self.llama_lib if self.server else llama_lib(self.llama_lib),
                gpu_layers=layers(self.gpu_layers),
                experts_on_cpu=experts(self.experts_on_cpu),
                rpc=servers(self.rpc),
                threads=self.threads,
                flash_attention=self.flash_attention,
                server=None if self.server is None else server_address(self.server),
                timeout_seconds=None
                if self.timeout is None
                else seconds(self.timeout, "--timeout"),
                parallel=self.parallel,
                num_ctx=self.num_ctx,
            ),
            thresholds=self._thresholds(chosen["tasks"], require),
            **chosen,
        )

    def _models(self, file: str | None) -> tuple[str, ...]:
        """Return the models of the plan: a file, or those named at the server."""
        if self.server is None:
            if file is None:
                raise OptionError("missing FILE, a model; or --server, the address of a server")
            if self.model is not None:
                raise OptionError("--model is for --server: FILE is the model")
            return (file,)
        if file is not None:
            raise OptionError(f"{file}: with --server give no FILE; --model names its model")
        return tuple(self.model or ())

    def _refuse_idle(self, tasks: tuple[TaskName, ...]) -> None:
        """Raise OptionError where an option is of tasks that are not carried out."""
        measured = {*carried_out(tasks)}
        for names, its in _OF_TASKS.items():
            given = [name for name in names if getattr(self, name) != _default(name)]
            if given and not measured & {*its}:
                flag = "--" + given[0].replace("_", "-")
                raise OptionError(f"{flag} has no effect on {self.tasks}: it is for {_or(its)}")

    def _thresholds(self, tasks: tuple[TaskName, ...], require: str | None) -> Thresholds:
        options = {
            "recall": self.min_recall,
            "recall_share": self.min_recall_share,
            "top_ranked": self.min_top_ranked,
            "ruler_share": self.min_ruler_share,
            "short_context_nll": self.max_short_nll,
            "long_context_nll": self.max_long_nll,
            "divergence": self.max_divergence,
        }
        given: dict[str, Any] = {n: value for n, value in options.items() if value is not None}
        if problems := tuple(without_task(given, carried_out(tasks))):
            raise RequestError("; ".join(problems))
        return Thresholds(
            allow_undecided=self.allow_undecided, require=require, given=tuple(given), **given
        )


_IN_TEXTS = ("perplexity", "divergence", "rounding", "short-context")
_OF_TASKS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("text",): _IN_TEXTS,
    ("chunks",): _IN_TEXTS[:3],
    ("ruler_tasks", "squad", "hotpotqa", "templates"): ("ruler",),
    ("needle",): ("needle",),
    ("value",): ("needle", "multikey"),
    ("haystack",): tuple(sorted(ASKING - {"kv", "passkey", "ruler"})),
    ("mode", "whole_prompts"): ("needle", "passkey"),
    ("depths", "distractors"): ("needle", "passkey", "multikey"),
}
"""The options that only some tasks read, and those tasks."""


def _default(name: str) -> object:
    return next(each.default for each in fields(RunOptions) if each.name == name)


def _or(tasks: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(tasks[:-1]), tasks[-1])))


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _switch(text: str | None, flag: str) -> bool | None:
    return None if text is None else word(text, flag, ("on", "off")) == "on"


def _haystack(text: str) -> Haystack:
    if Path(text).is_file():
        return Haystack(kind="text", file=text)
    return Haystack(
        kind=cast("Any", word(text, "--haystack", ("noise", "essay"), other="a text file"))
    )


def _depths(text: str) -> int | tuple[float, ...]:
    if text.isdecimal() and len(text) < 18:
        return int(text)
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise OptionError(
            f"--depths {text}: expected a number, or percents as in 0,50,100"
        ) from None
