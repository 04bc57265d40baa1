"""The results of a run as the evidence for its verdicts: one verdict per setting.

A setting is a model under one scaling with one pair of cache types. Its recall is compared with
that of the control: the model as it was trained, with an f16 cache, within its native context.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, fsum, hypot, log
from typing import TYPE_CHECKING

from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.recall import estimate, would_decide
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.stats import ALPHA, Proportion, exact_interval
from ggufrope.evals.thresholds import LIMITS
from ggufrope.evals.verdict import (
    Control,
    Evidence,
    Needles,
    Place,
    Reading,
    ShortRecall,
    Verdict,
    judge,
)
from ggufrope.report.summary import SummaryRow, by_row, combine, recall_cells, summarize

if TYPE_CHECKING:
    from ggufrope.runs.models import ModelFile
    from ggufrope.runs.plan import RunPlan

MORE_TEXT = "more `chunks` of a longer `text`"
_BASES = {"none": "the unscaled model", "file": "the file as it stands"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingVerdict:
    """The verdict on one model under one scaling with one pair of cache types."""

    model: str
    scaling: str
    kv: str
    verdict: Verdict

    @property
    def label(self) -> str:
        """The setting in words."""
        return f"{self.model} · {self.scaling} · {self.kv}"


def judge_settings(
    results: Iterable[CellResult], plan: RunPlan, models: Iterable[ModelFile]
) -> tuple[SettingVerdict, ...]:
    """Return one verdict per setting, in the order in which the settings first appear.

    Control cells are not judged.
    """
    rows = [_Row(results=group) for group in by_row(results)]
    settings: dict[tuple[str, str, str], list[_Row]] = {}
    for row in rows:
        if not row.axes.control:
            settings.setdefault((row.axes.model, row.axes.scaling, row.axes.kv), []).append(row)
    known = {model.name: model for model in models}
    controls = _controls(rows, known)
    return tuple(
        SettingVerdict(
            model=model,
            scaling=scaling,
            kv=kv,
            verdict=judge(_evidence(judged, controls, plan, known[model]), plan.limits),
        )
        for (model, scaling, kv), judged in settings.items()
    )


def too_few_needles(plan: RunPlan) -> str | None:
    """Say that no recall can pass, however good, where the plan asks for too few whole prompts, and
    how many more it takes; None where it can."""
    minimum = plan.limits.recall
    if minimum is None or not set(plan.measured) & set(LIMITS["recall"]):
        return None
    needed = would_decide(estimate(()), minimum)
    per_sample = len(plan.depth_percents)  # each seed is a job, which decides by itself
    cells = per_sample * plan.needle_samples
    most = plan.whole_prompts if plan.mode == "spliced" else cells
    if needed is None or needed <= min(cells, most):
        return None
    more = (
        f"`samples` {ceil(needed / per_sample)}" if needed > cells else f"`whole_prompts` {needed}"
    )
    return (
        f"{min(cells, most)} whole prompts at each length cannot show a recall of {minimum:.0%}, "
        f"only miss it: give {more}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The results of one row of the summary."""

    results: Sequence[CellResult]

    @property
    def axes(self) -> Cell:
        """A cell that has what all of them have in common."""
        return self.results[0].cell

    @property
    def place(self) -> Place:
        return Place(task=self.axes.task, context_tokens=self.axes.context_tokens)

    @property
    def base(self) -> str:
        """What the cells are compared with, in words."""
        notes = next((dict(result.notes) for result in self.results if result.notes), {})
        scaling, _, kv = notes.get("base", "").rpartition(" · ")
        return f"{_BASES.get(scaling, scaling)}, {kv} cache" if kv else "its base"

    def metric(self, name: str) -> Metric:
        """Return a metric over all cells; it has no value where none of them has."""
        return combine(name, [result for result in self.results if result.status == "ok"])


def _controls(rows: Iterable[_Row], models: Mapping[str, ModelFile]) -> dict[tuple[str, str], _Row]:
    """Return the row that each model and task is compared with: its control cells, or the cells of
    the plan that measure the same, at the longest length within the native context."""
    found: dict[tuple[str, str], _Row] = {}
    for row in rows:
        cell, model = row.axes, models[row.axes.model]
        if (
            cell.kv == "f16"
            and cell.scaling in model.native_scalings
            and cell.context_tokens <= (model.native_context or 0)
            and recall_cells(row.results)
        ):
            best = found.setdefault((cell.model, cell.task), row).axes
            if (cell.control, cell.context_tokens) > (best.control, best.context_tokens):
                found[cell.model, cell.task] = row
    return found


def control_rows(
    results: Iterable[CellResult], models: Iterable[ModelFile]
) -> tuple[SummaryRow, ...]:
    """Return what the recall of each model and task is compared with, as rows of a summary."""
    rows = [_Row(results=group) for group in by_row(results)]
    found = _controls(rows, {model.name: model for model in models})
    return tuple(row for each in found.values() for row in summarize(each.results))


def _evidence(
    judged: Sequence[_Row],
    controls: Mapping[tuple[str, str], _Row],
    plan: RunPlan,
    model: ModelFile,
) -> Evidence:
    """Return what the rows of one setting show."""
    kv = judged[0].axes.kv

    def of(*tasks: str) -> list[_Row]:
        found = [row for row in judged if row.axes.task in tasks]
        return sorted(found, key=lambda row: (row.axes.task, row.axes.context_tokens))

    return Evidence(
        needles=tuple(
            Needles(
                place=row.place,
                cells=recall_cells(row.results),
                control=_control(row, controls.get((model.name, row.axes.task)), model),
                is_control=controls.get((model.name, row.axes.task)) is row,
                per_sample=len(plan.depth_percents),
                whole_prompts=plan.whole_prompts if plan.mode == "spliced" else None,
            )
            for row in of(*LIMITS["recall"])
        ),
        readings=(
            *_top_ranked(of(*LIMITS["top_ranked"]), plan),
            *_ruler_shares(of("ruler"), plan),
            *_losses(of("perplexity")),
            *(_from_base("divergence", row, "mean_divergence", "") for row in of("divergence")),
            *(
                _from_base("short_context_nll", row, "nll_difference", "loss")
                for row in of("short-context")
            ),
        ),
        short_recall=tuple(
            ShortRecall(
                place=row.place,
                base=row.base,
                of_base=_share(row.metric("base_recall")),
                of_setting=_share(row.metric("recall")),
            )
            for row in of("short-context")
        ),
        # Of the caches that `kv` compares, one that does not run is an answer, not a failure.
        unscored={} if plan.answers_kv and kv != "f16" else dict(_unscored(judged)),
    )


def _unscored(rows: Iterable[_Row]) -> Iterator[tuple[Place, str]]:
    """Yield the places where cells were requested and have no score, with how many and why.

    Skipped cells count where their place has no score at all. Those of RULER and of puzzles never
    do: a task that does not fit into a length is not measured there.
    """
    may_not_fit = {"ruler", *DAMAGE_TASKS}
    places: dict[Place, list[CellResult]] = {}
    for row in rows:
        places.setdefault(row.place, []).extend(row.results)
    for place, results in places.items():
        missing = [result for result in results if result.status in ("error", "unsupported")]
        if place.task not in may_not_fit and all(result.status == "skipped" for result in results):
            missing = results
        if missing:
            reason = missing[0].reason or "no reason recorded"
            yield place, f"{len(missing)} of {len(results)} cells have no score: {reason}"


def _control(row: _Row, control: _Row | None, model: ModelFile) -> Control | None:
    """Return the needles that those of a row are compared with; none with themselves."""
    if control is None or control is row:
        return None
    here = row.axes
    changes = {
        "scaling": (here.scaling not in model.native_scalings, "without the scaling"),
        "cache": (here.kv != "f16", "with an f16 cache"),
    }
    words = [words for changed, words in changes.values() if changed]
    return Control(
        words=" ".join([f"at {control.axes.context_tokens} tokens", *words]),
        change=" or the ".join(name for name, (changed, _) in changes.items() if changed) or None,
        cells=recall_cells(control.results),
    )


def _top_ranked(rows: Iterable[_Row], plan: RunPlan) -> Iterator[Reading]:
    """Yield the share of the answers that rank first, also where a runtime ranked none of those
    that it answered."""
    for row in rows:
        found, words = row.metric("top_ranked"), ("top-ranked share", "", "more `samples`")
        ranks = row.axes.task == "multikey" or plan.distractors > 0
        if found.n or (ranks and any(result.status == "ok" for result in row.results)):
            reading = _reading("top_ranked", row.place, found, *words)
            yield replace(reading, unscored="the runtime gave no log-probabilities to rank by")


def _from_base(limit: str, row: _Row, name: str, noun: str) -> Reading:
    """Return how far a row is from its base, in nat per token."""
    relation = f"nat per token {'above' if noun else 'from'} {row.base}"
    return _reading(limit, row.place, row.metric(name), noun, relation, MORE_TEXT)


def _losses(rows: Sequence[_Row]) -> Iterator[Reading]:
    """Yield how far the loss at each length lies above that at the shortest."""
    if len(rows) < 2:
        return
    base, *losses = (row.metric("nll") for row in rows)
    relation = f"nat per token above that at {rows[0].axes.context_tokens} tokens"
    for row, loss in zip(rows[1:], losses, strict=True):
        value = low = high = None
        if loss.value is not None and base.value is not None:
            value = loss.value - base.value
            if loss.high is not None and base.high is not None:
                half = hypot(loss.high - loss.value, base.high - base.value)
                low, high = value - half, value + half
        found = Metric(name="nll", value=value, low=low, high=high)
        yield _reading("long_context_nll", row.place, found, "loss", relation, MORE_TEXT)


def _ruler_shares(rows: Sequence[_Row], plan: RunPlan) -> Iterator[Reading]:
    """Yield the mean at each length as a share of that at the shortest, over the tasks that were
    measured at both.

    The interval is exact for answers that are right or wrong, and wider than need be for those that
    are partly right, which vary less. Each of the four bounds errs in a quarter of 5 %.
    """
    scores: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        values = [v for r in row.results if (v := r.value("score")) is not None]
        if values:
            scores.setdefault(row.axes.context_tokens, {})[row.axes.part or ""] = values
    if len(scores) < 2:
        if rows and "ruler_share" in plan.gates:
            nothing = Metric(name="score", value=None)
            reading = _reading("ruler_share", rows[-1].place, nothing, "mean", "", "")
            yield replace(reading, unscored="no two lengths were measured, to compare them")
        return
    shortest, *others = sorted(scores)
    for length in others:
        parts = sorted(scores[shortest].keys() & scores[length].keys())
        yield _reading(
            "ruler_share",
            Place(task="ruler", context_tokens=length),
            _ratio(*([scores[n][part] for part in parts] for n in (length, shortest))),
            "mean",
            f"of that at {shortest} tokens",
            _more_ruler_samples(len(parts), plan.thresholds.ruler_share),
        )


def _ratio(here: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Metric:
    """Return the mean over the tasks here, as a share of that of the base; without a value where
    the base's is 0."""
    value, of = (fsum(fsum(task) / len(task) for task in tasks) for tasks in (here, base))
    (low, high), (base_low, base_high) = (
        exact_interval(fsum(map(fsum, tasks)), sum(map(len, tasks)), ALPHA / 4)
        for tasks in (here, base)
    )
    return Metric(
        name="score",
        value=value / of if of else None,
        low=low / base_high,
        high=high / base_low if base_low else None,
    )


def _more_ruler_samples(parts: int, share: float | None) -> str:
    """Return how many samples would show this share if every answer were right."""
    if not parts or not share or share == 1:
        return "more `samples`"
    samples = ceil(log(ALPHA / 4) / log(share) / parts)
    return f"`samples` {samples} would show {share:.0%} if all are right"


def _share(found: Metric) -> Proportion:
    """Return a metric that is a share as one."""
    n = found.n or 0
    return Proportion(
        successes=round((found.value or 0) * n),
        n=n,
        value=found.value,
        low=found.low,
        high=found.high,
    )


def _reading(
    limit: str, place: Place, found: Metric, noun: str, relation: str, decide: str
) -> Reading:
    return Reading(
        limit=limit,
        place=place,
        value=found.value,
        low=found.low,
        high=found.high,
        noun=noun,
        relation=relation,
        decide=decide,
    )
