"""The thirteen tasks of RULER (Hsieh et al., 2024), as a table of what each is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ggufrope.evals.facts import ValueKind

Family: TypeAlias = Literal["niah", "vt", "cwe", "fwe", "qa"]
Metric: TypeAlias = Literal["all", "part"]
"""`all`: the share of the references found. `part`: whether any is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSpec:
    """One task. `keys` have `values` values each, and `queries` of them are asked for.

    `haystack` "needle" means that nothing but other needles surrounds the one. `data` names the
    file a user must supply. `output_tokens` are generated, and count towards the length.
    """

    name: str
    family: Family
    output_tokens: int
    metric: Metric = "all"
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
    RulerSpec(name="qa_1", family="qa", output_tokens=32, metric="part", data="squad"),
    RulerSpec(name="qa_2", family="qa", output_tokens=32, metric="part", data="hotpotqa"),
)
BY_NAME = {spec.name: spec for spec in RULER_TASKS}
