"""Ask a chat model in its chat template and by completion, the same questions both ways.

    python -m benchmarks.prompt_formats [MODEL] [--ctx 1024 2048] [--results FILE]

Spliced needles and some tasks of RULER at each length. The default model is SmolLM2, which takes
some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.__main__ import SMOLLM2
from ggufrope import RunPlan, RuntimeSettings, run
from ggufrope.evals.task import RulerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

RULER_TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "vt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One task at one length in one format: the share answered, and for needles nat per token."""

    task: str
    context_tokens: int
    format: str
    cells: int
    share: float | None
    log_probability: float | None


def measure(plan: RunPlan) -> Iterator[Measured]:
    """Carry out a plan in a folder of its own; yield one result per task and length."""
    with tempfile.TemporaryDirectory() as folder:
        report = run(plan, Path(folder) / "run")
    for row in report.summary:
        share = row.metric("score") or row.metric("spliced_recall")
        loss = row.metric("log_probability")
        yield Measured(
            task=row.part or row.task,
            context_tokens=row.context_tokens,
            format=plan.format,
            cells=row.scored,
            share=None if share is None else share.value,
            log_probability=None if loss is None else loss.value,
        )


def _line(row: Measured) -> str:
    share = "" if row.share is None else f"{row.share:.0%}"
    loss = "" if row.log_probability is None else f"{row.log_probability:.3f}"
    return f"| {row.task} | {row.context_tokens} | {row.format} | {row.cells} | {share} | {loss} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path(SMOLLM2))
    parser.add_argument("--ctx", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, help="where to write the result as JSON")
    given = parser.parse_args()
    formats: tuple[Literal["chat", "completion"], ...] = ("chat", "completion")
    rows = [
        row
        for name in formats
        for row in measure(
            RunPlan(
                models=(str(given.model),),
                contexts=tuple(given.ctx),
                tasks=("needle", "ruler"),
                samples=given.samples,
                depths=5,
                whole_prompts=0,
                control=False,
                format=name,
                ruler=RulerSettings(tasks=RULER_TASKS),
                runtime=RuntimeSettings(gpu_layers=0, threads=given.threads),
            )
        )
    ]
    rows.sort(key=lambda row: (row.context_tokens, row.task, row.format))
    print("| task | tokens | format | cells | answered | nat/token |")
    print("|---|---:|---|---:|---:|---:|")
    print("\n".join(map(_line, rows)))
    if given.results:
        given.results.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
