"""Verdicts: each threshold passed, missed and undecided, the control, and what has no score."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.evals.recall import RecallCell
from ggufrope.evals.stats import proportion
from ggufrope.evals.thresholds import LIMITS, Thresholds, without_task
from ggufrope.evals.verdict import (
    Check,
    Control,
    Evidence,
    Needles,
    Place,
    Reading,
    ShortRecall,
    Verdict,
    judge,
)


def whole(successes: int, n: int) -> tuple[RecallCell, ...]:
    """Whole prompts alone."""
    return tuple(RecallCell(spliced=None, whole=i < successes) for i in range(n))


def needles(
    successes: int,
    n: int,
    *,
    task: str = "needle",
    context: int = 8192,
    control: Control | None = None,
) -> Needles:
    return Needles(
        place=Place(task=task, context_tokens=context),
        cells=whole(successes, n),
        control=control,
        per_sample=5,
    )


def control(successes: int, n: int, change: str | None = "scaling") -> Control:
    words = "at 4096 tokens without the scaling" if change else "at 4096 tokens"
    return Control(words=words, change=change, cells=whole(successes, n))


def reading(limit: str, value: float | None, low: float | None, high: float | None) -> Reading:
    return Reading(
        limit=limit,
        place=Place(task=LIMITS[limit][0], context_tokens=8192),
        value=value,
        low=low,
        high=high,
        noun="loss",
        relation="nat per token above that at 4096 tokens",
        decide="more",
    )


def only_check(verdict: Verdict) -> Check:
    (check,) = verdict.checks
    return check


@pytest.mark.parametrize(
    ("successes", "n", "outcome"),
    [(35, 35, "pass"), (5, 5, "undecided"), (0, 5, "fail"), (34, 35, "undecided")],
)
def test_recall_passes_where_enough_needles_show_it(successes: int, n: int, outcome: str) -> None:
    verdict = judge(Evidence(needles=(needles(successes, n),)), Thresholds())
    assert verdict.outcome == only_check(verdict).outcome == outcome


def test_an_undecided_check_says_what_would_decide_it() -> None:
    check = only_check(judge(Evidence(needles=(needles(5, 5),)), Thresholds()))
    assert check.decide == "35 of 35 whole prompts would show 90%: `samples` 7"
    assert check.reason.startswith(
        "needle recall at 8192 tokens: 100.0% (required: at least 90.0%); 5 whole 1.00: "
    )


def test_each_task_and_length_has_a_check_with_its_name() -> None:
    evidence = Evidence(
        needles=(
            needles(40, 40, context=1024),
            needles(0, 40, context=2048),
            needles(0, 40, task="passkey", context=1024),
        )
    )
    verdict = judge(evidence, Thresholds())
    assert [(c.task, c.context_tokens, c.outcome) for c in verdict.checks] == [
        ("needle", 1024, "pass"),
        ("needle", 2048, "fail"),
        ("passkey", 1024, "fail"),
    ]
    assert verdict.outcome == "fail"
    assert [reason.split(":")[0] for reason in verdict.reasons] == [
        "needle recall at 2048 tokens",
        "passkey recall at 1024 tokens",
    ]


@pytest.mark.parametrize(
    ("here", "there", "words", "cause"),
    [
        ((13, 40), (13, 40), "32.5% at 4096 tokens without the scaling: the model, not", "model"),
        (
            (0, 40),
            (40, 40),
            "100.0% at 4096 tokens without the scaling: the scaling, not",
            "setting",
        ),
        ((0, 40), (20, 40), "50.0% at 4096 tokens without the scaling: the model, and", "both"),
        ((0, 5), (3, 5), "60.0% at 4096 tokens without the scaling", None),
        ((40, 40), (40, 40), "100.0% at 4096 tokens without the scaling", None),
    ],
)
def test_a_failure_is_laid_to_the_model_or_the_scaling(
    here: tuple[int, int], there: tuple[int, int], words: str, cause: str | None
) -> None:
    found = needles(*here, control=control(*there))
    check = only_check(judge(Evidence(needles=(found,)), Thresholds()))
    assert words in check.reason
    assert check.cause == cause
    assert check.reason.endswith("without the scaling") == (cause is None)


def test_a_model_at_a_length_beyond_its_own_blames_no_scaling() -> None:
    found = needles(0, 40, control=control(40, 40, change=None))
    check = only_check(judge(Evidence(needles=(found,)), Thresholds()))
    assert check.reason.endswith("; 100.0% at 4096 tokens")


def test_recall_as_a_share_of_the_control() -> None:
    at = Thresholds(recall=None, recall_share=0.8)
    verdict = judge(Evidence(needles=(needles(150, 150, control=control(150, 150)),)), at)
    check = only_check(verdict)
    assert (check.name, check.outcome, check.measured) == ("recall_share", "pass", 1.0)
    assert "100.0% of the 100.0% at 4096 tokens without the scaling (required:" in check.reason
    lost = judge(Evidence(needles=(needles(10, 150, control=control(150, 150)),)), at)
    assert only_check(lost).outcome == "fail"
    few = only_check(judge(Evidence(needles=(needles(5, 5, control=control(150, 150)),)), at))
    assert few.outcome == "undecided"
    assert "whole prompts would show 80%" in str(few.decide)
    alone = judge(Evidence(needles=(needles(150, 150),)), at)
    assert alone.outcome == "undecided"
    assert alone.reasons == (
        "needle recall at 8192 tokens: no needles of the unscaled model to compare it with",
    )


@pytest.mark.parametrize(
    ("name", "limit", "interval", "outcome"),
    [
        ("long_context_nll", 1.0, (0.4, 0.6), "pass"),
        ("long_context_nll", 1.0, (1.4, 1.6), "fail"),
        ("long_context_nll", 1.0, (0.9, 1.1), "undecided"),
        ("long_context_nll", 1.0, (None, None), "undecided"),
        ("ruler_share", 0.85, (0.9, 1.1), "pass"),
        ("ruler_share", 0.85, (0.7, 0.8), "fail"),
        ("ruler_share", 0.85, (0.8, 0.9), "undecided"),
        ("ruler_share", 0.85, (0.9, None), "pass"),
    ],
)
def test_an_interval_decides(
    name: str, limit: float, interval: tuple[float | None, float | None], outcome: str
) -> None:
    found = reading(name, 1.0, *interval)
    check = only_check(judge(Evidence(readings=(found,)), Thresholds(**{name: limit})))  # type: ignore[arg-type]
    assert check.outcome == outcome
    assert check.decide == ("more" if outcome == "undecided" else None)
    assert "above that at 4096 tokens" in check.reason


@given(
    value=st.floats(-5, 5),
    half=st.floats(0, 5),
    limit=st.floats(0, 5),
    name=st.sampled_from(["long_context_nll", "divergence", "short_context_nll"]),
)
def test_a_limit_inside_the_interval_never_decides(
    value: float, half: float, limit: float, name: str
) -> None:
    found = reading(name, value, value - half, value + half)
    check = only_check(judge(Evidence(readings=(found,)), Thresholds(**{name: limit})))  # type: ignore[arg-type]
    expected = {
        "pass": value + half <= limit,
        "fail": value - half > limit,
        "undecided": value - half <= limit < value + half,
    }
    assert expected[check.outcome]
    assert sum(expected.values()) == 1


def test_what_has_no_score_fails_whatever_is_judged() -> None:
    place = Place(task="needle", context_tokens=8192)
    other = Place(task="kv-cache", context_tokens=8192)
    evidence = Evidence(
        needles=(needles(40, 40),),
        unscored={place: "1 of 41 cells have no score: lost", other: "1 of 1 cells have no score"},
    )
    verdict = judge(evidence, Thresholds())
    assert verdict.reasons == (
        "needle recall at 8192 tokens: 1 of 41 cells have no score: lost",
        "kv-cache at 8192 tokens: 1 of 1 cells have no score",
    )
    assert {check.measured for check in verdict.checks} == {None}
    unlimited = judge(evidence, Thresholds(recall=None))
    assert [check.name for check in unlimited.checks] == ["measured", "measured"]


def test_a_number_without_a_value_fails() -> None:
    found = reading("divergence", None, None, None)
    verdict = judge(Evidence(readings=(found,)), Thresholds(divergence=1.0))
    assert verdict.reasons == ("divergence loss at 8192 tokens: no score",)


def test_no_evidence_has_no_outcome() -> None:
    assert judge(Evidence(), Thresholds()).outcome is None


def test_short_context_recall_names_what_it_is_compared_with() -> None:
    def found(base: tuple[int, int], setting: tuple[int, int]) -> Check:
        short = ShortRecall(
            place=Place(task="short-context", context_tokens=256),
            base="the unscaled model, f16 cache",
            of_base=proportion(*base),
            of_setting=proportion(*setting),
        )
        return only_check(judge(Evidence(short_recall=(short,)), Thresholds()))

    worse = found((40, 40), (10, 40))
    assert worse.outcome == "fail"
    assert worse.reason == (
        "short-context recall at 256 tokens: 25.0%, worse than the 100.0% of the unscaled model, "
        "f16 cache"
    )
    assert found((10, 10), (9, 10)).outcome == "pass"
    assert found((10, 10), (0, 0)).reason == "short-context recall at 256 tokens: no score"


def test_a_threshold_of_none_is_not_applied() -> None:
    found = reading("divergence", 0.3, 0.2, 0.4)
    evidence = Evidence(needles=(needles(0, 10),), readings=(found,))
    verdict = judge(evidence, Thresholds(recall=None, divergence=0.5))
    assert [check.name for check in verdict.checks] == ["divergence"]
    assert verdict.outcome == "pass"
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"recall": 90.0},
        {"recall_share": 1.5},
        {"short_context_nll": -1.0},
        {"ruler_share": float("nan")},
    ],
)
def test_thresholds_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=f"the threshold `{next(iter(settings))}` must be"):
        Thresholds(**settings)  # type: ignore[arg-type]


def test_a_limit_without_its_task_is_said() -> None:
    assert list(without_task(["divergence", "recall"], ["needle"])) == [
        "`divergence` needs `tasks` divergence"
    ]
    assert list(without_task(["recall"], ["kv-cache"])) == [
        "`recall` needs `tasks` needle or passkey"
    ]
    assert Thresholds().applied(["needle", "divergence"]) == ("recall",)
    assert set(LIMITS) == {item.name for item in fields(Thresholds)} - {
        "allow_undecided",
        "require",
        "given",
    }
