"""What a run measures, cell by cell: where each cell lies in the matrix, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from ggufrope.evals.stats import Mean

Status: TypeAlias = Literal["ok", "error", "unsupported", "skipped"]
"""`unsupported`: this build or model cannot do it. `skipped`: not applicable, or not reached."""
NOT_FINITE = "the model's logits are not finite numbers"
"""Reason recorded when the model returns non-finite logits."""
NOT_NEEDED = "decided without it"
"""Reason, or its beginning, of a cell that was not measured because others had decided already."""
Method: TypeAlias = Literal["spliced", "whole"]
"""How a needle is measured: spliced into a fork of a plain haystack, or in a prompt of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place in the matrix; None where the task does not vary that coordinate."""

    model: str
    scaling: str
    kv: str
    task: str
    context_tokens: int
    seed: int
    depth_percent: float | None = None
    sample: int | None = None
    part: str | None = field(default=None, metadata={"help": "a task of RULER, for instance"})
    control: bool = field(
        default=False,
        metadata={"help": "at the native context, to tell the model's failures from the scaling's"},
    )
    method: Method | None = None

    @property
    def label(self) -> str:
        """The coordinates in words, the same on every machine."""
        parts = [self.model, self.scaling, self.kv, self.task]
        parts += [self.part] if self.part else []
        parts.append(f"{self.context_tokens} tokens")
        if self.depth_percent is not None:
            parts.append(f"depth {self.depth_percent:g}%")
        parts.append(f"seed {self.seed}")
        if self.sample:
            parts.append(f"sample {self.sample}")
        parts += ["whole prompt"] if self.method == "whole" else []
        return " · ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a cell: a value, with its 95 % interval and count where it is an estimate.

    `value` is None where there is no finite number.
    """

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A metric along an axis, as perplexity by position."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The result of one cell. `reason` is set for every status except "ok".

    `notes` are texts that explain the numbers: the needle, the expected answer.
    """

    cell: Cell
    status: Status
    reason: str | None = None
    metrics: tuple[Metric, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    prompt_tokens: int | None = None
    elapsed_seconds: float | None = None

    @property
    def is_needless(self) -> bool:
        """Whether it was skipped because others had decided already."""
        return self.status == "skipped" and (self.reason or "").startswith(NOT_NEEDED)

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def value(self, name: str) -> float | None:
        """Return the value of the metric of that name, or None."""
        metric = self.metric(name)
        return None if metric is None else metric.value


def estimate(name: str, mean: Mean) -> Metric:
    """Return a mean as a metric, with its 95 % interval where there is one."""
    low, high = mean.interval or (None, None)
    return Metric(name=name, value=mean.value, low=low, high=high, n=mean.n)
