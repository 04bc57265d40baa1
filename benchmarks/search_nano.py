"""YaRN's three numbers searched for the nano model, at 8 or 16 times its trained length.

    python -m benchmarks.search_nano [--target TOKENS] [--space NAME] [--optimizer NAME]
        [--out DIR] [--results FILE] [--budget SECONDS] [--threads N] [--gpu-layers N]

Searches in DIR (the same call resumes) and writes FILE, a summary as JSON, with a page and a log of
every evaluation beside it. The aim: to beat YaRN on needles the search never saw, with an interval
clear of 0, within 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope import LlamaBackend, RuntimeSettings, SearchPlan, run_search
from ggufrope._format import duration
from ggufrope.report.searches import finals_table
from ggufrope.runtime import library
from ggufrope.search.session import RECORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.search.engine import SearchProgress
    from ggufrope.search.result import SearchResult

ROOT = Path(__file__).resolve().parent.parent
PLAN = SearchPlan(
    target_context=2048,
    space="yarn",  # free factors find what is near a seed, of a landscape this rugged
    candidates=400,
    finalists=8,
    haystacks=64,
    holdout_haystacks=256,  # YaRN misses one answer in two hundred at 8 times
    budget_seconds=9.5 * 60,
)


def summary(result: SearchResult, spent: dict[str, float]) -> dict[str, Any]:
    """The result without its history, and what it was measured with."""
    plain = asdict(result)
    _without_paths(plain["search"])
    history = plain.pop("history")
    for command in [name for name in plain if name.endswith("_command")]:
        plain.pop(command)
    plain["evaluations"] = {
        stage: sum(step["stage"] == stage for step in history)
        for stage in dict.fromkeys(step["stage"] for step in history)
    }
    plain["candidates"] = candidates(result)
    plain["stopped_early"] = sum(step["stopped"] for step in history)
    versions = library.versions()
    plain["this_call"] = spent
    plain["machine"] = {
        "cpus": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": [device.description for device in library.devices()],
        "python": platform.python_version(),
        "llama_cpp_python": versions.llama_cpp_python,
        "llama.cpp": versions.llama_cpp,
    }
    return plain


def candidates(result: SearchResult) -> int:
    """How many candidates were screened."""
    return sum(step.stage == "screening" and step.haystack == 0 for step in result.history)


def page(title: str, command: str, result: SearchResult, spent: dict[str, float]) -> str:
    """The same for a reader."""
    lines = [f"# {title}", "", f"`{command}`", "", result.conclusion, ""]
    heads, rows = finals_table(result)
    lines += ["## Finals, on haystacks of the search", "", *_table(heads, rows), ""]
    for comparison in (*result.holdout, *result.short_context):
        where = "target" if comparison in result.holdout else "short contexts"
        lines += [
            f"## {comparison.fitness}, {where}",
            "",
            "| scheme | asked | recall (95 %) | loss, nat/token |",
            "|---|---|---|---|",
        ]
        for each in comparison.scores:
            recall = "—"
            if each.recall is not None:
                share = each.recall
                recall = f"{share.successes}/{share.n} = {share.value:.3f} "
                recall += f"({share.low:.3f}-{share.high:.3f})"
            lines.append(f"| {each.name} | {each.asked} | {recall} | {each.loss.value:.4f} |")
        d = comparison.difference
        lines += [
            "",
            f"Paired over {d.samples} haystacks: {d.value:+.4f} nat/token",
            f"(95 %: {d.low:+.4f} to {d.high:+.4f});",
            f"{comparison.scores[0].name} is {comparison.verdict} against {comparison.against}.",
            "",
        ]
    factors: list[tuple[str, ...]] = [
        (curve.name, f"{curve.magnitude:.4f}", " ".join(f"{each:.2f}" for each in curve.factors))
        for curve in result.curves
    ]
    lines += ["## Factors", ""]
    lines += _table(("scheme", "attention factor", "factor of each pair"), factors)
    screening = sum(step.seconds for step in result.history if step.stage == "screening")
    rate = 3600 * candidates(result) / max(screening, 1e-9)
    lines += [
        "",
        f"{candidates(result)} candidates screened, {len(result.history)} evaluations,",
        f"{duration(result.seconds)} in all, {rate:,.0f} candidates per hour of screening.",
        f"Setting candidates up took {result.overhead_share:.3%} of the time to evaluate them.",
        f"This call: {duration(spent['wall_seconds'])} by the clock,",
        f"{duration(spent['cpu_seconds'])} of CPU time, on a machine of {os.cpu_count()} CPUs with",
        f"{spent['load']:.1f} processes that wanted them.",
        "",
    ]
    return "\n".join(lines)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def measure(plan: SearchPlan, *, description: str, model: Path | None = None) -> None:
    """Search as the command line says, show the result, and write it where asked for."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=description)
    if model is None:
        parser.add_argument("model", type=Path)
    parser.add_argument("--target", type=int, default=plan.target_context, help="tokens")
    parser.add_argument("--space", default=plan.space)
    parser.add_argument("--optimizer", default=plan.optimizer)
    parser.add_argument("--out", type=Path, default=Path(name.replace("_", "-")))
    parser.add_argument("--results", type=Path, help="where to write the summary")
    parser.add_argument("--budget", type=float, default=plan.budget_seconds, help="seconds")
    parser.add_argument("--threads", type=int, help="default: every CPU")
    parser.add_argument("--gpu-layers", default="0", help="all, auto or a number")
    given = parser.parse_args()
    plan = replace(
        plan,
        target_context=given.target,
        space=given.space,
        optimizer=given.optimizer,
        budget_seconds=given.budget,
    )
    layers = given.gpu_layers if given.gpu_layers in ("all", "auto") else int(given.gpu_layers)
    settings = RuntimeSettings(gpu_layers=layers, threads=given.threads)
    started, cpu = time.monotonic(), time.process_time()
    result = run_search(
        model or given.model, plan, LlamaBackend(settings=settings), folder=given.out, watch=watch
    )
    spent = {
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "load": os.getloadavg()[0],
    }
    command = f"python -m benchmarks.{name} --target {given.target} --space {given.space}"
    factor = result.rotation.factor
    title = f"{result.file} at {given.target} tokens, {factor:g} times its context ({given.space})"
    text = page(title, command, result, spent)
    print(text)
    if given.results is not None:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        plain = json.dumps(summary(result, spent), indent=1)
        given.results.write_text(plain + "\n", encoding="utf-8")
        given.results.with_suffix(".md").write_text(text, encoding="utf-8")
        given.results.with_suffix(".log.jsonl").write_text(log(given.out), encoding="utf-8")


def log(folder: Path) -> str:
    """The record of a search without the losses of single cells."""
    lines = []
    for line in (folder / RECORD).read_text(encoding="utf-8").splitlines():
        plain = json.loads(line)
        if "search" in plain:
            _without_paths(plain["search"])
        if "evaluation" in plain:
            cells = plain["evaluation"].pop("cells")
            plain["evaluation"]["answered"] = sum(cell.get("exact") is True for cell in cells)
            plain["evaluation"]["cells"] = len(cells)
        lines.append(json.dumps(plain, separators=(",", ":")) + "\n")
    return "".join(lines)


def _without_paths(search: dict[str, Any]) -> None:
    """Leave of the path of libllama its name: where it lay on this machine is nobody's business."""
    runtime = search.get("runtime", {})
    if "libllama" in runtime:
        runtime["libllama"] = runtime["libllama"].rpartition("/")[2]


def watch(progress: SearchProgress) -> None:
    """Say on stderr how far the search is."""
    candidate = progress.candidate
    sys.stderr.write(
        f"{candidate.stage} {progress.done}/{progress.planned}: loss {candidate.loss:.4f} in "
        f"{candidate.seconds:.1f} s, {duration(progress.left_seconds)} left\n"
    )


if __name__ == "__main__":
    measure(
        PLAN,
        description=str(__doc__).splitlines()[0],
        model=ROOT / "fixtures" / "nano.gguf",
    )
