"""What a report shows, as data that a terminal, a page or anything else can draw."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from ggufrope.evals.perplexity import CURVE
from ggufrope.evals.results import CellResult, Metric
from ggufrope.evals.ruler.specs import effective_length, effective_length_by_share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow

HEATMAP_TASKS = ("needle", "passkey", "multikey")
BYTES_PER_TOKEN = "cache_bytes_per_token"
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")
QUALITIES = (
    ("needle", "recall"),
    ("passkey", "recall"),
    ("divergence", "mean_divergence"),
    ("perplexity", "perplexity"),
)
"""Task and metric that measure the quality of a cache type, the most telling first."""
SLOW = 0.5
"""Share of the speed of f16 below which a cache type is reported as slow."""
BASES = {
    "cache": "from an f16 cache under the same scaling",
    "scaling": "from the file as it is, with an f16 cache",
    "file": "from another file, with an f16 cache",
}
"""What a divergence is the cost of, and from which base it is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """One (context, depth) of a heatmap, over its samples and seeds.

    `probability` is the geometric mean of the probabilities that the model gave to the tokens of
    the answer. If nothing was measured, it and `recall` are None and `reason` says why.
    """

    context_tokens: int
    depth_percent: float
    recall: float | None
    probability: float | None
    n: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Length × depth of one model, scaling and cache type."""

    model: str
    scaling: str
    kv: str
    task: str
    squares: tuple[Square, ...]

    @property
    def exact(self) -> int:
        """Needles answered exactly, over all squares."""
        return round(sum((square.recall or 0) * square.n for square in self.squares))

    @property
    def measured(self) -> int:
        """Needles measured, over all squares."""
        return sum(square.n for square in self.squares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a metric along an axis."""

    model: str
    scaling: str
    kv: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Memory and quality of a cache type, at the longest context measured."""

    model: str
    scaling: str
    kv: str
    bytes_per_token: float
    quality: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of one setting at one context."""

    model: str
    scaling: str
    kv: str
    context_tokens: int
    metric: str
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerScores:
    """RULER-style scores of one setting, shares from 0 to 1.

    `tasks` holds (task, context, mean over its samples), `means` (context, mean over the tasks).
    `effective` is the longest context that keeps 85 % of the mean at the shortest one, `published`
    the longest above RULER's own threshold for chat models; None if there is none.
    """

    model: str
    scaling: str
    kv: str
    tasks: tuple[tuple[str, int, float], ...]
    means: tuple[tuple[int, float], ...]
    effective: int | None
    published: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A cache type much slower than f16 at a context: its shares of f16's speeds, by metric, the
    lowest of all scalings."""

    model: str
    kv: str
    context_tokens: int
    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Cells of one task that have no score for the same reason, with whichever caches."""

    status: str
    where: str
    cells: int
    reason: str


def order(report: RunReport) -> dict[str, list[str]]:
    """Return the scalings and the cache types of the plan, in its order."""
    plan = report.plan
    return {
        "scaling": [request.name for request in plan.requests],
        "kv": [str(kv) for kv in plan.kv_types],
    }


def divergence_base(row: SummaryRow) -> str | None:
    """Return which of BASES the divergences of a row are measured from, None where it has none."""
    if row.task != "divergence":
        return None
    return row.cost_of or ("scaling" if row.kv == "f16" else "cache")


def base_words(report: RunReport, base: str) -> str:
    """Return from which base a divergence of BASES is measured, another file by its name."""
    if base == "file" and report.plan.base is not None:
        return f"from {Path(report.plan.base).stem}, with an f16 cache"
    return BASES[base]


def heatmaps(report: RunReport) -> tuple[Heatmap, ...]:
    """Return one heatmap per model, scaling, cache type and task, in the order of the plan.

    The control has none: it has one context, which the tables show.
    """
    groups: dict[tuple[str, str, str, str], dict[tuple[int, float], list[CellResult]]] = {}
    for result in report.cells:
        cell = result.cell
        drawn = cell.task in HEATMAP_TASKS and not cell.control
        if drawn and cell.depth_percent is not None:
            task = cell.task if cell.part is None else f"{cell.task} ({cell.part})"
            key = (cell.model, cell.scaling, cell.kv, task)
            place = (cell.context_tokens, cell.depth_percent)
            groups.setdefault(key, {}).setdefault(place, []).append(result)
    return tuple(
        Heatmap(
            model=model,
            scaling=scaling,
            kv=kv,
            task=task,
            squares=tuple(_square(place, places[place]) for place in sorted(places)),
        )
        for (model, scaling, kv, task), places in groups.items()
    )


def perplexity_curves(report: RunReport) -> tuple[Series, ...]:
    """Return perplexity by position, of each setting at its longest context."""
    longest: dict[tuple[str, str, str], tuple[int, Series]] = {}
    for result in report.cells:
        cell = result.cell
        for curve in result.curves:
            key = (cell.model, cell.scaling, cell.kv)
            if curve.name == CURVE and cell.context_tokens > longest.get(key, (0,))[0]:
                series = Series(
                    model=cell.model, scaling=cell.scaling, kv=cell.kv, points=curve.points
                )
                longest[key] = (cell.context_tokens, series)
    return tuple(series for _, series in longest.values())


def by_context(
    report: RunReport, task: str, metric: str, *, base: str | None = None
) -> tuple[Series, ...]:
    """Return one line per setting: a summary metric of a task by context.

    Divergences are those from one `base` of BASES.
    """
    lines: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in report.summary:
        known = row.metric(metric)
        same = row.task == task and divergence_base(row) == base
        if same and known is not None and known.value is not None:
            lines.setdefault(_setting(row), []).append((row.context_tokens, known.value))
    return tuple(
        Series(model=model, scaling=scaling, kv=kv, points=tuple(sorted(points)))
        for (model, scaling, kv), points in lines.items()
    )


def tradeoffs(report: RunReport) -> tuple[Tradeoff, ...]:
    """Return quality against memory, by the first of QUALITIES that the run measured.

    A divergence is that of the cache, which f16 does not have.
    """
    costs = {
        _setting(row): metric.value
        for row in report.summary
        if (metric := row.metric(BYTES_PER_TOKEN)) is not None and metric.value is not None
    }
    for task, quality in QUALITIES:
        quality_of: dict[tuple[str, str, str], Metric] = {}
        for row in sorted(report.summary, key=lambda row: row.context_tokens):
            metric = row.metric(quality)
            known = metric is not None and metric.value is not None
            ours = row.task == task and divergence_base(row) in (None, "cache") and not row.control
            if metric is not None and known and ours:
                quality_of[_setting(row)] = metric
        if quality_of:
            return tuple(
                Tradeoff(
                    model=key[0],
                    scaling=key[1],
                    kv=key[2],
                    bytes_per_token=cost,
                    quality=quality_of[key],
                )
                for key, cost in costs.items()
                if key in quality_of
            )
    return ()


def speeds(report: RunReport) -> tuple[Speed, ...]:
    """Return the measured prefill and decode speeds."""
    return tuple(
        Speed(
            model=row.model,
            scaling=row.scaling,
            kv=row.kv,
            context_tokens=row.context_tokens,
            metric=name,
            tokens_per_second=metric.value,
        )
        for row in report.summary
        for name in SPEEDS
        if (metric := row.metric(name)) is not None and metric.value is not None
    )


def at_longest(measured: Iterable[Speed]) -> tuple[Speed, ...]:
    """Return the speeds of each model at the longest context that has any."""
    kept = tuple(measured)
    longest: dict[str, int] = {}
    for speed in kept:
        longest[speed.model] = max(speed.context_tokens, longest.get(speed.model, 0))
    return tuple(speed for speed in kept if speed.context_tokens == longest[speed.model])


def slow_caches(report: RunReport) -> tuple[Slow, ...]:
    """Return the cache types below SLOW times a speed of f16, everything else equal, each once.

    Only the longest context counts.
    """
    measured = at_longest(speeds(report))
    base = {_place(speed): speed.tokens_per_second for speed in measured if speed.kv == "f16"}
    slow: dict[tuple[str, str, int], dict[str, float]] = {}
    for speed in measured:
        reference = base.get(_place(speed))
        if reference is not None and speed.tokens_per_second < SLOW * reference:
            share = speed.tokens_per_second / reference
            shares = slow.setdefault((speed.model, speed.kv, speed.context_tokens), {})
            shares[speed.metric] = min(share, shares.get(speed.metric, share))
    return tuple(
        Slow(model=model, kv=kv, context_tokens=context, shares=tuple(shares.items()))
        for (model, kv, context), shares in slow.items()
    )


def ruler_scores(report: RunReport) -> tuple[RulerScores, ...]:
    """Return the RULER-style scores of each setting that has any."""
    settings: dict[tuple[str, str, str], list[tuple[str, int, float]]] = {}
    for row in report.summary:
        metric = row.metric("score")
        if row.part is not None and metric is not None and metric.value is not None:
            entry = (row.part, row.context_tokens, metric.value)
            settings.setdefault(_setting(row), []).append(entry)
    return tuple(_ruler(key, tasks) for key, tasks in settings.items())


def problems(report: RunReport) -> tuple[Problem, ...]:
    """Return the cells without a score, grouped by task and reason; not those that need none."""
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for result in report.cells:
        if result.status != "ok" and not result.is_needless:
            cell, reason = result.cell, result.reason or "no reason recorded"
            key = (result.status, reason, cell.model, cell.scaling, cell.task)
            found.setdefault(key, []).append(cell.kv)
    return tuple(
        Problem(
            status=status,
            where=" · ".join((model, scaling, ", ".join(dict.fromkeys(caches)), task)),
            cells=len(caches),
            reason=reason,
        )
        for (status, reason, model, scaling, task), caches in found.items()
    )


def _ruler(key: tuple[str, str, str], tasks: list[tuple[str, int, float]]) -> RulerScores:
    by_context: dict[int, list[float]] = {}
    for _, context, score in tasks:
        by_context.setdefault(context, []).append(score)
    means = {context: sum(each) / len(each) for context, each in sorted(by_context.items())}
    return RulerScores(
        model=key[0],
        scaling=key[1],
        kv=key[2],
        tasks=tuple(tasks),
        means=tuple(means.items()),
        effective=effective_length_by_share(means),
        published=effective_length({context: 100 * mean for context, mean in means.items()}),
    )


def _place(speed: Speed) -> tuple[str, str, int, str]:
    return (speed.model, speed.scaling, speed.context_tokens, speed.metric)


def _square(place: tuple[int, float], results: list[CellResult]) -> Square:
    # A needle that is asked twice counts once: spliced, as every needle is.
    results = [result for result in results if result.cell.method != "whole"] or results
    recalls = _values(results, "recall")
    log_probabilities = _values(results, "log_probability")
    reasons = [result.reason for result in results if result.reason]
    return Square(
        context_tokens=place[0],
        depth_percent=place[1],
        recall=_mean(recalls),
        probability=exp(sum(log_probabilities) / len(log_probabilities))
        if log_probabilities
        else None,
        n=len(recalls),
        reason=reasons[0] if reasons else None,
    )


def _values(results: Iterable[CellResult], name: str) -> list[float]:
    return [value for result in results if (value := result.value(name)) is not None]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _setting(row: SummaryRow) -> tuple[str, str, str]:
    return (row.model, row.scaling, row.kv)
