"""PLACEHOLDER until evals.verdict lands"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    recall: float | None = 0.9
