"""How a report is shown in the terminal: the conclusion first and last, tables and checks between.

`validate`, `compare` and `run` end in this view, `report` shows a stored run with it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope._format import safe

from .errors import with_flags
from .output import console, one_line
from .tables import heading, row, shown, table

if TYPE_CHECKING:
    from rich.text import Text

    from ggufrope.evals.cache_verdict import Safety
    from ggufrope.evals.recall import Outcome
    from ggufrope.evals.verdict import Check
    from ggufrope.report.caches import CacheAnswer
    from ggufrope.report.comparison import Comparison
    from ggufrope.report.conclusion import Conclusion, Reach
    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow
    from ggufrope.report.views import Heatmap, Square

_COLUMNS = (
    "recall",
    "exact",
    "top_ranked",
    "log_probability",
    "score",
    "perplexity",
    "mean_divergence",
    "rounding",
    "same_top",
    "cache_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)
"""The metrics that the tables show."""
_MARKS: dict[Outcome, tuple[str, str]] = {
    "pass": ("✓", "green"),
    "fail": ("✗", "red"),
    "undecided": ("?", "yellow"),
}
_WORDS: dict[Outcome, tuple[str, str]] = {
    "pass": ("pass", "bold green"),
    "fail": ("FAIL", "bold red"),
    "undecided": ("undecided", "bold yellow"),
}
_SAFETY: dict[Safety, tuple[str, str]] = {
    "safe": ("safe", "bold green"),
    "risky": ("risky", "bold yellow"),
    "unsafe": ("UNSAFE", "bold red"),
    "undecided": ("undecided", "yellow"),
    "unsupported": ("unsupported", "dim"),
}
_GAP = 3
"""Columns between two of a table."""
_SHADES = ("#7f1d1d", "#b45309", "#a16207", "#4d7c0f", "#15803d", "#047857")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a report is shown.

    grids: with the needles, by length and depth.
    gate: whether the verdict decides how the command exits, and not whether all was measured.
    flags: name the options of the command in place of the fields of a plan.
    """

    json: bool
    grids: bool = False
    gate: bool = True
    flags: bool = False

    def words(self, text: str) -> str:
        """Return a text of the library as it is shown."""
        return shown(with_flags(text) if self.flags else text)


def answer(report: RunReport, view: View, *, against: Comparison | None = None) -> None:
    """Print the whole report, as JSON for a script or as tables for a person."""
    if view.json:
        from ggufrope.report.exports import to_json

        sys.stdout.write(to_json(report, against=against))
    else:
        show(report, view)


def show(report: RunReport, view: View) -> None:
    """Print the conclusion first and last; between them tables, what has no score, and checks."""
    from rich.text import Text

    from ggufrope.report.conclusion import conclude
    from ggufrope.report.views import heatmaps, problems

    out = console()
    conclusion = conclude(report)
    if conclusion.caches:
        for caches in conclusion.caches:
            _show_caches(caches)
    else:
        _show_reaches(report, conclusion)
    if view.grids:
        for heatmap in heatmaps(report):
            _show_heatmap(report, heatmap)
    if view.grids or not conclusion.caches:
        _show_tables(report)
    for problem in problems(report):
        cells = "1 cell" if problem.cells == 1 else f"{problem.cells} cells"
        reason = view.words(problem.reason)
        out.print(f"{cells} {problem.status}: {reason} ({shown(problem.where)})", style="yellow")
    _show_checks(report, view)
    out.print()
    headline = Text(view.words(conclusion.headline), style="bold")
    if view.gate and conclusion.outcome is not None:
        outcomes = Counter(entry.verdict.outcome for entry in report.verdicts)
        word = Text(*_WORDS[conclusion.outcome])
        if len(report.verdicts) == 1:
            headline = Text.assemble(word, " ", headline)
        else:
            counts = f"{outcomes['pass']} of {len(report.verdicts)} settings pass"
            counts += f", {outcomes['fail']} fail, {outcomes['undecided']} undecided"
            out.print(Text.assemble(word, " ", counts))
    out.print(headline)
    for line in conclusion.decide:
        out.print(Text.assemble(("to decide it: ", "dim"), view.words(line)))
    for reach in conclusion.best:
        if reach.keep is not None:
            # One line, however long: it is there to be pasted.
            out.print(Text.assemble(("to keep it: ", "dim"), safe(reach.keep)), soft_wrap=True)
    for command in dict.fromkeys(each for found in conclusion.caches for each in found.commands):
        out.print(Text.assemble(("to serve it: ", "dim"), safe(command)), soft_wrap=True)


def _show_reaches(report: RunReport, conclusion: Conclusion) -> None:
    """Print which setting holds to which length, the best first."""
    from rich.text import Text

    from ggufrope.report.charts import tokens

    out = console()
    settings = [reach for reach in conclusion.settings if reach.lengths]
    lengths = sorted({length for reach in settings for length in reach.lengths})
    models = ", ".join(one_line(model.file.name, 30) for model in report.models)
    titles, span = _titles(report)
    parts = (models, conclusion.judged or "no threshold applies", span)
    out.print(heading(" · ".join(part for part in parts if part)))
    if len(settings) < 2 and len(lengths) < 2:
        return
    columns = _telling_apart(
        {
            "model": [one_line(reach.model, 30) for reach in settings],
            "scaling": [titles[reach.model, reach.scaling] for reach in settings],
            "KV": [reach.kv for reach in settings],
        },
        always="scaling",
    )
    names = ["  ".join(parts) for parts in _aligned(columns.values())]
    margin = max(map(len, names))
    remarks = [_remark(reach, several=len(settings) > 1) for reach in settings]
    beside = len(f"  {'':{margin}}   {'':8}  {max(remarks, key=len)}")
    for part in _side_by_side(lengths, (out.width - beside) // 6):
        head = "".join(f"{tokens(n):>6}" for n in part)
        out.print(Text(f"  {'':{margin}}{head}   holds to", style="dim"))
        for name, reach, remark in zip(names, settings, remarks, strict=True):
            marks = [_mark(reach, n) for n in part]
            holds_to = "–" if reach.holds_to is None else tokens(reach.holds_to)
            out.print(
                Text.assemble(
                    (f"  {name:{margin}}", "bold" if reach.best else ""),
                    *((f"{mark:>6}", style) for mark, style in marks),
                    f"   {holds_to:8}  ",
                    (remark, "bold" if reach.best else "dim"),
                )
            )
    words = "  ✓ passes  ✗ fails  N%? undecided at that recall"
    words += "  N/N needles answered exactly" if any(reach.asked for reach in settings) else ""
    out.print(Text(words, style="dim"))


def _show_caches(found: CacheAnswer) -> None:
    """Print what each pair of cache types costs, whether it is safe, and why."""
    from rich.table import Table
    from rich.text import Text

    from ggufrope._format import byte_size
    from ggufrope.report.metrics import format_value

    out = console()
    out.print(heading(f"{one_line(found.model, 30)} · caches at {found.context_tokens:,} tokens"))
    numbers = ("memory", "KLD", "same\ntop", "kept", "prefill\n/s", "decode\n/s")
    made = table("KV", *numbers, "", numeric=numbers, tight=True)
    reasons = Table.grid(padding=(0, 1))
    for each in found.rows:
        values = {
            "mean_divergence": None if each.divergence is None else each.divergence.value,
            "same_top": None if each.same_top is None else each.same_top.value,
            "prefill_tokens_per_second": each.prefill,
            "decode_tokens_per_second": each.decode,
        }
        texts = [
            "" if value is None else format_value(name, value) for name, value in values.items()
        ]
        size = "" if each.memory_bytes is None else byte_size(each.memory_bytes)
        kept = f"{each.kept}/{each.answered}" + (f" +{each.gained}" if each.gained else "")
        word = Text(*(("base", "dim") if each.verdict is None else _SAFETY[each.verdict.word]))
        row(made, each.kv, size.replace(" ", ""), *texts[:2], kept, *texts[2:], word)
        if each.verdict is not None:
            reasons.add_row("", word, each.kv, Text(shown(each.verdict.reason)))
    out.print(made)
    legend = (
        f"base: {found.base}; KLD: mean Kullback-Leibler divergence from it, nat per token; "
        "same top: same most probable token; kept: answers with f16 that are kept, and others "
        "gained; speeds at that depth"
    )
    if any(each.verdict is None and each.divergence is not None for each in found.rows):
        legend += (
            "; the KLD of f16 is what rounding alone does, its RoPE base changed in the last bits"
        )
    out.print(Text(shown(legend), style="dim"))
    out.print(reasons)
    _show_answers(found)


def _show_answers(found: CacheAnswer) -> None:
    """Print how many questions of each task are answered exactly with each cache."""
    from rich.text import Text

    tasks = [*dict.fromkeys(task for each in found.rows for task in each.exact)]
    heads = [task.replace("-", "-\n") for task in tasks]
    made = table("exact answers", *heads, numeric=heads)
    counts = [(each.kv, each.exact) for each in found.rows]
    counts += [("control", found.control)] if found.control else []
    for name, exact in counts:
        row(made, name, *("/".join(map(str, exact.get(task, ()))) for task in tasks))
    out = console()
    out.print(made)
    words = []
    if found.control:
        words.append("control: the unscaled model with an f16 cache, in a short context")
    if any(task not in each.exact for each in found.rows for task in tasks):
        words.append("empty: not asked; what f16 answers none of, no cache can lose")
    if words:
        out.print(Text("; ".join(words), style="dim"))


def _mark(reach: Reach, length: int) -> tuple[str, str]:
    """Return the mark of an outcome and its style; what is undecided shows the recall measured."""
    if length not in reach.lengths:
        return "", ""
    mark, style = _MARKS[reach.lengths[length]]
    recall = reach.recalls.get(length) if reach.lengths[length] == "undecided" else None
    return (mark if recall is None else f"{100 * recall:.0f}%{mark}"), style


def _remark(reach: Reach, *, several: bool) -> str:
    remarks = {
        f"{reach.found}/{reach.asked}": reach.asked,
        "as trained": reach.as_trained,
        "no whole prompts": reach.spliced_only,
        "◀ best": reach.best and several,
    }
    return "  ".join(remark for remark, said in remarks.items() if said)


def _titles(report: RunReport) -> tuple[dict[tuple[str, str], str], str | None]:
    """Return the name of each scaling of each model, with its factor, and the lengths that it
    connects where these are the same for all."""
    from ggufrope.report.conclusion import title_parts

    keys = dict.fromkeys((entry.model, entry.scaling) for entry in report.summary)
    parts = {key: title_parts(report, *key) for key in keys}
    spans = {span for _, span in parts.values() if span}
    names = {key: one_line(name) for key, (name, _) in parts.items()}
    return names, spans.pop() if len(spans) == 1 else None


def _telling_apart(columns: dict[str, list[str]], always: str) -> dict[str, list[str]]:
    """Return the columns that tell rows apart, cache types other than f16, and the one that is
    `always` there."""
    return {
        name: column
        for name, column in columns.items()
        if len(set(column)) > 1 or name == always or (name == "KV" and set(column) != {"f16"})
    }


def _aligned(columns: Iterable[list[str]]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of these columns, each cell as wide as its column."""
    padded = ([f"{cell:{max(map(len, column))}}" for cell in column] for column in columns)
    return zip(*padded, strict=True)


def _side_by_side(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Yield at most so many lengths at a time as have room beside each other, at least one."""
    most = max(most, 1)
    for start in range(0, len(lengths), most):
        yield lengths[start : start + most]


def _show_heatmap(report: RunReport, heatmap: Heatmap) -> None:
    """Print depth × context: the probability of the answer's tokens, ✓ for an exact answer."""
    from rich.text import Text

    from ggufrope.report.conclusion import scaling_title

    out = console()
    scaling = scaling_title(report, heatmap.model, heatmap.scaling)
    title = f"{heatmap.task} · {one_line(heatmap.model, 30)} · {scaling} · KV {heatmap.kv}"
    out.print(heading(f"{title} · {heatmap.exact} of {heatmap.measured} exact"))
    contexts = sorted({square.context_tokens for square in heatmap.squares})
    squares = {(s.context_tokens, s.depth_percent): s for s in heatmap.squares}
    out.print(Text("  depth  " + "".join(f"{context:>8}" for context in contexts), style="dim"))
    for depth in sorted({square.depth_percent for square in heatmap.squares}):
        line = Text(f" {depth:5.0f}%  ", style="dim")
        for context in contexts:
            line.append_text(_square(squares.get((context, depth))))
        out.print(line)
    out.print(Text("  mean probability of the answer's tokens, ✓ exact match", style="dim"))


def _square(square: Square | None) -> Text:
    from rich.text import Text

    if square is None or square.probability is None:
        return Text("       —", style="dim")
    shade = _SHADES[min(len(_SHADES) - 1, int(square.probability * len(_SHADES)))]
    mark = "✓" if square.recall == 1 else " "
    return Text.assemble(" ", (f" {square.probability:4.2f} {mark}", f"white on {shade}"))


def _show_tables(report: RunReport) -> None:
    """Print a table for each task, settings and metrics down, lengths across, and one line that
    explains their words."""
    from rich.text import Text

    from ggufrope.report.metrics import legend
    from ggufrope.report.views import base_words, divergence_base

    used: dict[str, None] = {}
    groups: dict[str, list[SummaryRow]] = {}
    for entry in report.summary:
        base = divergence_base(entry)
        title = (
            entry.title
            if base is None
            else f"cost of the {base}: divergence {base_words(report, base)}"
        )
        groups.setdefault(title, []).append(entry)
    for task, rows in groups.items():
        measured = {metric.name for entry in rows for metric in entry.metrics}
        chosen = [name for name in _COLUMNS if name in measured]
        if chosen:
            _show_table(report, task, rows, chosen)
            used |= dict.fromkeys(chosen)
    words = [legend(used)] if used else []
    if {entry.kv for entry in report.summary} != {"f16"}:
        words.append("KV: types of the K and V cache")
    console().print(Text("; ".join(words), style="dim"))


def _show_table(report: RunReport, task: str, rows: list[SummaryRow], metrics: list[str]) -> None:
    from ggufrope.report.charts import tokens
    from ggufrope.report.metrics import metric_info

    titles, _ = _titles(report)
    lines: dict[tuple[str, ...], dict[int, str]] = {}
    for name in metrics:
        for entry in rows:
            if entry.metric(name) is not None:
                title = titles[entry.model, entry.scaling] + ", control" * entry.control
                metric = metric_info(name).title
                key = (metric, entry.model, title, entry.kv, entry.part or "")
                lines.setdefault(key, {})[entry.context_tokens] = _value(entry, name)
    heads = ("metric", "model", "scaling", "KV", "part")
    columns = _telling_apart(
        {head: [key[i] for key in lines] for i, head in enumerate(heads)}, always="metric"
    )
    out = console()
    out.print(heading(task))
    widest = [max(map(len, (head, *column))) for head, column in columns.items()]
    lengths = sorted({entry.context_tokens for entry in rows})
    cells = (text for values in lines.values() for text in values.values())
    width = max(map(len, (*cells, *map(tokens, lengths)))) + _GAP
    room = out.width - sum(widest) - _GAP * (len(widest) - 1)
    for part in _side_by_side(lengths, room // width):
        numbers = tuple(map(tokens, part))
        made = table(*columns, *numbers, numeric=numbers)
        for number, values in enumerate(lines.values()):
            names = (column[number] for column in columns.values())
            row(made, *names, *(values.get(length, "") for length in part))
        out.print(made)


def _value(entry: SummaryRow, name: str) -> str:
    """Return a metric of a row as text."""
    from ggufrope.report.metrics import format_value

    metric = entry.metric(name)
    return "—" if metric is None or metric.value is None else format_value(name, metric.value)


def _show_checks(report: RunReport, view: View) -> None:
    """Print every check of a single setting; of several, where each begins not to pass."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    titles, _ = _titles(report)
    several = len(report.verdicts) > 1
    for entry in report.verdicts:
        checks = _beginnings(entry.verdict.checks) if several else entry.verdict.checks
        if not checks:
            continue
        title = titles[entry.model, entry.scaling]
        out.print(heading(f"{one_line(entry.model, 30)} · {title} · {entry.kv}"))
        made = Table.grid(padding=(0, 1))
        for check in checks:
            made.add_row("", Text(*_WORDS[check.outcome]), Text(view.words(check.reason)))
        out.print(made)


def _beginnings(checks: Iterable[Check]) -> list[Check]:
    """Return the check at the shortest length of each kind that does not pass."""
    found: dict[tuple[str, str], Check] = {}
    for check in sorted(checks, key=lambda check: check.context_tokens):
        if check.outcome != "pass":
            found.setdefault((check.task, check.name), check)
    return list(found.values())
