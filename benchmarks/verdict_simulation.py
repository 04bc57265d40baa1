"""How often a recall verdict is wrong or undecided, and how many whole prompts it takes: simulated.

    python -m benchmarks.verdict_simulation [--runs N] [--seed N] [--results FILE]

Draw the cells of one length from a known recall and a splice of known bias, and let
`ggufrope/evals/recall.py` draw whole prompts until it stops. Print what docs/verdicts.md quotes.
Minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks.measure import RESULTS
from ggufrope.evals.recall import (
    SHARE_ERROR,
    RecallCell,
    RecallEstimate,
    ShareEstimate,
    estimate,
    next_look,
    outcome,
    share,
)
from ggufrope.evals.stats import ALPHA

RECALLS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.85, 0.88, 0.9, 0.92, 0.95, 0.97, 0.99, 1.0)
BIASES = (0.0, 0.05, 0.1, 0.2, -0.05, -0.1)
DEPTHS, BAD_DEPTHS = 11, 3
PLANNED = (4, 8, 17, 35, 64, 90, 115, 140, 166)
BOTH, SPLICED_ONLY, WHOLE_ONLY, NEITHER = range(4)
"""The kinds of a cell, by which of its two needles are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A measurement of one length: how many cells, of which at most `limit` are whole prompts.

    With a control, `minimum` is a share of its recall. Without `spliced`, no cell has a spliced
    score.
    """

    cells: int = 44
    limit: int = 44
    minimum: float = 0.9
    spliced: bool = True
    control: RecallEstimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The recall of whole prompts; `bias` is the spliced recall minus it.

    `same`: the same cells fail spliced and whole, as far as the two recalls allow; else they fail
    independently. `uneven`: failures are in 3 of 11 depths, as far as they have room for them.
    """

    recall: float
    bias: float = 0.0
    same: bool = True
    uneven: bool = False


SPLICES = (
    *(Truth(recall=0, bias=bias, same=same) for bias, same in product(BIASES, (True, False))),
    *(Truth(recall=0, bias=bias, uneven=True) for bias in (0.0, 0.1)),
)
DESIGNS = tuple(
    Design(cells=cells, limit=limit, minimum=minimum)
    for minimum in (0.9, 0.8, 0.95)
    for cells, limit in ((44, 44), (110, 44), (110, 150))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a run shows after some whole prompts, and how many further ones it draws."""

    found: RecallEstimate | ShareEstimate
    further: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of all runs, and the mean number of whole prompts of a run."""

    passed: float
    failed: float
    low_wrong: float
    high_wrong: float
    prompts: float


def draw(truth: Truth, cells: int, runs: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Return the kind of each cell, shape (runs, cells), in the order in which they are drawn."""
    depths = rng.permuted(np.tile(np.arange(cells) % DEPTHS, (runs, 1)), axis=1)
    first = rng.random(depths.shape)
    second = first if truth.same else rng.random(depths.shape)
    whole = first >= _chances(truth.recall, depths, truth.uneven)
    spliced = second >= _chances(truth.recall + truth.bias, depths, truth.uneven)
    return (WHOLE_ONLY * spliced + SPLICED_ONLY * whole).astype(np.int8)


def _chances(recall: float, depths: NDArray[np.int64], uneven: bool) -> NDArray[np.float64]:
    """Return the chance of an answer per cell, which is `recall` on average."""
    recall = min(max(recall, 0.0), 1.0)
    if not uneven:
        return np.full(depths.shape, recall)
    bad = max(0.0, 1 - (1 - recall) * DEPTHS / BAD_DEPTHS)
    good = (recall * DEPTHS - bad * BAD_DEPTHS) / (DEPTHS - BAD_DEPTHS)
    return np.where(depths < BAD_DEPTHS, bad, good)


def play(truth: Truth, design: Design, runs: int, seed: int) -> dict[Reading, int]:
    """Return how `runs` runs end, and how many of them."""
    kinds = draw(truth, design.cells, runs, np.random.default_rng(seed))
    totals = (kinds <= SPLICED_ONLY).sum(axis=1)
    ends: dict[Reading, int] = {}
    asked = np.zeros(runs, dtype=np.int64)
    while len(kinds):
        seen = np.where(np.arange(design.cells) < asked[:, None], kinds, -1)
        drawn = [(seen == kind).sum(axis=1) for kind in range(4)]
        states, which, times = np.unique(
            np.stack([totals, *drawn], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        readings = [read(*map(int, state), design=design) for state in states]
        for reading, number in zip(readings, times, strict=True):
            if not reading.further:
                ends[reading] = ends.get(reading, 0) + int(number)
        further = np.array([reading.further for reading in readings])[which.ravel()]
        going = further > 0
        kinds, totals, asked = kinds[going], totals[going], (asked + further)[going]
    return ends


@cache
def read(spliced: int, *drawn: int, design: Design) -> Reading:
    """Read a run with so many spliced successes among all cells, and so many drawn of each kind."""
    left = spliced - drawn[BOTH] - drawn[SPLICED_ONLY]
    kinds = (
        *((kind <= SPLICED_ONLY, kind in (BOTH, WHOLE_ONLY), n) for kind, n in enumerate(drawn)),
        (True, None, left),
        (False, None, design.cells - sum(drawn) - left),
    )
    cells: list[RecallCell] = []
    for answered, whole, n in kinds:
        cells += [RecallCell(spliced=answered if design.spliced else None, whole=whole)] * n
    further = next_look(cells, design.minimum, design.limit, control=design.control)
    if design.control is None:
        return Reading(found=estimate(cells), further=further)
    return Reading(found=share(cells, design.control), further=further)


def rates(ends: dict[Reading, int], minimum: float, true: float) -> Rates:
    """Return the rates of runs whose true recall, or share of the control, is `true`."""
    runs = sum(ends.values())
    passed = failed = low_wrong = high_wrong = prompts = 0
    for reading, times in ends.items():
        found = reading.found
        result = outcome(found, minimum)
        passed += times * (result == "pass")
        failed += times * (result == "fail")
        low_wrong += times * (found.low > true + 1e-12)
        high_wrong += times * (found.high is not None and found.high < true - 1e-12)
        recall = found.recall if isinstance(found, ShareEstimate) else found
        prompts += times * recall.whole.n
    counts = (passed, failed, low_wrong, high_wrong, prompts)
    names = ("passed", "failed", "low_wrong", "high_wrong", "prompts")
    return Rates(**{name: n / runs for name, n in zip(names, counts, strict=True)})


def simulate(truth: Truth, design: Design, runs: int, seed: int) -> Rates:
    """Return the rates of `runs` runs of one length."""
    return rates(play(truth, design, runs, seed), design.minimum, truth.recall)


def simulate_share(truth: Truth, of: float, design: Design, runs: int, seed: int) -> Rates:
    """Return the rates of `runs` runs of a length and of a control whose recall is `of`, all
    cells of which are asked in whole prompts."""
    ends: dict[Reading, int] = {}
    found = np.random.default_rng(seed).binomial(design.cells, of, runs)
    for successes, times in zip(*np.unique(found, return_counts=True), strict=True):
        cells = [RecallCell(spliced=None, whole=n < successes) for n in range(design.cells)]
        against = replace(design, control=estimate(cells, error=SHARE_ERROR))
        for end, number in play(truth, against, int(times), seed + 1 + int(successes)).items():
            ends[end] = ends.get(end, 0) + number
    return rates(ends, design.minimum, truth.recall / of)


def planned(recall: float, limit: int) -> Rates:
    """Return the exact rates of the alternative for a minimum of 90 %: Clopper and Pearson's bounds
    at planned looks, and the error spent over them (Lan and DeMets, 1983)."""
    chance, n = np.array([1.0]), 0
    passed = failed = prompts = 0.0
    for number, look in enumerate(PLANNED, start=-PLANNED.index(35)):
        look = min(look, limit)
        for _ in range(look - n):
            chance = np.convolve(chance, (recall, 1 - recall))
        n, failures = look, np.arange(look + 1)
        share = 0.56 if number == 0 else 0.44 / 2.0**number if number > 0 else 0
        above = special.bdtr(failures, n, 0.1) <= ALPHA * share
        under = special.bdtrc(failures - 1, n, 0.1) <= ALPHA / 3 / 2.0 ** abs(number)
        passed += float(chance[above].sum())
        failed += float(chance[under].sum())
        done = above | under if n < limit else np.ones_like(above)
        prompts += n * float(chance[done].sum())
        chance[done] = 0
    return Rates(passed=passed, failed=failed, low_wrong=0, high_wrong=0, prompts=prompts)


def deciding(minimum: float, failures: int) -> tuple[int, int | None]:
    """Return the fewest whole prompts that pass with so many failures, and the most that fail."""

    def judged(n: int) -> str:
        cells = [RecallCell(spliced=None, whole=index >= failures) for index in range(n)]
        return outcome(estimate(cells), minimum)

    passing = next(n for n in count(failures) if judged(n) == "pass")
    return passing, max((n for n in range(passing) if judged(n) == "fail"), default=None)


def page(runs: int, seed: int) -> Iterator[str]:
    """Yield the lines of the page of results."""
    yield "# Recall verdicts, simulated"
    yield ""
    yield (
        f"`python -m benchmarks.verdict_simulation --runs {runs} --seed {seed}`. "
        "[What a verdict claims](../../docs/verdicts.md) explains the method."
    )
    yield from _deciding()
    for design in DESIGNS:
        yield from _rates(design, runs, seed)
    yield from _with_and_without(runs, seed)
    yield from _planned(runs, seed)
    yield from _shares(runs, seed)


def _deciding() -> Iterator[str]:
    yield from _title("What decides")
    yield from _header("minimum", "failures", "passes from", "fails up to, whole prompts")
    for minimum, failures in product((0.8, 0.9, 0.95), range(7)):
        passing, failing = deciding(minimum, failures)
        yield f"| {minimum:.0%} | {failures} | {passing} | {failing or '-'} |"


def _rates(design: Design, runs: int, seed: int) -> Iterator[str]:
    yield from _title(
        f"Minimum {design.minimum:.0%}, {design.cells} cells, at most {design.limit} whole prompts"
    )
    yield (
        f"Each range is over {len(SPLICES)} splices: lenient by 0, 5, 10 or 20 points or strict by "
        "5 or 10, where the same cells fail whole and spliced, or independently; and two whose "
        f"failures are in {BAD_DEPTHS} of {DEPTHS} depths. {runs} runs each."
    )
    yield ""
    names = ("pass, %", "fail, %", "undecided, %", "whole prompts", "low, high wrong, % at most")
    yield from _header("true recall", *names)
    for recall in RECALLS:
        found = [simulate(replace(splice, recall=recall), design, runs, seed) for splice in SPLICES]
        low, high = (
            max(getattr(one, name) for one in found) for name in ("low_wrong", "high_wrong")
        )
        cells = (
            _span(100 * one.passed for one in found),
            _span(100 * one.failed for one in found),
            _span(100 * (1 - one.passed - one.failed) for one in found),
            _span(one.prompts for one in found),
            f"{100 * low:.1f}, {100 * high:.1f}",
        )
        yield f"| {recall:.2f} | {' | '.join(cells)} |"


def _with_and_without(runs: int, seed: int) -> Iterator[str]:
    yield from _title("What the spliced cells add")
    yield "Minimum 90 %, a splice without bias whose cells fail as the whole prompts do."
    yield ""
    yield from _header("cells", "limit", "true recall", *_both("spliced and whole", "whole alone"))
    for cells, limit in ((110, 44), (110, 150), (440, 44), (440, 150)):
        for recall in (0.7, 0.8, 0.95, 0.97):
            design = Design(cells=cells, limit=limit)
            pair = (design, replace(design, spliced=False))
            found = [simulate(Truth(recall=recall), one, runs, seed) for one in pair]
            yield f"| {cells} | {limit} | {recall:.2f} | {' | '.join(map(_short, found))} |"


def _planned(runs: int, seed: int) -> Iterator[str]:
    yield from _title("Bets, and exact bounds at planned looks")
    yield (
        "Minimum 90 %, whole prompts alone. Planned: Clopper and Pearson's bounds, read after "
        f"{', '.join(map(str, PLANNED))} whole prompts, the error spent over these looks."
    )
    yield ""
    yield from _header("limit", "true recall", *_both("bets", "planned"))
    for limit, recall in product((44, 150), (0.1, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)):
        design = Design(cells=limit, limit=limit, spliced=False)
        found = (simulate(Truth(recall=recall), design, runs, seed), planned(recall, limit))
        yield f"| {limit} | {recall:.2f} | {' | '.join(map(_short, found))} |"


def _shares(runs: int, seed: int) -> Iterator[str]:
    yield from _title("A share of the control: at least 90 % of its recall")
    yield "At most 44 whole prompts of the length, and 44 of the control."
    yield ""
    yield from _header("control's recall", "true share", "pass, %", "fail, %", "whole prompts")
    for control, part in product((1.0, 0.95, 0.5), (0.0, 0.5, 0.7, 0.8, 0.899, 0.95, 1.0)):
        found = simulate_share(Truth(recall=control * part), control, Design(), runs, seed)
        yield f"| {control:.2f} | {part:.3f} | {_short(found)} |"


def _title(text: str) -> Iterator[str]:
    yield from ("", f"## {text}", "")


def _header(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)


def _both(first: str, second: str) -> list[str]:
    return [
        f"{name}: {what}" for name in (first, second) for what in ("pass, %", "fail, %", "prompts")
    ]


def _short(found: Rates) -> str:
    return f"{100 * found.passed:.1f} | {100 * found.failed:.1f} | {found.prompts:.1f}"


def _span(values: Iterable[float]) -> str:
    low, high = (f"{edge(values):.1f}" for values in (tuple(values),) for edge in (min, max))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "verdict_simulation.md")
    options = parser.parse_args()
    lines = []
    for line in page(options.runs, options.seed):
        print(line, flush=True)
        lines.append(line)
    options.results.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
