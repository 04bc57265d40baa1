"""What a verdict on recall may claim: bounds against other libraries, rates computed exactly."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from benchmarks.verdict_simulation import SPLICES, Design, Truth, simulate, simulate_share
from ggufrope.evals.recall import (
    SHARE_ERROR,
    RecallCell,
    estimate,
    next_look,
    outcome,
    share,
    would_decide,
)
from ggufrope.evals.stats import ALPHA, lower_bound, shows

ROOT = Path(__file__).resolve().parents[2]
MINIMA = (0.8, 0.9, 0.95)


def cells(
    *, both: int = 0, spliced_only: int = 0, whole_only: int = 0, neither: int = 0, rest: int = 0
) -> tuple[RecallCell, ...]:
    """Cells by their answers; of the rest, all spliced successes, no whole prompt is asked."""
    kinds: dict[tuple[bool, bool | None], int] = {
        (True, True): both,
        (True, False): spliced_only,
        (False, True): whole_only,
    }
    kinds |= {(False, False): neither, (True, None): rest}
    return tuple(
        RecallCell(spliced=spliced, whole=whole)
        for (spliced, whole), n in kinds.items()
        for _ in range(n)
    )


def whole(successes: int, failures: int) -> tuple[RecallCell, ...]:
    """Whole prompts of a model that takes no spliced needles."""
    outcomes = [True] * successes + [False] * failures
    return tuple(RecallCell(spliced=None, whole=answered) for answered in outcomes)


counted = st.builds(
    cells,
    both=st.integers(0, 60),
    spliced_only=st.integers(0, 20),
    whole_only=st.integers(0, 20),
    neither=st.integers(0, 60),
    rest=st.integers(0, 100),
)
minima = st.sampled_from((0.0, 1 / 3, 0.5, *MINIMA, 0.99, 1.0))


@pytest.mark.parametrize(
    ("minimum", "passing"),
    [(0.8, (17, 32, 43)), (0.9, (35, 67, 90)), (0.95, (71, 136, 182))],
)
def test_so_many_whole_prompts_show_the_minimum(minimum: float, passing: tuple[int, ...]) -> None:
    """35 of 35 show 90 %, and with one failure 67 are needed."""
    for failures, n in enumerate(passing):
        assert outcome(estimate(whole(n - failures, failures)), minimum) == "pass"
        assert outcome(estimate(whole(n - 1 - failures, failures)), minimum) == "undecided"


def test_a_clear_failure_takes_two_whole_prompts() -> None:
    asked = cells(neither=2, rest=42)
    assert next_look(cells(rest=44), 0.9, 44) == 2
    assert outcome(estimate(asked), 0.9) == "fail"
    assert next_look(asked, 0.9, 44) == 0


@pytest.mark.parametrize("tilt", [0.3, 1.0])
@pytest.mark.parametrize(("successes", "failures"), [(1, 0), (2, 5), (35, 0), (61, 3), (9, 140)])
def test_the_bound_is_where_the_averaged_likelihood_says(
    successes: int, failures: int, tilt: float
) -> None:
    """The average is integrated numerically here, over q = (1 - p) to the power of the tilt."""
    bound = lower_bound(successes, successes + failures, 0.05, tilt)

    def likelihood(p: float) -> float:
        return float(p**successes * (1 - p) ** failures)

    top = (1 - bound) ** tilt
    area, _ = integrate.quad(lambda q: likelihood(1 - q ** (1 / tilt)), 0, top, epsabs=0)
    assert area / top / likelihood(bound) == pytest.approx(20, rel=1e-4)


@given(n=st.integers(1, 300), data=st.data(), tilt=st.sampled_from([0.3, 1.0]))
def test_the_bound_never_promises_more_than_an_exact_test(
    n: int, data: st.DataObject, tilt: float
) -> None:
    """By Markov's inequality Clopper and Pearson's bound for one reading is at least as high."""
    successes = data.draw(st.integers(0, n))
    exact = stats.binomtest(successes, n, alternative="greater")
    ours = lower_bound(successes, n, ALPHA, tilt)
    assert ours <= exact.proportion_ci(1 - ALPHA, method="exact").low + 1e-9
    assert ours <= successes / n


def crossing(recall: float, least: float, readings: int, tilt: float, *, mirrored: bool) -> float:
    """The exact chance that `least` is ever shown while whole prompts are read one by one."""
    chance, crossed = np.array([1.0]), 0.0
    step = (recall, 1 - recall) if mirrored else (1 - recall, recall)
    for n in range(1, readings + 1):
        chance = np.convolve(chance, step)
        for successes in range(n + 1):
            if chance[successes] > 1e-12 and shows(successes, n, least, 0.9 * ALPHA, tilt):
                crossed += chance[successes]
                chance[successes] = 0
    return crossed


@pytest.mark.parametrize("recall", [0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_each_bound_errs_in_less_than_five_percent_however_often_it_is_read(recall: float) -> None:
    """Errors of `low` are false passes with the minimum just above the recall; the 10 % of the
    error that are missing here belong to the spliced cells."""
    low = crossing(recall, recall, 100, 0.3, mirrored=False)
    high = crossing(recall, 1 - recall, 100, 1.0, mirrored=True)
    assert max(low, high) < 0.9 * ALPHA
    assert low + high > 0.01


@pytest.mark.parametrize("splice", SPLICES, ids=str)
def test_false_verdicts_are_rare_whatever_the_splice(splice: Truth) -> None:
    """Just below the minimum a pass is false, just above it a failure is."""
    design = Design(cells=110, limit=44)
    below = simulate(replace(splice, recall=0.899), design, 1000, seed=7)
    above = simulate(replace(splice, recall=0.901), design, 1000, seed=8)
    assert 0.01 < below.passed < ALPHA
    assert 0.005 < above.failed < ALPHA
    assert max(below.low_wrong, below.high_wrong, above.low_wrong, above.high_wrong) < ALPHA


def test_clear_cases_are_decided() -> None:
    lenient = Truth(recall=0.1, bias=0.2)
    assert simulate(lenient, Design(), 500, seed=1).failed > 0.99
    assert simulate(lenient, Design(), 500, seed=1).prompts < 4
    assert simulate(Truth(recall=1.0), Design(), 50, seed=1).passed == 1
    assert simulate(Truth(recall=0.97), Design(cells=150, limit=150), 500, seed=1).passed > 0.7


@pytest.mark.parametrize("control", [1.0, 0.95, 0.6])
def test_a_share_of_the_control_is_rarely_passed_falsely(control: float) -> None:
    found = simulate_share(Truth(recall=0.899 * control), control, Design(), 500, seed=3)
    assert max(found.passed, found.low_wrong, found.high_wrong) < ALPHA


@given(asked=counted, minimum=minima)
def test_the_interval_holds_the_value_and_never_contradicts_the_outcome(
    asked: tuple[RecallCell, ...], minimum: float
) -> None:
    found = estimate(asked)
    assert 0 <= found.low <= found.high <= 1
    assert found.value is None or found.low <= found.value <= found.high
    assert (outcome(found, minimum) == "pass") == (found.low >= minimum)
    assert (outcome(found, minimum) == "fail") == (found.high < minimum)


@given(asked=counted)
def test_spliced_needles_alone_show_nothing(asked: tuple[RecallCell, ...]) -> None:
    found = estimate(replace(cell, whole=None) for cell in asked)
    assert (found.low, found.high) == (0, 1)
    assert found.value == found.spliced.value


@given(successes=st.integers(0, 80), failures=st.integers(0, 80))
def test_one_more_success_never_lowers_the_interval(successes: int, failures: int) -> None:
    found, better = estimate(whole(successes, failures)), estimate(whole(successes + 1, failures))
    worse = estimate(whole(successes, failures + 1))
    assert worse.low <= found.low <= better.low
    assert worse.high <= found.high <= better.high


@given(asked=counted, minimum=minima, limit=st.integers(0, 150))
def test_looks_end_within_the_limit(
    asked: tuple[RecallCell, ...], minimum: float, limit: int
) -> None:
    """Each further whole prompt is a success here, and all cells can be asked."""
    drawn = sum(cell.whole is not None for cell in asked)
    assert next_look(asked, minimum, limit) >= 0
    while further := next_look(asked, minimum, limit):
        assert drawn + further <= min(limit, len(asked))
        drawn += further
        rest = [cell for cell in asked if cell.whole is None]
        answered = tuple(replace(cell, whole=True) for cell in rest[:further])
        asked = (*(cell for cell in asked if cell.whole is not None), *answered, *rest[further:])
    found = estimate(asked)
    needed = would_decide(found, minimum)
    if outcome(found, minimum) == "undecided" and drawn < min(limit, len(asked)):
        assert needed is None or needed > min(limit, len(asked))


@given(successes=st.integers(0, 80), failures=st.integers(0, 8), minimum=st.sampled_from(MINIMA))
def test_what_would_decide_decides(successes: int, failures: int, minimum: float) -> None:
    needed = would_decide(estimate(whole(successes, failures)), minimum)
    if needed is None:
        assert outcome(estimate(whole(successes, failures)), minimum) != "undecided"
        return
    assert outcome(estimate(whole(needed - failures, failures)), minimum) == "pass"
    before = estimate(whole(needed - 1 - failures, failures))
    assert outcome(before, minimum) == "undecided"


def test_undecided_ends_where_no_further_draw_could_decide() -> None:
    """With one failure 67 are needed; 9 more could not fail it either."""
    asked = cells(both=34, spliced_only=1, rest=100)
    assert next_look(asked, 0.9, 44) == 0
    assert next_look(asked, 0.9, 67) == 20
    assert next_look((*asked, *cells(both=20)), 0.9, 67) == 67 - 35 - 20
    assert would_decide(estimate(asked), 0.9) == 67


def test_a_recall_of_one_is_never_shown_and_excluded_by_one_failure() -> None:
    assert outcome(estimate(cells(both=1000)), 1.0) == "undecided"
    assert would_decide(estimate(cells(both=1000)), 1.0) is None
    assert outcome(estimate(cells(both=999, spliced_only=1)), 1.0) == "fail"
    assert outcome(estimate(()), 0.0) == "pass"


def test_spliced_cells_that_whole_prompts_follow_narrow_the_interval() -> None:
    """440 spliced cells, 308 of them answered; 40 whole prompts agree with theirs."""
    asked = cells(both=28, neither=12, rest=280)
    asked += (RecallCell(spliced=False, whole=None),) * 120
    alone = estimate(replace(cell, spliced=None) for cell in asked)
    assert alone.low < estimate(asked).low < 0.7 < estimate(asked).high < alone.high


def test_the_value_is_the_difference_estimate() -> None:
    """0.9 of 100 spliced, and whole prompts are worse by 2 of 20 pairs: 0.8."""
    asked = cells(both=16, spliced_only=2, neither=2, rest=72)
    asked += (RecallCell(spliced=False, whole=None),) * 8
    assert estimate(asked).value == pytest.approx(0.9 - 0.1)


def test_one_line_has_the_evidence() -> None:
    asked = cells(both=24, rest=38) + (RecallCell(spliced=False, whole=None),) * 2
    assert estimate(asked).evidence == (
        "64 spliced 0.97, 24 whole 1.00, 24 of 24 agree: 0.86 to 1.00"
    )
    assert estimate(whole(35, 0)).evidence == "35 whole 1.00: 0.90 to 1.00"
    assert estimate(()).evidence == "no score: 0.00 to 1.00"


def test_a_share_is_judged_by_both_intervals() -> None:
    control = estimate(cells(both=44), error=SHARE_ERROR)
    same, lost = share(cells(both=44), control), share(cells(neither=44), control)
    assert same.value == 1
    assert outcome(same, 0.9) == "pass"
    assert outcome(lost, 0.9) == "fail"
    assert next_look(cells(both=41, rest=3), 0.9, 44, control=control) == 1
    assert would_decide(share(cells(both=41, rest=3), control), 0.9) == 42


def test_a_control_that_finds_nothing_decides_no_share() -> None:
    control = estimate(cells(neither=4), error=SHARE_ERROR)
    found = share(cells(neither=4), control)
    assert (found.value, found.high) == (None, None)
    assert outcome(found, 0.9) == "undecided"


def test_the_tables_of_the_page_are_those_that_were_printed() -> None:
    def rows(path: str) -> set[str]:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return {line for line in lines if re.match(r"\| [\d.]+ ?[%|]", line)}

    quoted = rows("docs/verdicts.md")
    assert len(quoted) > 30
    assert quoted <= rows("benchmarks/results/verdict_simulation.md")
