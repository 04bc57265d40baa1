"""The conclusion of a run, in words a person can act on: which settings hold to which length, the
best of them, what would decide the undecided, and the command to keep the best.

A setting holds to a length if its recall passes there and at every shorter length measured. Where
recall is not judged, every check that has a length counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ggufrope.evals.recall import Outcome
from ggufrope.evals.stats import mean
from ggufrope.evals.thresholds import LIMITS
from ggufrope.evals.verdict import Check, worst
from ggufrope.patching.command import name_beside, patch_command
from ggufrope.patching.request import ScalingRequest
from ggufrope.report.caches import CacheAnswer, cache_answers

if TYPE_CHECKING:
    from ggufrope.report.evidence import SettingVerdict
    from ggufrope.report.record import RunReport
    from ggufrope.runs.models import ModelFile

_RECALL = ("recall", "recall_share")
_VERBS: dict[Outcome, str] = {"pass": "passes", "fail": "fails", "undecided": "undecided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one setting holds; contexts in tokens.

    `name` is the scaling with its factor, `span` the lengths it connects. `lengths` has the outcome
    at each length judged, `recalls` the recall measured there, where it is that which is judged;
    `may_hold_to` counts undecided lengths too. `found` of `asked` needles were
    answered exactly, with this mean `log_probability` in nat per token; with `spliced_only`, no
    whole prompt confirmed them. `as_trained` is the model
    unscaled. `outcome` is that of all checks of the setting. `keep` is the command that writes its
    scaling into a copy of the model, where that is worth while: it is the best or passes, and holds
    further than the model as it was trained.
    """

    model: str
    scaling: str
    kv: str
    name: str
    span: str | None
    lengths: Mapping[int, Outcome]
    recalls: Mapping[int, float]
    holds_to: int | None
    may_hold_to: int | None
    found: int
    asked: int
    log_probability: float | None
    spliced_only: bool
    as_trained: bool
    outcome: Outcome | None
    best: bool = False
    keep: str | None = None

    @property
    def title(self) -> str:
        """The scaling with its factor and its lengths."""
        return self.name if self.span is None else f"{self.name}, {self.span}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a run says. `judged` is what a setting has to pass to hold, None where no threshold
    applies. `headline` is the answer in a sentence. `settings` are ranked, those of each model
    together. `decide` says what would decide what is undecided. `caches` answer the task `kv`."""

    headline: str
    judged: str | None
    outcome: Outcome | None
    passed: bool
    settings: tuple[Reach, ...]
    decide: tuple[str, ...]
    caches: tuple[CacheAnswer, ...] = ()

    @property
    def best(self) -> tuple[Reach, ...]:
        """The best setting of each model that has one which holds anywhere."""
        return tuple(reach for reach in self.settings if reach.best)


def conclude(report: RunReport) -> Conclusion:
    """Return the conclusion of a report."""
    names = _judged_names(report)
    settings: list[Reach] = []
    answers = []
    for model in report.models:
        entries = [entry for entry in report.verdicts if entry.model == model.file.name]
        found = sorted((_reach(report, entry, model.file, names) for entry in entries), key=_rank)
        if not found:
            continue
        if found[0].holds_to is not None:
            found[0] = replace(found[0], best=True)
        settings += [
            reach if reach.best or reach.outcome == "pass" else replace(reach, keep=None)
            for reach in found
        ]
        answer = _answer(report, found, entries, names)
        answers.append(f"{model.file.name}: {answer}" if len(report.models) > 1 else answer)
    caches = cache_answers(report)
    if caches:
        several = len(caches) > 1
        answers = [
            f"{each.model} · {each.scaling}: {each.sentence}" if several else each.sentence
            for each in caches
        ]
    return Conclusion(
        headline=("" if report.complete else "the run is not complete; ")
        + (
            "; ".join(answers)
            or f"{'only the control' if report.cells else 'nothing'} was measured"
        ),
        judged=_judged(report, names),
        outcome=report.outcome,
        passed=report.passed,
        settings=tuple(settings),
        decide=(*_decide(report, settings), *(way for each in caches for way in each.decide)),
        caches=caches,
    )


def scaling_title(report: RunReport, model: str, scaling: str) -> str:
    """Return a scaling of a report with its factor and the lengths in tokens that it connects, as
    "yarn ×8, 256 → 2048"."""
    return ", ".join(part for part in title_parts(report, model, scaling) if part)


def title_parts(report: RunReport, model: str, scaling: str) -> tuple[str, str | None]:
    """Return a scaling with its factor, and the lengths that it connects, None without any."""
    request = _request(report, scaling)
    file = next(m.file for m in report.models if m.file.name == model)
    if request.is_file:
        declared, span = _declared(file)
        return request.label or f"as it stands{declared}", span
    if request.scaling == "none":
        return request.label or "unscaled", None
    if request.from_config is not None:
        return request.name, None
    name, native = request.label or request.scaling, file.native_context
    if native is None:
        return name if request.factor is None else f"{name} ×{request.factor:g}", None
    target = request.target_context
    if target is None:
        longest = max(*report.plan.contexts, native)
        target = longest if request.factor is None else math.floor(native * request.factor)
    factor = request.factor or target / native
    return f"{name} ×{factor:.4g}", f"{native} → {target}"


def _declared(file: ModelFile) -> tuple[str, str | None]:
    """Return the scaling that a file declares, in parentheses, and the lengths that it connects;
    nothing where it declares none."""
    details = dict(file.details)
    prefix = details.get("general.architecture", "")
    try:
        factor = float(details.get(f"{prefix}.rope.scaling.factor", 1))
    except ValueError:  # a key of another type than llama.cpp reads
        return "", None
    if not 1 < factor < math.inf:
        return "", None
    kind = details.get(f"{prefix}.rope.scaling.type", "linear")
    reach = details.get(f"{prefix}.context_length")
    span = f"{file.native_context} → {reach}" if file.native_context and reach else None
    return f" ({kind} ×{factor:.4g})", span


def _request(report: RunReport, scaling: str) -> ScalingRequest:
    """Return the request of that name; that of a control is not in the plan."""
    named = {request.name: request for request in report.plan.requests}
    return named.get(scaling) or ScalingRequest(scaling="none" if scaling == "none" else "file")


def _judged_names(report: RunReport) -> tuple[str, ...]:
    """Return the names of the checks by which a setting holds to a length."""
    names = {check.name for entry in report.verdicts for check in entry.verdict.checks}
    recall = tuple(name for name in _RECALL if name in names)
    return recall or tuple(name for name in LIMITS if name in names and name != "short_context_nll")


def _judged(report: RunReport, names: Sequence[str]) -> str | None:
    """Return what a setting has to pass, in words."""
    if not names or names[0] not in _RECALL:
        return "every check" if names else None
    tasks = dict.fromkeys(row.title for row in report.summary if row.task in LIMITS["recall"])
    at = report.plan.limits
    limits = [f"at least {at.recall:.0%}"] if at.recall is not None else []
    if at.recall_share is not None:
        limits.append(f"at least {at.recall_share:.0%} of the unscaled model's")
    return f"{' and '.join(tasks)} recall, {' and '.join(limits)}"


def _reach(
    report: RunReport, entry: SettingVerdict, model: ModelFile, names: Sequence[str]
) -> Reach:
    by_length: dict[int, list[Outcome]] = {}
    for check in entry.verdict.checks:
        if check.name in names:
            by_length.setdefault(check.context_tokens, []).append(check.outcome)
    lengths = {
        length: outcome
        for length in sorted(by_length)
        if (outcome := worst(by_length[length])) is not None
    }
    rows = [
        row
        for row in report.summary
        if (row.model, row.scaling, row.kv) == (entry.model, entry.scaling, entry.kv)
        and row.task in LIMITS["recall"]
        and not row.control
    ]
    shares = [row.metric("spliced_recall") or row.metric("whole_recall") for row in rows]
    log_probabilities = (row.metric("log_probability") for row in rows)
    holds_to = _holds_to(lengths, "pass")
    name, span = title_parts(report, entry.model, entry.scaling)
    return Reach(
        model=entry.model,
        scaling=entry.scaling,
        kv=entry.kv,
        name=name,
        span=span,
        lengths=lengths,
        recalls={
            check.context_tokens: check.measured
            for check in entry.verdict.checks
            if check.name == "recall" and check.measured is not None
        },
        holds_to=holds_to,
        may_hold_to=_holds_to(lengths, "pass", "undecided"),
        found=sum(round((share.value or 0) * (share.n or 0)) for share in shares if share),
        asked=sum(share.n or 0 for share in shares if share),
        log_probability=mean(m.value for m in log_probabilities if m and m.value is not None).value,
        spliced_only=any(row.scored and row.metric("whole_recall") is None for row in rows),
        as_trained=entry.scaling in model.native_scalings,
        outcome=entry.verdict.outcome,
        keep=_keep(report, entry, model, holds_to),
    )


def _holds_to(lengths: Mapping[int, Outcome], *outcomes: Outcome) -> int | None:
    """Return the longest length up to which every one has one of these outcomes."""
    reached = None
    for length, outcome in lengths.items():
        if outcome not in outcomes:
            break
        reached = length
    return reached


def _rank(reach: Reach) -> tuple[float, ...]:
    """Return the key that sorts the best setting first. Of those that hold as far, one that needs
    no patch is first."""
    order = {"pass": 0, "undecided": 1, None: 2, "fail": 3}
    return (
        -(reach.holds_to or 0),
        -(reach.may_hold_to or 0),
        order[reach.outcome],
        not (reach.holds_to and (reach.as_trained or reach.scaling == "file")),
        -reach.found / (reach.asked or 1),
        -(reach.log_probability or 0),
    )


def _keep(
    report: RunReport, entry: SettingVerdict, model: ModelFile, holds_to: int | None
) -> str | None:
    """Return the command that writes a scaling into a copy of the model; None where there is
    nothing to write, or it holds no further than the model as it was trained, or a check does not
    pass as far as it holds."""
    request = _request(report, entry.scaling)
    if request.is_file or entry.scaling in model.native_scalings:
        return None
    if holds_to is None or holds_to <= (model.native_context or 0):
        return None
    if any(c.outcome != "pass" and c.context_tokens <= holds_to for c in entry.verdict.checks):
        return None
    if request.factor is None and request.target_context is None:
        request = replace(request, target_context=max(report.plan.contexts))
    name = re.sub(r"[^\w.-]+", "-", request.name)
    return patch_command(request, model.path, name_beside(model.path, f"-{name}-{holds_to}"))


def _answer(
    report: RunReport,
    settings: Sequence[Reach],
    entries: Sequence[SettingVerdict],
    names: Sequence[str],
) -> str:
    """Return the answer about one model in a sentence; `settings` are ranked."""
    first = next((reach for reach in settings if reach.lengths), None)
    if first is None:
        return _answer_of_checks(report, entries)
    several = len(settings) > 1
    checks = [
        check
        for entry in entries
        if (entry.scaling, entry.kv) == (first.scaling, first.kv)
        for check in entry.verdict.checks
    ]
    words = f"{_named(first, first.title, settings)}: "
    if first.holds_to is not None:
        words = f"{'best: ' if several else ''}{words}holds to {first.holds_to} tokens"
    elif first.may_hold_to is not None:
        words += f"may hold to {first.may_hold_to} tokens"
        if several and all(reach.spliced_only for reach in settings):
            return _by_splices(settings, max(first.lengths))
        words = f"none is shown to hold; {words}" if several else words
    if stop := _stop(first, [check for check in checks if check.name in names]):
        words += f"{', ' if first.may_hold_to else ''}{stop}"
        if first.may_hold_to is None and several:
            words = f"none holds at {min(first.lengths)} tokens, the shortest length measured"
    equals = [each for each in settings if each is not first and each.holds_to == first.holds_to]
    if first.holds_to is not None and equals:
        words += f"; as far: {', '.join(_named(each, each.name, settings) for each in equals)}"
    for outcome, verb in (("fail", "fails"), ("undecided", "undecided in")):
        others = dict.fromkeys(
            c.task for c in checks if c.name not in names and c.outcome == outcome
        )
        words += f"; {verb} {' and '.join(others)}" if others else ""
    return words


def _by_splices(settings: Sequence[Reach], length: int) -> str:
    """Return what spliced needles found at a length, where nothing else was asked."""
    found = [
        f"{_named(reach, reach.name, settings)} answers {reach.recalls[length]:.0%}"
        for reach in settings
        if length in reach.recalls
    ]
    return (
        f"{settings[0].title}, by spliced needles alone: at {length} tokens "
        f"{', '.join(found)}; whole prompts would confirm it"
    )


def _stop(reach: Reach, checks: Sequence[Check]) -> str:
    """Return where a setting begins not to pass, in which tasks, and why; empty if it never
    does."""
    stop = next(((n, outcome) for n, outcome in reach.lengths.items() if outcome != "pass"), None)
    if stop is None:
        return ""
    there = [check for check in checks if (check.context_tokens, check.outcome) == stop]
    tasks = dict.fromkeys(check.task for check in there)
    several = len({check.task for check in checks}) > 1
    which = f" {' and '.join(tasks)}" if several else ""
    words = f"{_VERBS[stop[1]]}{which} at {stop[0]} tokens"
    if there[0].cause == "model":  # the end of the reason says so
        words += f":{there[0].reason.rpartition(':')[2]}"
    return words


def _named(reach: Reach, name: str, among: Sequence[Reach]) -> str:
    """Return the name of a setting, with its cache type where there are several."""
    return name + (f" · {reach.kv}" if len({each.kv for each in among}) > 1 else "")


def _answer_of_checks(report: RunReport, entries: Sequence[SettingVerdict]) -> str:
    """Return the answer where nothing is judged by its length."""
    checks = [check for entry in entries for check in entry.verdict.checks]
    outcome = worst(check.outcome for check in checks)
    if outcome is not None:
        reasons = [check.reason for check in checks if check.outcome == outcome != "pass"]
        return f"{_VERBS[outcome]}: {reasons[0]}" if reasons else "every check passes"
    if report.complete and not report.measured_anything:
        return "nothing was measured: every cell was skipped"
    tasks, at = set(report.plan.measured), report.plan.limits
    limits = [
        f"`{name}`"
        for name, its in LIMITS.items()
        if getattr(at, name) is None and tasks & set(its)
    ]
    give = f" (give {' or '.join(limits)})" if limits else ""
    return f"measured; no threshold applies{give}"


def _decide(report: RunReport, settings: Sequence[Reach]) -> Iterator[str]:
    """Yield what would decide each setting that is undecided, at its shortest such length; of
    several, those that could hold further than the best."""
    several = len(report.verdicts) > 1
    best = {reach.model: reach.holds_to or 0 for reach in settings if reach.best}
    open_to = {(r.model, r.scaling, r.kv): r.may_hold_to or 0 for r in settings if r.lengths}
    settings_of: dict[str, list[str]] = {}
    for entry in report.verdicts:
        reach = open_to.get((entry.model, entry.scaling, entry.kv), math.inf)
        if several and reach <= best.get(entry.model, 0):
            continue
        open_ = [
            check
            for check in entry.verdict.checks
            if check.decide is not None and check.context_tokens <= reach
        ]
        for check in sorted(open_, key=lambda check: check.context_tokens)[:1]:
            words = f"{check.task} at {check.context_tokens} tokens: {check.decide}"
            title, _ = title_parts(report, entry.model, entry.scaling)
            model = f"{entry.model} · " if len(report.models) > 1 else ""
            settings_of.setdefault(words, []).append(f"{model}{title} · {entry.kv}")
    for words, titles in settings_of.items():
        yield f"{', '.join(titles)}: {words}" if several else words
