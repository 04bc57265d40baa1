"""The options of what is measured: shared by `validate` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ggufrope.evals.task import DEFAULT_DEPTHS

from .options import option
from .values import token_counts

if TYPE_CHECKING:
    from ggufrope.evals.verdict import Thresholds
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.runs.plan import RunPlan

_WHAT, _HOW, _JUDGE = "What is measured", "How it is run", "Verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the options said; `plan` makes the RunPlan of it."""

    ctx: Annotated[str, option("--ctx", "Context lengths in tokens: 4096,8k,16k.", "A,B,…", _WHAT)]
    depths: Annotated[
        str, option("--depths", "How many depths, or percents: 0,50,100.", "N|A,B,…", _WHAT)
    ] = str(DEFAULT_DEPTHS)
    kv: Annotated[
        str, option("--kv", "Cache types, K or K/V: f16,q8_0,q8_0/q4_0.", "TYPES", _WHAT)
    ] = "f16"
    tasks: Annotated[
        str,
        option(
            "--tasks",
            "needle, passkey, ruler, perplexity, divergence, short-context, kv-cache.",
            "TASKS",
            _WHAT,
        ),
    ] = "needle"
    mode: Annotated[
        str,
        option("--mode", "one-pass shares one prefill; isolated: a prompt a cell.", "MODE", _WHAT),
    ] = "one-pass"
    haystack: Annotated[
        str, option("--haystack", "noise, essay, or a text file.", "KIND|FILE", _WHAT)
    ] = "essay"
    value: Annotated[
        str, option("--value", "What is hidden: number, word or uuid.", "KIND", _WHAT)
    ] = "number"
    samples: Annotated[
        int, option("--samples", "Times each cell is measured, anew.", "N", _WHAT, min=1)
    ] = 1
    seed: Annotated[int, option("--seed", "Seed of every prompt.", "N", _WHAT)] = 0
    text: Annotated[
        Path | None,
        option(
            "--text",
            "Text of perplexity and divergence; default: Python's help topics.",
            "FILE",
            _WHAT,
        ),
    ] = None
    chunks: Annotated[
        int, option("--chunks", "Contexts of text read at most.", "N", _WHAT, min=1)
    ] = 4
    ruler_tasks: Annotated[
        str | None, option("--ruler-tasks", "RULER's names; default: all.", "A,B,…", _WHAT)
    ] = None
    squad: Annotated[
        Path | None, option("--squad", "SQuAD file, for RULER's qa_1.", "FILE", _WHAT)
    ] = None
    hotpotqa: Annotated[
        Path | None, option("--hotpotqa", "HotpotQA file, for qa_2.", "FILE", _WHAT)
    ] = None
    templates: Annotated[
        Path | None,
        option("--templates", "JSON of RULER prompts that replace ours.", "FILE", _WHAT),
    ] = None
    gpu_layers: Annotated[
        str, option("--gpu-layers", "Layers on the GPU: all, auto or a number.", "N", _HOW)
    ] = "all"
    threads: Annotated[
        int | None, option("--threads", "Threads; default: every CPU.", "N", _HOW, min=1)
    ] = None
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="Default: as llama.cpp decides.",
            rich_help_panel=_HOW,
        ),
    ] = None
    out: Annotated[
        Path | None,
        option("--out", "Folder that keeps the results; the same call resumes.", "DIR", _HOW),
    ] = None
    min_recall: Annotated[
        float | None,
        option("--min-recall", "Least needle recall at each length [0.9].", "SHARE", _JUDGE),
    ] = None
    min_top_ranked: Annotated[
        float | None,
        option("--min-top-ranked", "Least share that no distractor beat.", "SHARE", _JUDGE),
    ] = None
    min_ruler_share: Annotated[
        float | None,
        option("--min-ruler-share", "Least share of the shortest mean [0.85].", "SHARE", _JUDGE),
    ] = None
    max_short_nll: Annotated[
        float | None,
        option("--max-short-nll", "Most nat/token lost in short context [0.5].", "NAT", _JUDGE),
    ] = None
    max_long_nll: Annotated[
        float | None,
        option("--max-long-nll", "Most nat/token lost at a length [1.0].", "NAT", _JUDGE),
    ] = None
    max_divergence: Annotated[
        float | None,
        option("--max-divergence", "Most mean divergence from the base.", "NAT", _JUDGE),
    ] = None

    def plan(self, model: str, trials: tuple[ScalingRequest, ...]) -> RunPlan:
        """The plan for one model under `trials`. Raises RequestError naming the option."""
        from ggufrope.errors import RequestError
        from ggufrope.evals.task import Haystack, RulerSettings
        from ggufrope.runs.plan import RunPlan, RuntimeSettings

        words: dict[str, Any] = {
            "tasks": tuple(self.tasks.split(",")),
            "kv": tuple(self.kv.split(",")),
            "mode": self.mode,
            "value": self.value,
        }
        _check_words(words)
        builtin = self.haystack in ("noise", "essay")
        if not builtin and not Path(self.haystack).is_file():
            raise RequestError(f"--haystack {self.haystack}: expected noise, essay or a text file")
        haystack = (
            Haystack(kind=cast("Any", self.haystack))
            if builtin
            else Haystack(kind="text", file=self.haystack)
        )
        return RunPlan(
            models=(model,),
            contexts=token_counts(self.ctx, "--ctx"),
            scalings=trials,
            depths=_depths(self.depths),
            samples=self.samples,
            seeds=(self.seed,),
            haystack=haystack,
            text=_name(self.text),
            chunks=self.chunks,
            ruler=RulerSettings(
                tasks=tuple(self.ruler_tasks.split(",")) if self.ruler_tasks else (),
                squad=_name(self.squad),
                hotpotqa=_name(self.hotpotqa),
                templates=_name(self.templates),
            ),
            runtime=RuntimeSettings(
                gpu_layers=_gpu_layers(self.gpu_layers),
                threads=self.threads,
                flash_attention=self.flash_attention,
            ),
            thresholds=self._thresholds(),
            **words,
        )

    def _thresholds(self) -> Thresholds:
        from ggufrope.evals.verdict import Thresholds

        said = {
            "recall": self.min_recall,
            "top_ranked": self.min_top_ranked,
            "ruler_share": self.min_ruler_share,
            "short_context_nll": self.max_short_nll,
            "long_context_nll": self.max_long_nll,
            "divergence": self.max_divergence,
        }
        return Thresholds(**{name: value for name, value in said.items() if value is not None})


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check_words(words: dict[str, Any]) -> None:
    from typing import get_args

    from ggufrope.errors import RequestError
    from ggufrope.evals.facts import ValueKind
    from ggufrope.evals.task import TaskName

    known = {
        "tasks": get_args(TaskName),
        "mode": ("one-pass", "isolated"),
        "value": get_args(ValueKind),
    }
    for name, choices in known.items():
        said = words[name]
        for word in said if isinstance(said, tuple) else (said,):
            if word not in choices:
                raise RequestError(f"--{name} {word}: expected one of {', '.join(choices)}")


def _depths(text: str) -> int | tuple[float, ...]:
    from ggufrope.errors import RequestError

    if text.isdecimal():
        return int(text)
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise RequestError(
            f"--depths {text}: expected a number, or percents as in 0,50,100"
        ) from None


def _gpu_layers(text: str) -> Any:
    from ggufrope.errors import RequestError

    if text in ("all", "auto"):
        return text
    if not text.isdecimal():
        raise RequestError(f"--gpu-layers {text}: expected all, auto or a number")
    return int(text)
