"""How a run answers: grids, summary and verdict, or the report as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..output import console
from ..text import one_line
from .parts import heading, row, shown, table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ggufrope.evals.results import Metric
    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport
    from ggufrope.report.summary import SummaryRow
    from ggufrope.report.views import Heatmap, Square

_SHADES = ("#7f1d1d", "#b45309", "#a16207", "#4d7c0f", "#15803d", "#047857")


def answer(report: RunReport, *, against: Comparison | None = None, json: bool) -> None:
    """Print the whole report: for a script, or for a person."""
    if json:
        from ggufrope.report.exports import to_json

        sys.stdout.write(to_json(report, against=against))
    else:
        show(report)


def show(report: RunReport) -> None:
    """Grids first, then the summary with intervals, troubles, and the verdict."""
    from ggufrope.report.views import heatmaps, troubles

    out = console()
    for heatmap in heatmaps(report):
        _show_heatmap(heatmap)
    for task in dict.fromkeys(found.task for found in report.summary):
        out.print(heading(task))
        out.print(_summary([found for found in report.summary if found.task == task]))
    for trouble in troubles(report):
        cells = "1 cell" if trouble.cells == 1 else f"{trouble.cells} cells"
        reason = f"{shown(trouble.reason)} ({shown(trouble.where)})"
        out.print(f"{cells} {trouble.status}: {reason}", style="yellow")
    _show_verdict(report)


def _show_heatmap(heatmap: Heatmap) -> None:
    """Depth down, context across: the probability of the answer's tokens, ✓ where it is exact."""
    from rich.text import Text

    out = console()
    title = f"{heatmap.task} · {one_line(heatmap.model, 30)} · {heatmap.scaling} · KV {heatmap.kv}"
    out.print(heading(f"{title} · {heatmap.found} of {heatmap.asked} exact"))
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


def _summary(rows: list[SummaryRow]) -> Table:
    """One task's rows, with the metrics it has."""
    measured = {metric.name for found in rows for metric in found.metrics}
    chosen = [name for name in _COLUMNS if name in measured]
    parts = any(found.part is not None for found in rows)
    numbers = ["context", *(_COLUMNS[name] for name in chosen)]
    columns = ["scaling", "KV", *(["part"] if parts else []), *numbers]
    made = table(*columns, numeric=numbers)
    for found in rows:
        context = f"{found.context_tokens}{' (native)' if found.control else ''}"
        cells = [found.scaling, found.kv, *([found.part] if parts else []), context]
        row(made, *cells, *(_metric(found, name) for name in chosen))
    return made


_COLUMNS = {
    "recall": "recall",
    "top_ranked": "first",
    "log_probability": "nat/token",
    "score": "score",
    "perplexity": "perplexity",
    "mean_divergence": "KLD",
    "same_top": "same top",
    "cache_bytes_per_token": "B/token",
    "prefill_tokens_per_second": "prefill/s",
    "decode_tokens_per_second": "decode/s",
}
"""The metrics the summary shows, and their headings."""


def _metric(found: SummaryRow, name: str) -> str:
    metric: Metric | None = found.metric(name)
    if metric is None or metric.value is None:
        return "—"
    if name in ("recall", "top_ranked"):
        if metric.low is None or metric.high is None:
            return f"{metric.value:.0%}"
        return f"{metric.value:.0%} ({100 * metric.low:.0f}-{100 * metric.high:.0f})"
    return f"{metric.value:,.0f}" if abs(metric.value) >= 1000 else f"{metric.value:.3g}"


def _show_verdict(report: RunReport) -> None:
    from rich.text import Text

    out = console()
    out.print(heading("verdict"))
    for entry in report.verdicts:
        out.print(Text(shown(entry.label), style="dim"))
        for check in entry.verdict.checks:
            mark = ("  pass ", "green") if check.passed else ("  FAIL ", "bold red")
            out.print(Text.assemble(mark, shown(check.reason)))
        if not entry.verdict.checks:
            out.print(f"  {entry.verdict.reasons[0]}")
    if not report.complete:
        out.print("the run is not complete", style="yellow")
    word = ("pass", "bold green") if report.passed else ("FAIL", "bold red")
    out.print(Text.assemble("\n", word))
