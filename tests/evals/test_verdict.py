"""Verdicts: each threshold passed and missed, and measurements that have no score."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.stats import mean, proportion
from ggufrope.evals.verdict import Evidence, Thresholds, judge


def test_recall_is_judged_at_every_length() -> None:
    verdict = judge(
        Evidence(recall={8192: proportion(9, 10), 16384: proportion(8, 10)}), Thresholds()
    )
    assert [(check.context_tokens, check.passed) for check in verdict.checks] == [
        (8192, True),
        (16384, False),
    ]
    assert not verdict.passed
    assert verdict.reasons == ("recall at 16384 tokens: 80.0% (required: at least 90.0%)",)


def test_cells_without_a_score_fail() -> None:
    verdict = judge(
        Evidence(recall={8192: proportion(0, 0)}, divergence={8192: None}), Thresholds()
    )
    assert verdict.reasons == ("recall at 8192 tokens: no score",)


def test_no_evidence_is_no_pass() -> None:
    verdict = judge(Evidence(), Thresholds())
    assert not verdict.passed
    assert verdict.reasons == ("no threshold applies to what was measured",)


def test_ruler_is_a_share_of_the_shortest() -> None:
    verdict = judge(Evidence(ruler={4096: 80.0, 8192: 68.0, 16384: 67.0}), Thresholds())
    assert [(check.context_tokens, check.passed) for check in verdict.checks] == [
        (8192, True),
        (16384, False),
    ]
    assert [check.measured for check in verdict.checks] == pytest.approx([0.85, 0.8375])


@pytest.mark.parametrize("shortest", [None, 0.0])
def test_ruler_without_a_score_at_the_shortest_fails(shortest: float | None) -> None:
    verdict = judge(Evidence(ruler={4096: shortest, 8192: 68.0}), Thresholds())
    assert [check.passed for check in verdict.checks] == [False, False]


def test_long_perplexity_against_the_shortest() -> None:
    nll = {4096: 2.0, 32768: 3.5}
    own = judge(Evidence(nll=nll), Thresholds())
    assert [(check.context_tokens, check.measured, check.passed) for check in own.checks] == [
        (32768, 1.5, False)
    ]


def test_short_context() -> None:
    worse = Evidence(
        short_context_nll=mean([0.6, 0.8]), short_recall=(proportion(40, 40), proportion(10, 40))
    )
    verdict = judge(worse, Thresholds())
    assert [check.passed for check in verdict.checks] == [False, False]
    assert verdict.reasons == (
        "short_context_nll: 0.7 nat (limit: 0.5)",
        "short_context_recall: 25.0%, worse than the original's 100.0%",
    )
    within_error = judge(
        Evidence(short_recall=(proportion(10, 10), proportion(9, 10))), Thresholds()
    )
    assert within_error.passed
    assert [check.reason for check in within_error.checks] == [
        "short_context_recall: 90.0%, within the error of the original's 100.0%"
    ]


def test_a_threshold_of_none_is_not_applied() -> None:
    evidence = Evidence(recall={8192: proportion(0, 10)}, divergence={8192: 0.3})
    verdict = judge(evidence, Thresholds(recall=None, divergence=0.5))
    assert [check.name for check in verdict.checks] == ["divergence"]
    assert verdict.passed
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    "settings", [{"recall": 90.0}, {"short_context_nll": -1.0}, {"ruler_share": float("nan")}]
)
def test_thresholds_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=f"the threshold `{next(iter(settings))}` must be"):
        Thresholds(**settings)
