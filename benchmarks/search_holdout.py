"""What the log of a search says of its candidates and its holdout, also where it was cut short.

    python -m benchmarks.search_holdout LOG.jsonl [--haystacks N]

First what was judged in each stage, as Markdown. Of the holdout, the searched scheme that was
judged on the most haystacks is compared with YaRN as it is by default, on their first N common ones
(default: all). The interval has the error of one look of the search, which only the planned looks
are; recall is of spliced needles and whole prompts, and by depth.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from ggufrope._plain import decode
from ggufrope.report.overview import markdown_table
from ggufrope.report.searches import SO_FAR_HEADS, so_far_tables
from ggufrope.search.evaluate import Evaluation
from ggufrope.search.holdout import Judged, compare, looks
from ggufrope.search.record import read_candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--haystacks", type=int, default=None)
    options = parser.parse_args()
    candidates = read_candidates(options.log)
    for stage, table in so_far_tables(candidates).items():
        print(f"## {stage}\n\n{markdown_table(SO_FAR_HEADS, table)}\n")
    if not any(each.stage == "holdout" for each in candidates):
        return
    head, *rows = map(json.loads, options.log.read_text(encoding="utf-8").splitlines())
    judged = by_scheme(rows)
    yarn = next(key for key in judged if json.loads(key).get("attention_factor") is None)
    searched = max((key for key in judged if key != yarn), key=lambda key: len(judged[key][0]))
    common = min(len(judged[key][0]) for key in (searched, yarn))
    count = common if options.haystacks is None else options.haystacks
    pair = {name: of(judged[key], count) for name, key in (("searched", searched), ("yarn", yarn))}
    planned = looks(head["search"]["holdout_haystacks"])
    found = compare("needle", pair, against="yarn", error=planned[0].error)
    print(f"searched: {searched}")
    for score in found.scores:
        if (recall := score.recall) is not None:
            print(
                f"{score.name}, {score.asked}: {recall.successes} of {recall.n}, "
                f"{recall.low:.3f} to {recall.high:.3f}"
            )
    at = ", ".join(str(look.haystacks) for look in planned)
    print(
        f"loss on {count} haystacks: {found.difference.value:+.3f} nat per token "
        f"({found.difference.low:+.3f} to {found.difference.high:+.3f}, error "
        f"{planned[0].error:.4f}; looks are planned at {at})"
    )
    if (answers := found.answers) is not None:
        print(f"gained {answers.gained}, lost {answers.lost}, p {answers.p_value:.3f}")
    for name, each in pair.items():
        print(f"{name}, exact by depth in percent: {by_depth(each)}")


def by_scheme(rows: list[dict[str, object]]) -> dict[str, tuple[dict[int, Evaluation], ...]]:
    """Return the spliced and the whole evaluations of the holdout, haystack by haystack."""
    found: dict[str, tuple[dict[int, Evaluation], ...]] = {}
    for row in rows:
        if row["stage"] == "holdout":
            spliced, whole = found.setdefault(json.dumps(row["scheme"]), ({}, {}))
            into = spliced if row["fitness"] == "needle" else whole
            into[int(str(row["haystack"]))] = decode(Evaluation, row["evaluation"])
    return found


def of(evaluations: tuple[dict[int, Evaluation], ...], count: int) -> Judged:
    """Return what a scheme came to on the first haystacks."""
    spliced, whole = evaluations
    return Judged(
        evaluations=[spliced[n] for n in range(count)],
        whole={n: each for n, each in whole.items() if n < count},
    )


def by_depth(judged: Judged) -> str:
    """Return the exact answers to spliced needles at each depth."""
    exact, asked = Counter[int](), Counter[int]()
    for evaluation in judged.evaluations:
        for cell in evaluation.cells:
            depth = int(cell.key.split("/")[1])
            exact[depth] += cell.exact is True
            asked[depth] += 1
    return ", ".join(f"{depth}: {exact[depth]} of {asked[depth]}" for depth in sorted(asked))


if __name__ == "__main__":
    main()
