"""Stored results as evidence: what is compared with what, and what has no score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.ruler.specs import RULER_TASKS
from ggufrope.evals.thresholds import Thresholds
from ggufrope.evals.verdict import Check
from ggufrope.report.evidence import judge_settings, too_few_needles
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan

MODEL = ModelFile(
    name="m",
    path="m.gguf",
    file_size=1,
    header_sha256="ab",
    native_context=2048,
    native_scalings=("none", "file"),
)


def result(
    task: str,
    context: int,
    value: float | None,
    *,
    metric: str = "recall",
    half: float | None = None,
    base: str | None = None,
    reason: str | None = None,
    **place: Any,
) -> CellResult:
    cell = Cell(
        **{
            "model": "m",
            "scaling": "yarn",
            "kv": "f16",
            "task": task,
            "context_tokens": context,
            "seed": 0,
            **place,
        }
    )
    interval: dict[str, Any] = {}
    if half is not None and value is not None:
        interval = {"low": value - half, "high": value + half}
    return CellResult(
        cell=cell,
        status="error" if reason else "ok",
        reason=reason,
        metrics=(Metric(name=metric, value=value, **interval),),
        notes=() if base is None else (("base", base),),
    )


def needles(context: int, successes: int, n: int, **place: Any) -> list[CellResult]:
    return [
        result("needle", context, float(i < successes), sample=i, method="whole", **place)
        for i in range(n)
    ]


def checks(results: Iterable[CellResult], *, tasks: tuple[str, ...], **at: Any) -> list[Check]:
    plan = RunPlan(
        models=("m.gguf",),
        contexts=(2048, 8192),
        scalings=("none", "yarn"),
        tasks=tasks,  # type: ignore[arg-type]
        mode="whole",
        thresholds=Thresholds(**at),
    )
    return [
        check
        for entry in judge_settings(results, plan, (MODEL,))
        if entry.scaling == "yarn"
        for check in entry.verdict.checks
    ]


def test_recall_is_compared_with_the_control_cells() -> None:
    (check,) = checks(
        [*needles(8192, 0, 40), *needles(2048, 40, 40, scaling="none", control=True)],
        tasks=("needle",),
    )
    assert check.outcome == "fail"
    assert check.reason.endswith(
        "; 100.0% at 2048 tokens without the scaling: the scaling, not the model"
    )


@pytest.mark.parametrize("scaling", ["none", "file"])
def test_a_row_of_the_plan_that_measures_the_same_is_the_control(scaling: str) -> None:
    found = checks(
        [
            *needles(8192, 10, 40),
            *needles(1024, 40, 40, scaling=scaling),
            *needles(2048, 12, 40, scaling=scaling),
            *needles(8192, 40, 40, scaling=scaling),
            *needles(2048, 40, 40, scaling=scaling, kv="q8_0"),
        ],
        tasks=("needle",),
    )
    assert found[0].reason.endswith(
        "; 30.0% at 2048 tokens without the scaling: the model, not the scaling"
    )
    assert found[0].cause == "model"


def test_a_quantized_cache_is_compared_with_f16() -> None:
    found = judge_settings(
        [*needles(2048, 0, 40, scaling="file", kv="q4_0"), *needles(2048, 40, 40, scaling="file")],
        RunPlan(models=("m.gguf",), contexts=(2048,), mode="whole"),
        (MODEL,),
    )
    reasons = [check.reason for entry in found for check in entry.verdict.checks]
    assert reasons[0].endswith("100.0% at 2048 tokens with an f16 cache: the cache, not the model")
    assert reasons[1].endswith("0.91 to 1.00"), "the control itself is compared with nothing"


def test_passkey_and_needle_are_judged_each() -> None:
    passkeys = [result("passkey", 8192, 0.0, sample=i, method="whole") for i in range(40)]
    found = checks([*needles(8192, 40, 40), *passkeys], tasks=("needle", "passkey"))
    assert [(check.task, check.outcome) for check in found] == [
        ("needle", "pass"),
        ("passkey", "fail"),
    ]


def test_multikey_is_no_recall() -> None:
    crowded = [result("multikey", 8192, 0.0, sample=i) for i in range(40)]
    assert checks(crowded, tasks=("multikey",)) == []


def test_a_ranked_needle_counts_once() -> None:
    ranked = [
        result("needle", 8192, 1.0, metric="top_ranked", sample=i, method=method)
        for i in range(20)
        for method in ("spliced", "whole")
    ]
    check = checks(ranked, tasks=("multikey", "needle"), recall=None, top_ranked=0.9)[0]
    assert (check.name, check.outcome) == ("top_ranked", "undecided")
    assert check.low == pytest.approx(0.8389, abs=1e-4), "Wilson's interval of 20 of 20"


def test_a_share_that_is_required_and_was_never_measured_fails() -> None:
    answered = [result("multikey", 8192, 1.0, sample=i) for i in range(4)]
    (check,) = checks(answered, tasks=("multikey",), top_ranked=0.9)
    assert (check.name, check.outcome) == ("top_ranked", "fail")
    assert "gave no log-probabilities to rank by" in check.reason
    scored = [result("ruler", 8192, 1.0, metric="score", part="niah_single_1")]
    (check,) = checks(scored, tasks=("ruler",), ruler_share=0.9)
    assert (check.name, check.outcome) == ("ruler_share", "fail")
    assert "no two lengths were measured" in check.reason
    assert checks(scored, tasks=("ruler",)) == [], "a default is no gate"
    # Needles without distractors are ranked nowhere.
    needles_alone = checks(needles(8192, 40, 40), tasks=("needle", "multikey"), top_ranked=0.9)
    assert [check.name for check in needles_alone] == ["recall"]


def test_losses_are_compared_with_the_shortest_length() -> None:
    found = checks(
        [
            result("perplexity", context, nll, metric="nll", half=0.03)
            for context, nll in ((2048, 2.0), (4096, 2.5), (8192, 3.2))
        ],
        tasks=("perplexity",),
    )
    assert [(check.context_tokens, check.outcome) for check in found] == [
        (4096, "pass"),
        (8192, "fail"),
    ]
    assert found[0].reason == (
        "perplexity loss at 4096 tokens: 0.5 nat per token above that at 2048 tokens (limit: 1); "
        "0.458 to 0.542"
    )


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("yarn · f16", "0.3 nat per token from yarn, f16 cache (limit: 0.1)"),
        ("file · f16", "0.3 nat per token from the file as it stands, f16 cache (limit: 0.1)"),
    ],
)
def test_a_divergence_names_its_base(base: str, words: str) -> None:
    kl = result("divergence", 8192, 0.3, metric="mean_divergence", half=0.1, base=base)
    (check,) = checks([kl], tasks=("divergence",), divergence=0.1)
    assert check.outcome == "fail"
    assert check.reason == f"divergence at 8192 tokens: {words}; 0.2 to 0.4"


def ruler(context: int, score: float, samples: int, parts: int = 11) -> list[CellResult]:
    return [
        result("ruler", context, score, metric="score", part=spec.name, sample=sample)
        for spec in RULER_TASKS[:parts]
        for sample in range(samples)
    ]


@pytest.mark.parametrize(
    ("score", "samples", "outcome"),
    [(1.0, 3, "pass"), (1.0, 1, "undecided"), (0.1, 1, "fail"), (0.8, 3, "undecided")],
)
def test_ruler_is_a_share_of_the_shortest(score: float, samples: int, outcome: str) -> None:
    results = [*ruler(2048, 1.0, samples), *ruler(8192, score, samples)]
    (check,) = checks(results, tasks=("ruler",))
    assert (check.context_tokens, check.outcome) == (8192, outcome)
    assert "% of that at 2048 tokens (required: at least 85.0%)" in check.reason
    if outcome == "undecided":
        assert check.decide == "`samples` 3 would show 85% if all are right"


def test_ruler_compares_only_tasks_that_fit_both_lengths() -> None:
    skipped = CellResult(cell=ruler(2048, 0.0, 1)[0].cell, status="skipped", reason="does not fit")
    results = [skipped, *ruler(2048, 1.0, 3)[3:], *ruler(8192, 1.0, 3)[3:], *ruler(8192, 0.0, 3, 1)]
    (check,) = checks(results, tasks=("ruler",))
    assert (check.measured, check.outcome) == (1.0, "pass")


def test_ruler_without_a_score_at_the_shortest_fails() -> None:
    (check,) = checks([*ruler(2048, 0.0, 3), *ruler(8192, 0.5, 3)], tasks=("ruler",))
    assert (check.outcome, check.measured) == ("fail", None)


def test_short_context_names_its_base() -> None:
    cell = result("short-context", 2048, 0.0, base="none · f16").cell
    metrics = (
        Metric(name="nll_difference", value=0.7, low=0.6, high=0.8, n=100),
        Metric(name="recall", value=0.0, low=0.0, high=0.4, n=5),
        Metric(name="base_recall", value=1.0, low=0.6, high=1.0, n=5),
    )
    found = checks(
        [CellResult(cell=cell, status="ok", metrics=metrics, notes=(("base", "none · f16"),))],
        tasks=("short-context",),
    )
    loss, recall = (check.reason for check in found)
    assert loss == (
        "short-context loss at 2048 tokens: 0.7 nat per token above the unscaled model, f16 cache "
        "(limit: 0.5); 0.6 to 0.8"
    )
    assert recall.endswith(": 0.0%, worse than the 100.0% of the unscaled model, f16 cache")


@pytest.mark.parametrize("task", ["needle", "perplexity", "kv-cache", "divergence", "ruler"])
def test_cells_without_a_score_fail(task: str) -> None:
    lost = result(task, 8192, None, reason="the context broke", sample=0)
    found = checks([lost, result(task, 8192, 1.0, sample=1)], tasks=(task,))
    assert {check.outcome for check in found} == {"fail"}
    assert found[0].reason.endswith(": 1 of 2 cells have no score: the context broke")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"depths": 5, "samples": 7}, None),
        ({"depths": 5}, "20 whole prompts at each length cannot show a recall of 90%"),
        ({"depths": 5}, "give `samples` 7"),
        ({"depths": 5, "seeds": (0, 1)}, "give `samples` 7"),
        ({"whole_prompts": 10}, "give `whole_prompts` 35"),
        ({"mode": "whole", "samples": 3}, "33 whole prompts"),
        ({"depths": 5, "thresholds": Thresholds(recall=0.5)}, None),
        ({"depths": 5, "thresholds": Thresholds(recall=None)}, None),
        ({"depths": 5, "tasks": ("multikey",)}, None),
    ],
)
def test_a_plan_that_no_recall_can_pass_is_said(
    settings: dict[str, Any], words: str | None
) -> None:
    found = too_few_needles(RunPlan(models=("m.gguf",), contexts=(2048,), **settings))
    assert found is None if words is None else words in str(found)
