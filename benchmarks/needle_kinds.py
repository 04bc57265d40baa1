"""Ask for needles of every kind, spliced and in whole prompts.

    python -m benchmarks.needle_kinds [MODEL] [--ctx 1024 2048] [--value number] [--results FILE]

The share answered exactly, the share ranked above every wrong answer, and nat per token; then how
whole prompts of some of these needles answer, and whether the spliced ones agree. The default model
is SmolLM2, which takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from benchmarks.__main__ import SMOLLM2
from ggufrope.evals.facts import NeedleKind, ValueKind
from ggufrope.evals.needle import NeedleScore, ask, recall
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.lm import OpenContext
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Needles of one kind at one length. `needle_tokens` is the most that a needle's statements,
    question and answers take; `top_ranked` is None where there are no wrong answers."""

    kind: str
    context_tokens: int
    needles: int
    exact: float
    exact_low: float | None
    exact_high: float | None
    top_ranked: float | None
    log_probability: float | None
    needle_tokens: int
    whole_prompts: int
    whole_exact: int
    agreeing: int
    largest_difference: float


def measure(
    plan: NeedlePlan, whole_depths: Sequence[float], model: Model, open_context: OpenContext
) -> list[Measured]:
    """Return one result per length of the plan; the first sample at `whole_depths` is asked in
    whole prompts too."""
    spliced = {score.point: score for score in ask(plan, model, open_context)}
    first = replace(plan, samples=1, depths=tuple(whole_depths))
    whole = {score.point: score for score in ask(first, model, open_context, method="whole")}
    return [
        _measured(
            plan.needle,
            [score for point, score in spliced.items() if point.context_tokens == length],
            [
                (spliced[point], score)
                for point, score in whole.items()
                if point.context_tokens == length
            ],
        )
        for length in plan.lengths
    ]


def _measured(
    kind: str, scores: Sequence[NeedleScore], pairs: Sequence[tuple[NeedleScore, NeedleScore]]
) -> Measured:
    found = recall(scores)
    if found.unscored or found.exact.value is None:
        raise ValueError(f"{kind}: {found.unscored} of {len(scores)} needles have no score")
    ranks = [score.rank for score in scores if score.rank is not None]
    return Measured(
        kind=kind,
        context_tokens=scores[0].point.context_tokens,
        needles=len(scores),
        exact=found.exact.value,
        exact_low=found.exact.low,
        exact_high=found.exact.high,
        top_ranked=sum(rank == 1 for rank in ranks) / len(ranks) if ranks else None,
        log_probability=found.log_probability.value,
        needle_tokens=max(map(_needle_tokens, scores)),
        whole_prompts=len(pairs),
        whole_exact=sum(whole.exact is True for _, whole in pairs),
        agreeing=sum(spliced.exact == whole.exact for spliced, whole in pairs),
        largest_difference=max(
            abs((spliced.log_probability or 0) - (whole.log_probability or 0))
            for spliced, whole in pairs
        ),
    )


def _needle_tokens(score: NeedleScore) -> int:
    branch = score.question.branch
    stated = sum(len(splice.tokens) for splice in branch.splices)
    return stated + len(branch.prompt) + sum(map(len, branch.answers))


def _line(row: Measured) -> str:
    ranked = "" if row.top_ranked is None else f"{row.top_ranked:.0%}"
    exact = f"{row.exact:.0%} ({row.exact_low:.0%} to {row.exact_high:.0%})"
    return (
        f"| {row.kind} | {row.context_tokens} | {row.needles} | {exact} | {ranked} "
        f"| {row.log_probability:.2f} | {row.needle_tokens} | {row.whole_exact} of "
        f"{row.whole_prompts} | {row.agreeing} of {row.whole_prompts} "
        f"| {row.largest_difference:.3f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path(SMOLLM2))
    parser.add_argument("--ctx", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--kinds", nargs="+", default=get_args(NeedleKind))
    parser.add_argument("--value", choices=get_args(ValueKind), default="number")
    parser.add_argument("--format", choices=("chat", "completion"), default="completion")
    parser.add_argument("--depths", type=float, nargs="+", default=[0, 25, 50, 75, 100])
    parser.add_argument("--whole-depths", type=float, nargs="+", default=[25, 75])
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, help="where to write the result as JSON")
    given = parser.parse_args()
    rows: list[Measured] = []
    print("| kind | tokens | needles | exact | ranked top | nat | needle | whole | agree | apart |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with Model.open(given.model) as model:
        for kind in given.kinds:
            plan = NeedlePlan(
                lengths=tuple(given.ctx),
                depths=tuple(given.depths),
                samples=given.samples,
                needle=kind,
                format=given.format,
                value=given.value,
            )
            for row in measure(
                plan,
                given.whole_depths,
                model,
                lambda n: Context(model, ContextSettings(n_ctx=n, n_threads=given.threads)),
            ):
                rows.append(row)
                print(_line(row), flush=True)
    if given.results:
        given.results.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
