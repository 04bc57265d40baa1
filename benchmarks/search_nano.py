"""YaRN parameters searched for the nano model at 8 times its trained length, compared with YaRN.

    python -m benchmarks.search_nano [--out DIR] [--results FILE] [--budget SECONDS] [--threads N]

Searches in DIR (the same call resumes) and writes FILE, a summary as JSON with a page beside it.
The aim: half of YaRN's misses on needles the search never saw, within 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope import LlamaBackend, RuntimeSettings, SearchPlan, run_search
from ggufrope._format import duration

if TYPE_CHECKING:
    from ggufrope.search.engine import SearchProgress
    from ggufrope.search.result import SearchResult

ROOT = Path(__file__).resolve().parent.parent
PLAN = SearchPlan(
    target_context=2048,
    space="yarn",  # free factors find what is near a seed, of a landscape this rugged
    candidates=160,
    screening_samples=32,  # YaRN misses one answer in fifty here
    samples=100,
    finalists=6,
    holdout_samples=200,
    budget_seconds=12 * 60,
)


def summary(result: SearchResult, *, threads: int | None) -> dict[str, Any]:
    """The result without its history, and what it was measured with."""
    plain = asdict(result)
    history = plain.pop("history")
    plain.pop("patch_command")
    plain.pop("searched_command")
    plain["candidates"] = {
        stage: sum(step["stage"] == stage for step in history)
        for stage in dict.fromkeys(step["stage"] for step in history)
    }
    plain["stopped_early"] = sum(step["stopped"] for step in history)
    plain["best_by_candidate"] = _best_so_far(
        [step["loss"] for step in history if step["stage"] == "screening"]
    )
    plain["machine"] = {
        "cpus": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "llama_cpp_python": version("llama_cpp_python"),
        "ggufrope": version("ggufrope"),
    }
    return plain


def page(title: str, command: str, result: SearchResult) -> str:
    """The same for a reader."""
    lines = [f"# {title}", "", f"`{command}`", "", result.conclusion, ""]
    for comparison in (*result.holdout, *result.short_context):
        where = "target" if comparison in result.holdout else "short contexts"
        lines += [
            f"## {comparison.fitness}, {where}",
            "",
            "| scheme | recall (95 %) | loss, nat/token |",
            "|---|---|---|",
        ]
        for each in comparison.scores:
            recall = "—"
            if each.recall is not None:
                share = each.recall
                recall = f"{share.successes}/{share.n} = {share.value:.3f} "
                recall += f"({share.low:.3f}-{share.high:.3f})"
            lines.append(f"| {each.name} | {recall} | {each.loss.value:.4f} |")
        d = comparison.difference
        lines += [
            "",
            f"Paired over {d.samples} samples: {d.value:+.4f} nat/token",
            f"(95 %: {d.low:+.4f} to {d.high:+.4f});",
            f"{comparison.scores[0].name} is {d.verdict} against {comparison.against}.",
            "",
        ]
    lines += ["## Factors", "", "| scheme | magnitude | factor of each pair |", "|---|---|---|"]
    lines += [
        f"| {curve.name} | {curve.magnitude:.4f} | "
        + " ".join(f"{factor:.2f}" for factor in curve.factors)
        + " |"
        for curve in result.curves
    ]
    lines += [
        "",
        f"{len(result.history)} evaluations in {duration(result.seconds)}.",
        f"Setting candidates up took {result.overhead_share:.3%} of the time to evaluate them;",
        f"{'no' if result.updates_in_place else 'every'} candidate loaded the model.",
        "",
    ]
    return "\n".join(lines)


def measure(plan: SearchPlan, *, description: str, title: str, model: Path | None = None) -> None:
    """Search as the command line says, show the result, and write it where asked for."""
    parser = argparse.ArgumentParser(description=description)
    if model is None:
        parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path(Path(sys.argv[0]).stem.replace("_", "-")))
    parser.add_argument("--results", type=Path, help="where to write the summary")
    parser.add_argument("--budget", type=float, default=plan.budget_seconds, help="seconds")
    parser.add_argument("--threads", type=int, help="default: every CPU")
    given = parser.parse_args()
    result = run_search(
        model or given.model,
        replace(plan, budget_seconds=given.budget),
        LlamaBackend(settings=RuntimeSettings(gpu_layers=0, threads=given.threads)),
        folder=given.out,
        watch=watch,
    )
    text = page(title, f"python -m benchmarks.{Path(sys.argv[0]).stem}", result)
    print(text)
    if given.results is not None:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        plain = json.dumps(summary(result, threads=given.threads), indent=1)
        given.results.write_text(plain + "\n", encoding="utf-8")
        given.results.with_suffix(".md").write_text(text, encoding="utf-8")


def watch(progress: SearchProgress) -> None:
    """Say on stderr how far the search is."""
    candidate = progress.candidate
    sys.stderr.write(
        f"{candidate.stage} {progress.done}/{progress.planned}: loss {candidate.loss:.4f}, "
        f"{duration(progress.left_seconds)} left\n"
    )


def _best_so_far(losses: list[float]) -> list[float]:
    best: list[float] = []
    for loss in losses:
        best.append(round(min([loss, *best[-1:]]), 5))
    return best


if __name__ == "__main__":
    measure(
        PLAN,
        description=str(__doc__).splitlines()[0],
        title="The nano model at 2048 tokens, 8 times its trained length",
        model=ROOT / "fixtures" / "nano.gguf",
    )
