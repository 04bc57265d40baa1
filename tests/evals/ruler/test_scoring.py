"""Scoring by hand, and effective lengths of published models."""

from __future__ import annotations

import pytest

from ggufrope.evals.ruler.specs import (
    BASE_THRESHOLD,
    effective_length,
    effective_length_by_share,
    found,
)

LLAMA_3_1_8B = dict(
    zip(
        (4096, 8192, 16384, 32768, 65536, 131072), (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), strict=True
    )
)


@pytest.mark.parametrize(
    ("output", "answers", "scoring", "score"),
    [
        ("It is 12345.", ("12345",), "all", 1.0),
        ("It is 12345.", ("12345", "67890"), "all", 0.5),
        ("it is PARIS", ("Paris", "France"), "part", 1.0),
        ("it is Rome", ("Paris", "France"), "part", 0.0),
        ("", ("x",), "all", 0.0),
    ],
)
def test_found(output: str, answers: tuple[str, ...], scoring: str, score: float) -> None:
    assert found(output, answers, scoring) == score  # type: ignore[arg-type]


def test_effective_length_as_published() -> None:
    assert effective_length(LLAMA_3_1_8B) == 32768
    assert effective_length(LLAMA_3_1_8B, BASE_THRESHOLD) == 65536
    assert effective_length({4096: 20.0}) is None
    # 85 % of 95.5 is 81.2.
    assert effective_length_by_share(LLAMA_3_1_8B) == 65536
    assert effective_length_by_share({4096: 0.0, 8192: 0.0}) is None
    assert effective_length_by_share({}) is None
