"""Scoring by hand, and effective lengths of published models."""

from __future__ import annotations

import pytest

from ggufrope.evals.ruler.scoring import (
    BASE_THRESHOLD,
    RulerResult,
    by_length,
    effective_length,
    effective_length_by_share,
    found,
)
from ggufrope.evals.ruler.specs import RULER_TASKS
from ggufrope.evals.types import Score

LLAMA_3_1_8B = dict(
    zip(
        (4096, 8192, 16384, 32768, 65536, 131072), (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), strict=True
    )
)


@pytest.mark.parametrize(
    ("output", "answers", "metric", "score"),
    [
        ("It is 12345.", ("12345",), "all", 1.0),
        ("It is 12345.", ("12345", "67890"), "all", 0.5),
        ("it is PARIS", ("Paris", "France"), "part", 1.0),
        ("it is Rome", ("Paris", "France"), "part", 0.0),
        ("", ("x",), "all", 0.0),
    ],
)
def test_found(output: str, answers: tuple[str, ...], metric: str, score: float) -> None:
    assert found(output, answers, metric) == score  # type: ignore[arg-type]


def test_effective_length_as_published() -> None:
    assert effective_length(LLAMA_3_1_8B) == 32768
    assert effective_length(LLAMA_3_1_8B, BASE_THRESHOLD) == 65536
    assert effective_length({4096: 20.0}) is None
    # 85 % of 95.5 is 81.2.
    assert effective_length_by_share(LLAMA_3_1_8B) == 65536
    assert effective_length_by_share({4096: 0.0, 8192: 0.0}) is None
    assert effective_length_by_share({}) is None


def result(task: str, sample: int, score: float | None) -> RulerResult:
    return RulerResult(
        task=task,
        context_tokens=4096,
        sample=sample,
        prompt_tokens=4000,
        output="",
        answers=(),
        score=Score(value=score, reason="" if score is not None else "failed"),
    )


def test_the_mean_is_of_tasks_not_of_samples() -> None:
    scores = by_length([result("vt", 0, 1.0), result("vt", 1, 0.0), result("cwe", 0, 1.0)])[4096]
    assert [(name, score.value, score.n) for name, score in scores.tasks] == [
        ("vt", 50.0, 2),
        ("cwe", 100.0, 1),
    ]
    assert scores.value == 75.0
    assert not scores.complete


def test_all_thirteen_are_complete() -> None:
    scores = by_length(result(spec.name, 0, 1.0) for spec in RULER_TASKS)[4096]
    assert scores.complete
    assert scores.value == 100


def test_unscored_samples_are_no_zeros() -> None:
    scores = by_length([result("vt", 0, 1.0), result("vt", 1, None)])[4096]
    assert scores.value == 100
    assert scores.unscored == 1
