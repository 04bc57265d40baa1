"""The limits of a verdict, and the tasks that each of them applies to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import inf

from ggufrope.errors import RequestError

SHARES = ("recall", "recall_share", "top_ranked", "ruler_share")
"""The limits that are a least share; the others are a most in nat."""


def _limit(default: float | None, help_: str, *tasks: str, was: str | None = None) -> float | None:
    """A threshold, the tasks whose measurements it applies to, and its name in the version
    before."""
    metadata = {"help": help_, "tasks": tasks, "was": was}
    value: float | None = field(default=default, metadata=metadata)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Limits of the checks, and what the verdict of a run takes for a pass. Shares lie between 0
    and 1, differences are in nat per token.

    Raises RequestError for a number out of range.
    """

    recall: float | None = _limit(
        0.9, "minimum share of needles answered exactly, at each length", "needle", "passkey"
    )
    recall_share: float | None = _limit(
        None,
        "minimum recall, as a share of that of the unscaled model within its native context",
        "needle",
        "passkey",
    )
    top_ranked: float | None = _limit(
        None,
        "minimum share of needles ranked above every distractor, at each length",
        "needle",
        "passkey",
        "multikey",
        was="beats_distractors",
    )
    ruler_share: float | None = _limit(
        0.85, "minimum RULER-style mean, as a share of the mean at the shortest length", "ruler"
    )
    short_context_nll: float | None = _limit(
        0.5,
        "maximum increase of the negative log-likelihood within the original context, nat per "
        "token",
        "short-context",
        was="short_nll",
    )
    long_context_nll: float | None = _limit(
        1.0,
        "maximum increase of the negative log-likelihood from the shortest length to any other, "
        "nat per token",
        "perplexity",
        was="long_nll",
    )
    divergence: float | None = _limit(
        None,
        "maximum mean KL divergence from the base model or cache, nat per token",
        "divergence",
    )
    allow_undecided: bool = field(
        default=False, metadata={"help": "whether a run passes where a check is undecided"}
    )
    require: str | None = field(
        default=None,
        metadata={"help": "the scaling that has to pass; others are only compared with it"},
    )

    given: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "the limits that somebody gave, also where they equal the default: the task "
            "`kv` is judged by no others"
        },
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.given if name not in LIMITS]:
            raise RequestError(f"`given` {', '.join(unknown)}: expected {', '.join(LIMITS)}")
        for name in LIMITS:
            value = getattr(self, name)
            share = name in SHARES
            if value is not None and not 0 <= value <= (1 if share else inf):
                span = "between 0 and 1" if share else "0 or more"
                raise RequestError(f"the threshold `{name}` must be {span}, got {value:g}")

    def applied(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the limits that apply to what these tasks measure."""
        measured = set(tasks)
        return tuple(
            name
            for name, its in LIMITS.items()
            if getattr(self, name) is not None and measured & set(its)
        )


LIMITS: Mapping[str, tuple[str, ...]] = {
    item.name: item.metadata["tasks"] for item in fields(Thresholds) if "tasks" in item.metadata
}
"""The limits of `Thresholds`, each with the tasks that it applies to."""


def without_task(limits: Iterable[str], tasks: Iterable[str]) -> Iterator[str]:
    """Say of each of these limits that applies to none of the tasks which task it needs."""
    measured = set(tasks)
    for name in limits:
        if not measured & set(LIMITS[name]):
            yield f"`{name}` needs `tasks` {' or '.join(LIMITS[name])}"
