"""Which KV cache is safe: the answer to the task `kv`, from the results of a run.

Each pair of cache types is compared with f16 of the same model, scaling and length, on the same
text and the same questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from ggufrope._format import byte_size
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.cache_verdict import CacheEvidence, CacheVerdict, judge_cache
from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.results import NOT_FINITE, CellResult, Metric
from ggufrope.evals.task import KV_TASKS
from ggufrope.patching.command import name_beside, patch_command, serve_command

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow
    from ggufrope.runs.models import ModelFile

Count: TypeAlias = tuple[int, int]
"""How many answers are exact, and of how many questions."""
Place: TypeAlias = "tuple[str, str | None, float | None, int | None, int, str | None]"
"""Where a question lies among those of one pair of cache types."""
_F16 = "f16"
_ANSWERS: Mapping[str, str] = {"needle": "recall", **dict.fromkeys(DAMAGE_TASKS, "exact")}
"""The tasks whose answers are compared, each with the metric that is 1 for an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRow:
    """One pair of cache types at one length.

    `memory_bytes` is the size of the cache, `divergence` and `same_top` are from f16 under the same
    scaling; for f16 itself they are what rounding alone does. Of `answered` exact answers with
    f16, `kept` are exact with this pair too, and it has `gained` others. `exact` counts the exact
    answers of each task, and all. Speeds are in tokens per second at that length. What was not
    measured is None, and f16 has no verdict.
    """

    kv: str
    memory_bytes: int | None
    divergence: Metric | None
    same_top: Metric | None
    answered: int
    kept: int
    gained: int
    exact: Mapping[str, Count]
    prefill: float | None
    decode: float | None
    verdict: CacheVerdict | None

    @property
    def kept_words(self) -> str:
        """How many answers are kept, and gained, in words."""
        gained = f", {self.gained} gained" if self.gained else ""
        return f"{self.kept} of {self.answered}{gained}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAnswer:
    """The caches of one model under one scaling at one length: `rows` with f16 first.

    `base` says what the pairs are compared with. `best` is the smallest pair that is safe, None
    where none smaller than f16 is; `commands` serve the model with it, else with f16. `control`
    counts the exact answers of the unscaled model with f16 in a short context.
    """

    model: str
    scaling: str
    context_tokens: int
    base: str
    rows: tuple[CacheRow, ...]
    best: str | None
    commands: tuple[str, ...]
    control: Mapping[str, Count]

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        sizes = {row.kv: row.memory_bytes for row in self.rows}
        at = f"at {self.context_tokens} tokens"
        if self.best is None:
            open_ = [row.kv for row in self.rows if row.verdict and row.verdict.word == "undecided"]
            words = f"no cache smaller than f16 is shown to be safe {at}"
            return words + (f"; undecided: {', '.join(open_)}" if open_ else "")
        size, of = sizes[self.best], sizes[_F16]
        share = f", {size / of:.0%} of f16's" if size and of else ""
        return f"the smallest safe cache {at}: {self.best}, {byte_size(size or 0)}{share}"

    @property
    def decide(self) -> tuple[str, ...]:
        """What would decide the undecided pairs."""
        ways: dict[str, list[str]] = {}
        for row in self.rows:
            if row.verdict is not None and row.verdict.decide is not None:
                ways.setdefault(row.verdict.decide, []).append(row.kv)
        at = f" at {self.context_tokens} tokens: "
        return tuple(f"{', '.join(pairs)}{at}{way}" for way, pairs in ways.items())


def cache_answers(report: RunReport) -> tuple[CacheAnswer, ...]:
    """Return the answers of a report, in the order of its results; none without the task `kv`."""
    if not report.plan.answers_kv:
        return ()
    places: dict[tuple[str, str, int], dict[str, list[CellResult]]] = {}
    controls: dict[str, list[CellResult]] = {}
    for result in report.cells:
        cell = result.cell
        if cell.control:
            controls.setdefault(cell.model, []).append(result)
        elif cell.task in KV_TASKS:
            place = (cell.model, cell.scaling, cell.context_tokens)
            places.setdefault(place, {}).setdefault(cell.kv, []).append(result)
    files = {model.file.name: model.file for model in report.models}
    requests = {request.name: request for request in report.plan.requests}
    return tuple(
        _answer(report.summary, files[model], requests[scaling], context, caches, controls)
        for (model, scaling, context), caches in places.items()
        if _F16 in caches
    )


def _answer(
    summary: Iterable[SummaryRow],
    file: ModelFile,
    request: ScalingRequest,
    context: int,
    caches: Mapping[str, Sequence[CellResult]],
    controls: Mapping[str, Sequence[CellResult]],
) -> CacheAnswer:
    here = [
        row
        for row in summary
        if (row.model, row.scaling, row.context_tokens) == (file.name, request.name, context)
        and not row.control
    ]
    rounding = next((m for row in here if (m := row.metric("rounding")) is not None), None)
    rows = tuple(
        _row(kv, results, caches[_F16], [row for row in here if row.kv == kv], context, rounding)
        for kv, results in caches.items()
    )
    of_f16 = next(row.memory_bytes for row in rows if row.kv == _F16)
    smaller = [
        (row.memory_bytes, (row.divergence and row.divergence.value) or 0.0, row.kv)
        for row in rows
        if row.verdict is not None and row.verdict.word == "safe"
        if row.memory_bytes is not None and of_f16 is not None and row.memory_bytes < of_f16
    ]
    best = min(smaller)[2] if smaller else None
    return CacheAnswer(
        model=file.name,
        scaling=request.name,
        context_tokens=context,
        base=f"an f16 cache of {file.name} under the same scaling ({request.name})",
        rows=rows,
        best=best,
        commands=tuple(_commands(file, request, context, best or _F16)),
        control=_exact(controls.get(file.name, ())),
    )


def _row(
    kv: str,
    results: Sequence[CellResult],
    base: Sequence[CellResult],
    summary: Sequence[SummaryRow],
    context: int,
    rounding: Metric | None,
) -> CacheRow:
    def metric(task: str, name: str) -> Metric | None:
        found = (row.metric(name) for row in summary if row.task == task)
        return next((each for each in found if each is not None), None)

    def value(name: str) -> float | None:
        found = metric("kv-cache", name)
        return None if found is None else found.value

    own, others = _answers(results), _answers(base)
    both = [(others[place], answered) for place, answered in own.items() if place in others]
    # The divergence of f16 is that of the scaling: another cost, on no axis with this one.
    divergence = rounding if kv == _F16 else metric("divergence", "mean_divergence")
    same_top = metric("rounding" if kv == _F16 else "divergence", "same_top")
    kept = sum(before and now for before, now in both)
    answered = sum(before for before, _ in both)
    gained = sum(now and not before for before, now in both)
    evidence = CacheEvidence(
        divergence=divergence,
        rounding=rounding,
        asked=len(both),
        answered=answered,
        lost=answered - kept,
        gained=gained,
        unscored=_with_f16_too(base) or _reason(results, "error"),
        unsupported=_reason(results, "unsupported"),
    )
    size = value("cache_bytes_per_token")
    return CacheRow(
        kv=kv,
        memory_bytes=None if size is None else round(size * context),
        divergence=divergence,
        same_top=same_top,
        answered=answered,
        kept=kept,
        gained=gained,
        exact=_exact(results),
        prefill=value("prefill_tokens_per_second"),
        decode=value("decode_tokens_per_second"),
        verdict=None if kv == _F16 else judge_cache(evidence),
    )


def _answers(results: Iterable[CellResult]) -> dict[Place, bool]:
    """Return which questions were answered exactly, by their places."""
    found: dict[Place, bool] = {}
    for result in results:
        cell = result.cell
        value = result.value(_ANSWERS.get(cell.task, ""))
        if value is not None:
            place = (cell.task, cell.part, cell.depth_percent, cell.sample, cell.seed, cell.method)
            found[place] = value == 1
    return found


def _exact(results: Iterable[CellResult]) -> dict[str, Count]:
    """Return how many of each task's questions were answered exactly."""
    found: dict[str, Count] = {}
    for (task, *_), exact in _answers(results).items():
        right, asked = found.get(task, (0, 0))
        found[task] = (right + exact, asked + 1)
    return found


def _reason(results: Iterable[CellResult], status: str) -> str | None:
    """Return the reason of cells of a status; that of non-finite logits before others."""
    reasons = [
        result.reason or "no reason recorded" for result in results if result.status == status
    ]
    return NOT_FINITE if NOT_FINITE in reasons else next(iter(reasons), None)


def _with_f16_too(base: Iterable[CellResult]) -> str | None:
    """Return what the model itself fails at: no cache is to blame for that."""
    return f"with f16 too, {NOT_FINITE}" if _reason(base, "error") == NOT_FINITE else None


def _commands(file: ModelFile, request: ScalingRequest, context: int, kv: str) -> Iterator[str]:
    """Yield the commands that serve a model with a cache, its scaling written into a copy first."""
    path, types = file.path, KvTypes.parse(kv)
    if not request.is_file:
        if request.factor is None and request.target_context is None:
            request = replace(request, target_context=context)
        path = name_beside(path, f"-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', request.name)}-{context}")
        yield patch_command(request, file.path, path)
    yield serve_command(path, context, types)
