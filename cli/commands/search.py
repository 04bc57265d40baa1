"""`ggufrope search`: find factors that reach further than the known schemes do."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from ggufrope._format import duration

from ..options import (
    RPC_HELP,
    FileArgument,
    JsonOption,
    LlamaLibOption,
    grouped,
    option,
    token_option,
)
from ..output import console, stderr_console
from ..progress import plain_lines
from ..tables import heading, row, shown, table
from ..values import cache_type, completion, kv_types, seconds, word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.search.engine import SearchProgress
    from ggufrope.search.holdout import Comparison
    from ggufrope.search.plan import SearchPlan
    from ggufrope.search.record import Candidate
    from ggufrope.search.result import SearchResult

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_SHOWN = 10
"""Candidates of each stage of an unfinished search that are shown."""
_WHAT, _HOW, _RUN = "What is searched", "How candidates are judged", "How it is run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of `search`; `plan` makes the SearchPlan of them."""

    target_ctx: Annotated[
        int,
        token_option("--target-ctx", "Context to reach: 16384 or 16k.", _WHAT),
    ]
    orig_ctx: Annotated[
        int | None,
        token_option("--orig-ctx", "Context it was trained for; default: the file's.", _WHAT),
    ] = None
    space: Annotated[
        str,
        option(
            "--space",
            "yarn: its three numbers; yarn-factor: with its factor; base; base-linear; attention: "
            "its factor alone; longrope: every pair; longrope2: pairs from the critical one on.",
            "SPACE",
            _WHAT,
            known=partial(_choices, "space"),
        ),
    ] = "yarn"
    attention: Annotated[
        str,
        option(
            "--attention",
            "Attention factor: free, formula, or none (1).",
            "CHOICE",
            _WHAT,
            known=partial(_choices, "attention"),
        ),
    ] = "free"
    shared_factors: Annotated[
        bool,
        typer.Option(
            "--shared-factors",
            help="Use one set of factors for all context lengths; default: separate short factors.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    fitness: Annotated[
        str,
        option(
            "--fitness",
            "needle (answer tokens only) or perplexity.",
            "FITNESS",
            _HOW,
            known=partial(_choices, "fitness"),
        ),
    ] = "needle"
    text: Annotated[
        Path | None,
        option("--text", "Text for perplexity; default: Python's help topics.", "FILE", _HOW),
    ] = None
    samples: Annotated[
        int, option("--samples", "Needles at each depth of a haystack of the finals.", "N", _HOW)
    ] = 4
    haystacks: Annotated[
        int, option("--haystacks", "Most haystacks for each finalist.", "N", _HOW)
    ] = 8
    screening_samples: Annotated[
        int,
        option("--screening-samples", "The same for a haystack of the screening.", "N", _HOW),
    ] = 4
    screening_ctx: Annotated[
        int | None,
        token_option("--screening-ctx", "Context of the screening; default: the target.", _HOW),
    ] = None
    holdout_haystacks: Annotated[
        int,
        option("--holdout-haystacks", "Most held-out ones for the winner and YaRN.", "N", _HOW),
    ] = 16
    short_weight: Annotated[
        float,
        option(
            "--short-weight",
            "Weight of the original context in the loss of a candidate, 0 to below 1.",
            "SHARE",
            _HOW,
        ),
    ] = 0.0
    optimizer: Annotated[
        str,
        option(
            "--optimizer",
            "cma, or evolution as in the paper.",
            "NAME",
            _RUN,
            known=partial(_choices, "optimizer"),
        ),
    ] = "cma"
    candidates: Annotated[
        int, option("--candidates", "Maximum number of candidates to screen.", "N", _RUN)
    ] = 200
    finalists: Annotated[
        int,
        option("--finalists", "Best candidates to measure at the target.", "N", _RUN),
    ] = 5
    budget: Annotated[
        str | None,
        option("--budget", "Time limit for the whole search: 90s, 45m, 3h.", "TIME", _RUN),
    ] = None
    seed: Annotated[int, option("--seed", "Seed of optimizer and prompts.", "N", _RUN)] = 0

    def plan(self) -> SearchPlan:
        """Return the plan. Raises RequestError."""
        from ggufrope.evals.texts import read_text
        from ggufrope.search.plan import SearchPlan

        return SearchPlan(
            target_context=self.target_ctx,
            original_context=self.orig_ctx,
            space=_chosen("space", self.space),
            attention=_chosen("attention", self.attention),
            fitness=_chosen("fitness", self.fitness),
            optimizer=_chosen("optimizer", self.optimizer),
            candidates=self.candidates,
            finalists=self.finalists,
            samples=self.samples,
            haystacks=self.haystacks,
            screening_samples=self.screening_samples,
            screening_context=self.screening_ctx,
            holdout_haystacks=self.holdout_haystacks,
            short_weight=self.short_weight,
            seed=self.seed,
            budget_seconds=None if self.budget is None else seconds(self.budget, "--budget"),
            text=None if self.text is None else read_text(self.text),
            shared_factors=self.shared_factors,
        )


def _choices(name: str) -> tuple[str, ...]:
    """Return the words that a field of the plan takes."""
    from ggufrope.search.plan import SearchPlan

    return get_args(get_type_hints(SearchPlan)[name])


def _chosen(name: str, text: str) -> Any:
    return word(text, f"--{name}", _choices(name))


@grouped
def command(
    file: FileArgument,
    search: SearchOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder that keeps every candidate and the best; the same command resumes. "
            "Default: NAME-search-TARGET.",
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", metavar="DIR", help="Directory for temporary files."),
    ] = None,
    kv: Annotated[
        str,
        typer.Option(
            "--kv",
            metavar="TYPE",
            help="Cache type, K or K/V.",
            autocompletion=completion(kv_types),
        ),
    ] = "f16",
    llama_lib: LlamaLibOption = None,
    gpu_layers: Annotated[
        str,
        typer.Option("--gpu-layers", metavar="N", help="Layers on the GPU: all, auto or a number."),
    ] = "all",
    experts_on_cpu: Annotated[
        str,
        typer.Option(
            "--experts-on-cpu",
            metavar="N",
            help="Layers whose experts stay on the CPU: all or a number.",
        ),
    ] = "0",
    rpc: Annotated[str | None, typer.Option("--rpc", metavar="HOST:PORT,…", help=RPC_HELP)] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Threads; default: every CPU."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search parameters or factors for a longer context.

    Nothing is retrained. Keeps YaRN unless the winner beats it on needles that the search never
    saw.
    """
    from ggufrope.backends.runtimes import LlamaBackend
    from ggufrope.backends.settings import RuntimeSettings
    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.inspection import read_model
    from ggufrope.search.session import run_search

    from ..errors import outlive_aborts
    from ..output import emit_json
    from ..start import take_llama
    from ..values import experts, layers, model_path, servers
    from ..values import llama_lib as folder_of_llama

    outlive_aborts()
    named = folder_of_llama(llama_lib)
    take_llama(named)
    model = read_model(model_path(file))
    plan = search.plan()
    settings = RuntimeSettings(
        llama_lib=named,
        gpu_layers=layers(gpu_layers),
        experts_on_cpu=experts(experts_on_cpu),
        rpc=servers(rpc),
        threads=threads,
    )
    folder = out or Path(f"{model.path.stem}-search-{plan.target_context}")
    with SearchBoard(plan.budget_seconds) as board, interruption(folder):
        result = run_search(
            model,
            plan,
            LlamaBackend(settings=settings),
            folder=folder,
            kv=KvTypes.parse(cache_type(kv, "--kv")),
            working=work_dir,
            watch=board.watch,
        )
    if json:
        emit_json(asdict(result))
    else:
        show(result, folder)


class SearchBoard:
    """A live display of the stage, the best loss so far, the time left, and recent losses.

    It warns once where even the least of the search takes longer than its budget.
    """

    def __init__(self, budget_seconds: float | None) -> None:
        from rich.live import Live

        self._budget = math.inf if budget_seconds is None else budget_seconds
        self._losses: list[float] = []
        self._stage = ""
        self._line = "starting"
        self._live = Live(console=stderr_console(), transient=True, refresh_per_second=4)
        self._lines = plain_lines(lambda: self._line)

    def __enter__(self) -> SearchBoard:
        if stderr_console().is_terminal:
            self._live.start()
        self._lines.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._lines.__exit__(*raised)
        self._live.stop()

    def watch(self, progress: SearchProgress) -> None:
        """Show one more candidate."""
        from rich.text import Text

        self._warn(progress.elapsed_seconds + progress.least_seconds)
        stage = progress.candidate.stage
        if stage != self._stage:
            self._stage, self._losses = stage, []
        self._losses.append(progress.candidate.loss)
        best = "—" if progress.best is None else f"{progress.best:.4f}"
        self._line = (
            f"{stage} {progress.done}/{progress.planned} · best {best} nat/token · "
            f"{duration(progress.left_seconds)} left"
        )
        elapsed = f" · {duration(progress.elapsed_seconds)} elapsed"
        self._live.update(Text(f"{self._line}{elapsed}\n{sparkline(self._losses[-_WIDTH:])}"))

    def _warn(self, least: float) -> None:
        if least > self._budget:
            stderr_console().print(
                f"the budget is {duration(self._budget)}, and the least that such a search does "
                f"takes about {duration(least)}: a shorter --screening-ctx or fewer --finalists "
                "make it less; the same command goes on after Ctrl-C",
                style="yellow",
            )
            self._budget = math.inf


def sparkline(values: list[float]) -> str:
    """Return values as a row of bars, the smallest the lowest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


@contextmanager
def interruption(folder: Path) -> Iterator[None]:
    """Say what is kept and how to resume where the search is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        stderr_console().print(
            f"Interrupted. `ggufrope report {shown(folder)}` shows what was judged; run the same "
            "command to resume."
        )
        raise


def show_so_far(candidates: Sequence[Candidate], folder: Path) -> None:
    """Show the best of each stage of a search that has not ended."""
    from ggufrope.report.searches import SO_FAR_HEADS, SO_FAR_LEGEND, so_far_tables

    out = console()
    for stage, rows in so_far_tables(candidates).items():
        out.print(heading(stage))
        made = table(*SO_FAR_HEADS, numeric=SO_FAR_HEADS[1:], tight=True)
        for each in rows[:_SHOWN]:
            row(made, *each)
        out.print(made)
        if len(rows) > _SHOWN:
            out.print(f"and {len(rows) - _SHOWN} more", style="dim")
    if candidates:
        out.print(SO_FAR_LEGEND, style="dim")
    out.print(
        f"The search in {shown(folder)} has not ended: run the same command to go on with it.",
        style="bold yellow",
    )


def show(result: SearchResult, folder: Path) -> None:
    """Show the holdout, short contexts, curves, the conclusion and the command to go on with."""
    from ggufrope.report.searches import finals_table, searched_commands

    out = console()
    heads, rows = finals_table(result)
    out.print(heading(f"finals at {result.rotation.target_context}, on haystacks of the search"))
    finals = table(*heads)
    for each in rows:
        row(finals, *each)
    out.print(finals)
    for comparison in result.holdout:
        out.print(heading(f"holdout · {comparison.fitness} at {result.rotation.target_context}"))
        _show_comparison(comparison)
    for comparison in result.short_context:
        out.print(heading(f"short contexts · {comparison.fitness}"))
        _show_comparison(comparison)
    out.print(heading("what each pair of dimensions is divided by"))
    curves = table("scheme", "pairs, fast to slow", "first", "last", "attention factor")
    for curve in result.curves:
        line = sparkline(list(curve.factors))
        row(curves, curve.name, line, curve.factors[0], curve.factors[-1], curve.magnitude)
    out.print(curves)
    screened = [
        step.loss for step in result.history if step.stage == "screening" and step.haystack == 0
    ]
    candidates = f"{len(screened)} candidate{'s' * (len(screened) != 1)}"
    out.print(f"{candidates} screened; {duration(result.seconds)} in all:")
    out.print(f"  {sparkline(_thinned(screened))}")
    out.print(heading("conclusion"))
    out.print(shown(result.conclusion), style="bold green" if result.won else "bold yellow")
    if not result.short_context_passed:
        out.print(
            "Warning: quality within the original context dropped (see above).", style="bold yellow"
        )
    out.print(f"\nEvery candidate is in {shown(folder)}.")
    _show_commands(result)
    if not result.won:
        out.print("The searched scheme (not recommended):")
        for command in searched_commands(result).splitlines():
            out.print(f"  {shown(command)}", soft_wrap=True)


def _show_commands(result: SearchResult) -> None:
    from ggufrope.report.searches import instead
    from ggufrope.search.result import SHOWN_NAMES

    out, keep = console(), SHOWN_NAMES[result.to_beat]
    if not (result.patch_command or result.serve_command):
        out.print(f"Keep {keep}.")
        return
    out.print("To use the winner:" if result.won else f"Keep {keep}:")
    if result.patch_command:
        out.print(f"  {shown(result.patch_command)}", soft_wrap=True)
    if result.serve_command:
        lead = f"{instead(result)}: " if result.patch_command else ""
        out.print(f"  {lead}{shown(result.serve_command)}", soft_wrap=True)


def _show_comparison(comparison: Comparison) -> None:
    from ggufrope.report.searches import ASKED_LEGEND

    made = table("scheme", "asked", "recall", "loss, nat/token", "± standard error", tight=True)
    for score in comparison.scores:
        recall = "—"
        share = score.recall
        if share is not None and None not in (share.value, share.low, share.high):
            recall = f"{share.value:.1%} ({share.low:.1%}-{share.high:.1%})"
        row(made, score.name, score.asked, recall, score.loss.value, score.loss.standard_error)
    console().print(made)
    if any(score.asked == "whole" for score in comparison.scores):
        console().print(ASKED_LEGEND, style="dim")
    first, difference = comparison.scores[0].name, comparison.difference
    console().print(
        f"{first} against {comparison.against}: {difference.value:+.4f} nat per token "
        f"(95 %: {difference.low:+.4f} to {difference.high:+.4f}): {comparison.verdict}"
    )


def _thinned(values: list[float], width: int = 60) -> list[float]:
    """At most `width` of the values, evenly spaced."""
    step = max(1, -(-len(values) // width))
    return values[::step]
