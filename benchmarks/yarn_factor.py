"""YaRN with a factor above that of the target: the same spliced needles under each factor.

    python -m benchmarks.yarn_factor MODEL --ctx TOKENS --factors 2,3 --seeds 1,2,3 --out FOLDER
        --record NAME [--threads N] [--gpu-layers all]

A seed is one haystack of 44 needles, the same for every factor. The first factor is what the others
are compared with. The run is kept in FOLDER and resumed by the same command; `--only-record`
records what is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import RESULTS
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.evals.stats import mean, sign_test
from ggufrope.patching.request import ScalingRequest
from ggufrope.report.record import RunReport, report_of, run
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import RunStore

if TYPE_CHECKING:
    from ggufrope.evals.results import CellResult

DEPTHS = tuple(range(0, 101, 10))


def page(report: RunReport, command: str) -> str:
    """Return what is measured as Markdown."""
    names = [request.name for request in report.plan.requests]
    found = {name: results for name in names if (results := _scored(report, name))}
    seeds = sorted({result.cell.seed for each in found.values() for result in each})
    known = dict(report.workers[-1].environment) if report.workers else {}
    machine = ", ".join(known[name] for name in ("processor", "llama.cpp") if name in known)
    (length,) = report.plan.contexts
    model = report.models[0].file.name
    lines = [f"# YaRN's factor on {model} at {length:,} tokens", "", f"`{command}`; {machine}.", ""]
    if not report.complete:
        done = sum(entry.state == "done" for entry in report.jobs)
        lines += [f"Not complete: {done} of {len(report.jobs)} jobs are done.", ""]
    listed = ", ".join(map(str, seeds))
    lines += [
        f"Spliced needles found at each depth in percent, one haystack for each seed ({listed});",
        "loss is that of the answers, nat per token.",
        "",
        f"| scheme | found | missed | loss | {' | '.join(map(str, DEPTHS))} |",
        f"|---|---:|---:|---:|{'---:|' * len(DEPTHS)}",
    ]
    for name, results in found.items():
        right = Counter(r.cell.depth_percent for r in results if r.value("recall") == 1)
        count = sum(right.values())
        loss = mean(_losses(results).values()).value or 0.0
        depths = " | ".join(str(right[float(depth)]) for depth in DEPTHS)
        missed = len(results) - count
        lines.append(f"| {name} | {count} of {len(results)} | {missed} | {loss:.3f} | {depths} |")
    (first, base), *others = found.items()
    lines += ["", *(_against(name, results, first, base) for name, results in others)]
    return "\n".join(lines) + "\n"


def _scored(report: RunReport, scaling: str) -> list[CellResult]:
    return [r for r in report.cells if r.cell.scaling == scaling and r.status == "ok"]


def _losses(results: list[CellResult]) -> dict[int, float]:
    """Return the mean loss of each seed's haystack."""
    of: dict[int, list[float]] = {}
    for result in results:
        if (value := result.value("log_probability")) is not None:
            of.setdefault(result.cell.seed, []).append(-value)
    return {seed: sum(values) / len(values) for seed, values in of.items()}


def _against(name: str, ours: list[CellResult], first: str, theirs: list[CellResult]) -> str:
    """Return the comparison of two schemes on the needles of both, in a sentence."""
    own, other = ({_place(r): r for r in results} for results in (ours, theirs))
    both = [place for place in own if place in other]
    found = [(own[place].value("recall") == 1, other[place].value("recall") == 1) for place in both]
    gained, lost = found.count((True, False)), found.count((False, True))
    mine, base = (_losses([results[place] for place in both]) for results in (own, other))
    difference = mean(mine[seed] - base[seed] for seed in mine)
    interval = difference.interval
    spread = "" if interval is None else f" (95 %: {interval[0]:+.3f} to {interval[1]:+.3f})"
    return (
        f"- {name} against {first}, {len(both)} needles of both: finds {gained} that it misses and "
        f"misses {lost} that it finds (exact test: p = {sign_test(lost, gained):.2g}); loss "
        f"{difference.value or 0.0:+.3f} nat per token{spread}, by {difference.n} haystacks."
    )


def _place(result: CellResult) -> tuple[object, ...]:
    return result.cell.seed, result.cell.depth_percent, result.cell.sample


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--factors", required=True, help="the first is compared with")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", required=True, help="name of the result")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--gpu-layers", default="0")
    parser.add_argument("--only-record", action="store_true")
    options = parser.parse_args()
    plan = RunPlan(
        models=(str(options.model),),
        contexts=(options.ctx,),
        tasks=("needle",),
        scalings=tuple(
            ScalingRequest(
                scaling="yarn", factor=float(f), target_context=options.ctx, label=f"yarn x{f}"
            )
            for f in options.factors.split(",")
        ),
        depths=DEPTHS,
        whole_prompts=0,
        control=False,
        seeds=tuple(map(int, options.seeds.split(","))),
        runtime=RuntimeSettings(
            gpu_layers="all" if options.gpu_layers == "all" else int(options.gpu_layers),
            threads=options.threads,
        ),
    )
    if not options.only_record:
        run(plan, options.out)
    with RunStore(options.out) as store:
        report = report_of(store)
    words = [Path(word).name for word in sys.argv[1:] if word != "--only-record"]
    command = " ".join(["python -m benchmarks.yarn_factor", *words])
    (RESULTS / f"{options.record}.md").write_text(page(report, command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
