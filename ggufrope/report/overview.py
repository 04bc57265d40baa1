"""A run in a few lines: what was run, what it found, one table, and how to go on.

The page, the pictures and a notebook begin with these lines. A pull request or a model card takes
them as Markdown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ggufrope._format import duration, safe
from ggufrope.evals.results import Metric
from ggufrope.report import views
from ggufrope.report.conclusion import conclude
from ggufrope.report.metrics import format_value, metric_info
from ggufrope.report.tables import HEADLINES, task_title
from ggufrope.runs.plan import RunPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport
    from ggufrope.runs.models import ModelFile

Setting: TypeAlias = tuple[str, str, str]
"""Model, scaling and cache type."""

_ENVIRONMENT = ("ggufrope", "llama.cpp", "processor", "layers on GPU")
"""What of an environment a reader of a summary needs to know."""
_NUMBER = re.compile("[-0-9–]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A run in a few lines.

    `heads` and `rows` are a table with one setting per row: the first headline metric at every
    context, the others at the longest; `legend` explains its numbers. `facts` say what was
    measured, with what and when. `commands` keep what passed.
    """

    title: str
    conclusion: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[str, ...]
    facts: tuple[str, ...]
    commands: tuple[str, ...]


def overview(report: RunReport) -> Overview:
    """Return the overview of a report."""
    hidden = 0 if len(report.models) > 1 else 1
    names = ("model", "scaling", "KV cache")[hidden:]
    columns = _columns(report)
    found = conclude(report)
    rows = []
    for reach in found.settings:
        values = (
            with_interval(of.get((reach.model, reach.scaling, reach.kv))) for _, of in columns
        )
        holds_to = "–" if reach.holds_to is None else f"{reach.holds_to:,}"
        setting = (reach.model, reach.title, reach.kv)[hidden:]
        rows.append((*setting, *values, holds_to, reach.outcome or "–"))
    return Overview(
        title=title_of(report),
        conclusion=tuple(
            map(_words, (found.headline, *(f"to decide it: {d}" for d in found.decide)))
        ),
        heads=(*names, *(head for head, _ in columns), "holds to", "verdict"),
        rows=tuple(rows),
        legend=(*_bases(report), "95 % intervals in parentheses"),
        facts=(lead(report), *_origins(report)),
        commands=(
            *(reach.keep for reach in found.settings if reach.keep),
            *dict.fromkeys(command for each in found.caches for command in each.commands),
        ),
    )


def title_of(report: RunReport) -> str:
    """Return what was run, in words: the name of the plan, or models, scalings and caches."""
    plan = report.plan
    if plan.name != RunPlan.__dataclass_fields__["name"].default:
        return plan.name
    models = listed([model.file.name for model in report.models])
    scalings = [request.name for request in plan.requests]
    parts = [models if scalings == ["file"] else f"{models} under {listed(scalings)}"]
    if len(plan.kv) > 1:
        parts.append(f"with {listed(plan.kv)} caches")
    return " ".join((*parts, f"up to {max(plan.contexts):,} tokens"))


def lead(report: RunReport) -> str:
    """Return the models of a run and how much of it was measured, in two sentences."""
    seconds = sum(result.elapsed_seconds or 0.0 for result in report.cells)
    scored = sum(result.status == "ok" for result in report.cells)
    planned = sum(len(entry.job.cells) for entry in report.jobs)
    planned -= sum(result.is_needless for result in report.cells)
    models = listed([_trained(model.file) for model in report.models])
    return f"{models}. {scored:,} of {planned:,} cells measured in {duration(seconds)}."


def against_lead(comparison: Comparison) -> str:
    """Return how many values of a run differ significantly from an earlier one, in a sentence."""
    return (
        f"Of {len(comparison.changes)} values, {len(comparison.regressions)} are "
        f"significantly worse and {len(comparison.improvements)} significantly better."
    )


def to_markdown(report: RunReport, *, against: Comparison | None = None) -> str:
    """Return the overview as Markdown, with its comparison to an earlier run if given."""
    view = overview(report)
    parts = [
        f"## {plain(view.title)}",
        bullets(view.conclusion),
        markdown_table(view.heads, view.rows),
        plain("; ".join(view.legend)),
    ]
    if against is not None:
        changes = [
            f"{change.scaling} · {change.kv} · {change.part or change.task} at "
            f"{change.context_tokens:,} tokens, {metric_info(change.metric).title}: "
            f"{format_value(change.metric, change.before)} → "
            f"{format_value(change.metric, change.after)}"
            for change in (*against.regressions, *against.improvements)
        ]
        parts += [f"Compared with the earlier run: {against_lead(against)}", bullets(changes)]
    parts += [code_block(view.commands), bullets(view.facts)]
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, link, mention or reference."""
    line = safe(text).replace("\n", " ")
    escaped = re.sub(r"([\\`*_\[\]<>|~&!$])", r"\\\1", line)
    return re.sub(r"(?i)(@|#|://|\bwww\.)", r"\1<!-- -->", escaped)


def bullets(lines: Sequence[str]) -> str:
    """Return lines as a list in Markdown, one alone as a paragraph."""
    return "\n".join(f"- {plain(line)}" for line in lines) if len(lines) != 1 else plain(lines[0])


def code_block(lines: Sequence[str], *, language: str = "sh") -> str:
    """Return lines of a shell, or of another language, as a block of code in Markdown; nothing for
    no lines."""
    text = safe("\n".join(lines))
    runs = (len(run) for run in re.findall("`+", text))
    fence = "`" * max(3, *(run + 1 for run in runs), 0)
    return f"{fence}{language}\n{text}\n{fence}" if lines else ""


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its numbers on the right."""
    numbers = [all(_NUMBER.match(row[i]) for row in rows) for i in range(len(heads))]
    lines = [[plain(head) for head in heads], ["---:" if number else "---" for number in numbers]]
    lines += [[plain(entry) for entry in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(report: RunReport) -> list[tuple[str, dict[Setting, Metric]]]:
    """Return the columns of numbers: the first headline at every context, others at the longest."""
    columns: list[tuple[str, dict[Setting, Metric]]] = []
    for number, (title, settings) in enumerate(_headlines(report).items()):
        contexts = sorted({context for at in settings.values() for context in at})
        for context in contexts[-1:] if number else contexts:
            named = number or context == contexts[0]
            head = f"{title} at {context:,}" if named else f"{context:,}"
            found = {setting: at[context] for setting, at in settings.items() if context in at}
            columns.append((head, found))
    return columns


def _headlines(report: RunReport) -> dict[str, dict[Setting, dict[int, Metric]]]:
    """Return what was measured, by title, setting and context, the most telling first."""
    found: dict[str, dict[Setting, dict[int, Metric]]] = {}
    for name in HEADLINES:
        for row in report.summary:
            metric = row.metric(name)
            known = metric is not None and metric.value is not None
            if metric is not None and known and row.task != "ruler" and not row.control:
                base = views.divergence_base(row)
                title = f"cost of the {base}" if base else task_title(report, row.title, name, None)
                at = found.setdefault(title, {}).setdefault((row.model, row.scaling, row.kv), {})
                at[row.context_tokens] = metric
    for scores in views.ruler_scores(report):
        means = found.setdefault("RULER-style mean", {})
        means[scores.model, scores.scaling, scores.kv] = {
            context: Metric(name="score", value=mean) for context, mean in scores.means
        }
    return found


def _bases(report: RunReport) -> Iterator[str]:
    """Yield what the costs are measured from."""
    present = dict.fromkeys(map(views.divergence_base, report.summary))
    for base in filter(None, present):
        yield f"cost of the {base}: divergence {views.base_words(report, base)}, nat per token"


def with_interval(metric: Metric | None) -> str:
    """Return a metric with its 95 % interval, where it has one."""
    if metric is None or metric.value is None:
        return "–"
    text = format_value(metric.name, metric.value)
    if metric.low is None or metric.high is None:
        return text
    low, high = format_value(metric.name, metric.low), format_value(metric.name, metric.high)
    return f"{text} ({low} – {high})"


def _origins(report: RunReport) -> tuple[str, ...]:
    """Return which files were measured, and with what."""
    environments = dict.fromkeys(worker.environment for worker in report.workers)
    return (
        *(
            f"{each.file.name}: SHA-256 of the header {each.file.header_sha256}"
            for each in report.models
        ),
        *(
            ", ".join(f"{name} {value}" for name, value in known if name in _ENVIRONMENT)
            for known in environments
        ),
        f"Started {report.created:%Y-%m-%d %H:%M} UTC",
    )


def _trained(file: ModelFile) -> str:
    native = file.native_context
    return file.name if native is None else f"{file.name} (native context {native:,} tokens)"


def _words(text: str) -> str:
    """Return a sentence with the fields that it names in backquotes as plain words."""
    return re.sub(r"`(\w+)`", r"\1", text)


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence has them: "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
