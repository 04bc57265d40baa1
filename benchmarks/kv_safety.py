"""Which KV caches are safe on a model: all pairs of some types, as a table.

    python -m benchmarks.kv_safety MODEL.gguf --ctx 4096,8192 --out FOLDER --record kv_safety_NAME

The run is kept in FOLDER and resumed by the same command. Its end records what was found in
benchmarks/results; `--only-record` records what is finished, also while it runs. `--gpu-layers all`
runs it on a GPU, `--threads` on so many cores. Pairs of one type come first.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path

from benchmarks.measure import RESULTS
from ggufrope._format import byte_size
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.results import Metric
from ggufrope.report.caches import CacheAnswer, CacheRow
from ggufrope.report.conclusion import conclude
from ggufrope.report.record import RunReport, report_of, run
from ggufrope.runs.jobs import Selection
from ggufrope.runs.plan import KV_TYPES, RunPlan
from ggufrope.runs.store import RunStore

_LEGEND = (
    "KLD and same top are from an f16 cache under the same scaling, those of f16 are what rounding "
    "alone does; intervals are 95 %. Kept: of "
    "the answers that are exact with f16, those that are exact here too, and others gained. "
    "[What the words mean](../../docs/kv-cache.md)."
)
_TASKS = (
    "Exact answers by task; the control is the model with an f16 cache in 1,024 tokens (needles: "
    "within its native context):"
)
_SHOWN = ("processor", "cpu cores", "llama.cpp", "layers on GPU", "CUDA0")


def pages(report: RunReport, command: str) -> str:
    """Return the answers of a run as Markdown."""
    known = dict(report.workers[-1].environment) if report.workers else {}
    machine = ", ".join(f"{name} {known[name]}" for name in _SHOWN if name in known)
    load = (
        f"load {os.getloadavg()[0]:.0f} when this was written (above the cores, speeds say little)"
    )
    done = sum(entry.state == "done" for entry in report.jobs)
    parts = [
        "# Which KV caches are safe: " + ", ".join(model.file.name for model in report.models),
        f"`{command}`; {machine}; {load}.",
    ]
    if not report.complete:
        parts.append(f"Not complete: {done} of {len(report.jobs)} jobs are done.")
    parts += [
        _LEGEND,
        *(_page(answer) for answer in conclude(report).caches),
    ]
    return "\n\n".join(parts) + "\n"


def _page(answer: CacheAnswer) -> str:
    tasks = list(dict.fromkeys(task for row in answer.rows for task in row.exact))
    heads = ("KV", "memory", "KLD, nat per token", "same top", "kept", "prefill/s", "decode/s", "")
    control = [
        ("control", *(_count(answer.control.get(task)) for task in tasks)),
    ]
    reasons = [
        f"- {row.kv}: {row.verdict.word}, {row.verdict.reason}"
        for row in answer.rows
        if row.verdict is not None
    ]
    return "\n\n".join(
        (
            f"## At {answer.context_tokens:,} tokens",
            f"**{answer.sentence[0].upper()}{answer.sentence[1:]}.**",
            _table(heads, [_measured(row) for row in answer.rows]),
            _TASKS,
            _table(
                ("KV", *tasks),
                [
                    *(
                        (row.kv, *(_count(row.exact.get(task)) for task in tasks))
                        for row in answer.rows
                    ),
                    *(control if answer.control else []),
                ],
            ),
            "\n".join(reasons),
        )
    )


def _measured(row: CacheRow) -> tuple[str, ...]:
    return (
        row.kv,
        "" if row.memory_bytes is None else byte_size(row.memory_bytes),
        _interval(row.divergence, ".4f"),
        _interval(row.same_top, ".1%"),
        row.kept_words,
        *("" if speed is None else f"{speed:,.0f}" for speed in (row.prefill, row.decode)),
        "base" if row.verdict is None else row.verdict.word,
    )


def _interval(found: Metric | None, form: str) -> str:
    if found is None or found.value is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:{form}}"
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def _count(found: tuple[int, int] | None) -> str:
    return "" if found is None else f"{found[0]} of {found[1]}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---", *("---:" for _ in heads[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", default="4096")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", required=True, help="name of the result")
    parser.add_argument("--types", default=",".join(KV_TYPES))
    parser.add_argument("--gpu-layers", default="all")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--only", default="", help="jobs to do first, as task=divergence,kv=q8_0")
    parser.add_argument("--only-record", action="store_true")
    options = parser.parse_args()
    pairs = [str(KvTypes(k=k, v=v)) for k, v in product(options.types.split(","), repeat=2)]
    plan = RunPlan(
        models=(str(options.model),),
        contexts=tuple(map(int, options.ctx.split(","))),
        tasks=("kv",),
        kv=tuple(sorted(pairs, key=lambda pair: "/" in pair)),
        chunks=options.chunks,
        samples=options.samples,
        depths=options.depths,
        runtime=RuntimeSettings(
            gpu_layers="all" if options.gpu_layers == "all" else int(options.gpu_layers),
            threads=options.threads,
        ),
    )
    if not options.only_record:
        only = tuple(filter(None, options.only.split(",")))
        run(plan, options.out, selection=Selection.parse(only))
    with RunStore(options.out) as store:
        report = report_of(store)
    words = [Path(word).name for word in sys.argv[1:] if word != "--only-record"]
    command = " ".join(["python -m benchmarks.kv_safety", *words])
    (RESULTS / f"{options.record}.md").write_text(pages(report, command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
