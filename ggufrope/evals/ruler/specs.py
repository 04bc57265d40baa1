"""The thirteen tasks of RULER (Hsieh et al., 2024) as a table, and how their answers are scored.

Scores are comparable with published ones only as far as the wording, which is ours, allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ggufrope.evals.facts import ValueKind

Family: TypeAlias = Literal["niah", "vt", "cwe", "fwe", "qa"]
Scoring: TypeAlias = Literal["all", "part"]
"""`all`: the share of the right answers in the output. `part`: whether any is there."""

CHAT_THRESHOLD = 85.6
BASE_THRESHOLD = 79.4
"""Llama-2-7B's mean at 4k, chat and base: what RULER's authors call good enough, in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSpec:
    """One task. Each of `keys` keys has `values` values; the question is about `queries` keys.

    With `haystack` "needle" nothing but other needles surrounds the one. `data` names the file that
    a user must supply. `output_tokens` are generated, and count towards the length.
    """

    name: str
    family: Family
    output_tokens: int
    scoring: Scoring = "all"
    haystack: Literal["noise", "essay", "needle", "none"] = "none"
    key_kind: Literal["word", "uuid"] = "word"
    value_kind: ValueKind = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1
    data: Literal["squad", "hotpotqa"] | None = None


def _niah(
    name: str,
    haystack: Literal["noise", "essay", "needle"],
    value_kind: ValueKind = "number",
    *,
    key_kind: Literal["word", "uuid"] = "word",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> RulerSpec:
    return RulerSpec(
        name=f"niah_{name}",
        family="niah",
        output_tokens=128,
        haystack=haystack,
        key_kind=key_kind,
        value_kind=value_kind,
        keys=keys,
        values=values,
        queries=queries,
    )


RULER_TASKS = (
    _niah("single_1", "noise"),
    _niah("single_2", "essay"),
    _niah("single_3", "essay", "uuid"),
    _niah("multikey_1", "essay", keys=4),
    _niah("multikey_2", "needle"),
    _niah("multikey_3", "needle", "uuid", key_kind="uuid"),
    _niah("multivalue", "essay", values=4),
    _niah("multiquery", "essay", keys=4, queries=4),
    RulerSpec(name="vt", family="vt", output_tokens=30, haystack="noise"),
    RulerSpec(name="cwe", family="cwe", output_tokens=120),
    RulerSpec(name="fwe", family="fwe", output_tokens=50),
    RulerSpec(name="qa_1", family="qa", output_tokens=32, scoring="part", data="squad"),
    RulerSpec(name="qa_2", family="qa", output_tokens=32, scoring="part", data="hotpotqa"),
)
BY_NAME = {spec.name: spec for spec in RULER_TASKS}


def found(output: str, answers: Sequence[str], scoring: Scoring) -> float:
    """Return how much of the answers is in the output, in any case: the share of them, or for
    "part" whether any is."""
    spoken = output.lower()
    hits = sum(answer.lower() in spoken for answer in answers)
    return float(hits > 0) if scoring == "part" else hits / len(answers)


def effective_length(scores: Mapping[int, float], threshold: float = CHAT_THRESHOLD) -> int | None:
    """Return the longest length whose mean, in percent, exceeds the threshold; None where none
    does."""
    return max((length for length, score in scores.items() if score > threshold), default=None)


def effective_length_by_share(scores: Mapping[int, float], share: float = 0.85) -> int | None:
    """Return the longest length that keeps this share of the shortest length's mean."""
    if not scores:
        return None
    own = scores[min(scores)]
    return max(
        (n for n, score in scores.items() if score > 0 and score >= share * own), default=None
    )
