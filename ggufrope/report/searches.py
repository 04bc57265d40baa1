"""The result of a search as a page, a picture and Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ggufrope._format import duration
from ggufrope.report import charts
from ggufrope.report.html import render
from ggufrope.report.overview import bullets, code_block, markdown_table, plain
from ggufrope.report.pictures import framed
from ggufrope.report.views import Series
from ggufrope.search.race import Standing
from ggufrope.search.result import SHOWN_NAMES
from ggufrope.search.schemes import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufrope.report.charts import Spec
    from ggufrope.report.html import Draw
    from ggufrope.report.tables import Content
    from ggufrope.search.evaluate import Evaluation
    from ggufrope.search.holdout import Comparison, SchemeScore
    from ggufrope.search.record import Candidate
    from ggufrope.search.result import SearchResult
    from ggufrope.search.schemes import Scheme

_FACTORS = "What each pair of dimensions is divided by"
_LOSSES = "Loss of the candidates of the screening"
_HEADS = ("scheme", "asked", "recall", "loss ± standard error, nat per token")
ASKED_LEGEND = "spliced: into one plain haystack · whole: the same needles, each in its own prompt"
SO_FAR_HEADS = ("candidate", "haystacks", "exact", "loss")
SO_FAR_LEGEND = "loss: nat per token of the answers; ≥: stopped early, surely behind"
_FINALS_COLUMNS = 4
_FINALS_LEGEND = "front: no finalist is better at one length and as good at the other."


def to_html(result: SearchResult) -> str:
    """Return the result as one HTML document without script.

    Raises MissingDependencyError without the `report` extra.
    """
    return render("search", lambda draw: _page(result, draw))


def to_markdown(result: SearchResult) -> str:
    """Return what the search found as Markdown: the conclusion, the holdout, and how to go on."""
    heads, rows = finals_table(result)
    judged = [markdown_table(heads, rows)]
    if result.holdout:
        comparison = result.holdout[0]
        judged = [markdown_table(_HEADS, _rows(comparison)), plain(_difference(comparison))]
    return "\n\n".join(
        (
            f"## {plain(_title(result))}",
            bullets(_conclusion(result)),
            *judged,
            *([code_block(commands)] if (commands := _commands(result)) else []),
            plain(_lead(result)) + "\n",
        )
    )


def finals_table(result: SearchResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the finals as text: heads, and a row for each finalist.

    The losses at two lengths, and who is on the front of both, only where candidates were judged
    by both.
    """
    two = any(each.original_loss is not None for each in result.finals)
    name = SHOWN_NAMES[result.to_beat]
    heads = ["scheme", "haystacks", "loss, nat/token", f"against {name}"]
    if two:
        lengths = result.rotation.target_context, result.rotation.original_context
        heads += [*(f"at {length:,}" for length in lengths), "front"]
    rows = []
    for each in result.finals:
        row = [each.name, f"{each.haystacks}", f"{each.loss:.4f}", f"{each.difference:+.4f}"]
        if two:
            losses = each.target_loss, each.original_loss
            row += ["–" if loss is None else f"{loss:.4f}" for loss in losses]
            row.append("yes" if each.on_front else "")
        rows.append(tuple(row))
    return tuple(heads), rows


def so_far_tables(candidates: Sequence[Candidate]) -> dict[str, list[tuple[str, ...]]]:
    """Return what an unfinished search has judged, by stage and fitness, the latest first: a row of
    `SO_FAR_HEADS` for each candidate, that of the most haystacks and the least loss first.

    Of a candidate that was stopped early the least that its loss can be is known.
    """
    stages: dict[str, dict[Scheme, list[Evaluation]]] = {}
    for each in candidates:
        asked = "" if each.fitness == "needle" else f" · {each.fitness}"
        judged = stages.setdefault(f"{each.stage}{asked}", {})
        judged.setdefault(each.scheme, []).append(each.evaluation)
    tables = {}
    for stage in reversed(stages):
        standings = [
            Standing(scheme=scheme, evaluations=tuple(evaluations))
            for scheme, evaluations in stages[stage].items()
        ]
        tables[stage] = [_row(each) for each in sorted(standings, key=lambda each: each.rank)]
    return tables


def _row(standing: Standing) -> tuple[str, ...]:
    exact = [cell.exact for each in standing.evaluations for cell in each.cells]
    found = "" if None in exact else f"{sum(map(bool, exact))} of {len(exact)}"
    least = "≥ " if standing.stopped else ""
    loss = f"{least}{standing.loss:.4f}"
    return in_words(standing.scheme), f"{standing.haystacks}", found, loss


def picture(result: SearchResult) -> Spec:
    """Return the picture of the search: what each scheme divides the frequencies by."""
    drawn = [
        {**_factors(result), "title": _FACTORS},
        {**_losses(result), "title": _LOSSES},
    ]
    return framed(_title(result), _conclusion(result), drawn, foot=_lead(result))


def _page(result: SearchResult, draw: Draw) -> Content:
    keep = f"Keep {SHOWN_NAMES[result.to_beat]}"
    badge = ("pass", "The search wins") if result.won else ("open", keep)
    heads, finals = finals_table(result)
    return {
        "title": _title(result),
        "lead": _lead(result),
        "badge": {"style": badge[0], "text": badge[1]},
        "conclusion": _conclusion(result),
        "keep": _commands(result),
        "charts": [
            {"title": _FACTORS, "svg": draw(_factors(result), f"{_FACTORS}: {result.file}")},
            {"title": _LOSSES, "svg": draw(_losses(result), f"{_LOSSES}: {result.file}")},
        ],
        "comparisons": [
            {
                "title": "Finals, on haystacks of the search",
                "heads": [heads[0], *({"text": head, "style": "number"} for head in heads[1:])],
                "rows": [
                    [name, *({"text": value, "style": "number"} for value in values)]
                    for name, *values in finals
                ],
                "text": _FINALS_LEGEND if len(heads) > _FINALS_COLUMNS else "",
            },
            *(
                {
                    "title": f"{what}, {comparison.fitness}",
                    "heads": [
                        _HEADS[0],
                        *({"text": head, "style": "number"} for head in _HEADS[1:]),
                    ],
                    "rows": [
                        [name, *({"text": value, "style": "number"} for value in values)]
                        for name, *values in _rows(comparison)
                    ],
                    "text": f"{_difference(comparison)}. {ASKED_LEGEND}.",
                }
                for what, comparisons in (
                    ("Holdout", result.holdout),
                    ("Short contexts", result.short_context),
                )
                for comparison in comparisons
            ),
        ],
        "searched": "" if result.won else searched_commands(result),
        "to_beat": SHOWN_NAMES[result.to_beat],
        "settings": json.dumps(result.search, indent=1),
        "footer": f"Search schema {result.schema}.",
    }


def searched_commands(result: SearchResult) -> str:
    """Return the commands for the searched scheme, one per line."""
    both = (result.searched_patch_command, result.searched_serve_command)
    return "\n".join(command for command in both if command)


def _commands(result: SearchResult) -> tuple[str, ...]:
    """The commands to go on with."""
    commands = [result.patch_command] if result.patch_command else []
    if result.serve_command:
        lead = f"# {instead(result)}: " if commands else ""
        commands.append(lead + result.serve_command)
    return tuple(commands)


def instead(result: SearchResult) -> str:
    """Return what is said before the command that runs the file with flags."""
    alike = ", which changes short contexts too" if result.short else ""
    return f"or with the file as it is{alike}"


def _title(result: SearchResult) -> str:
    return f"{result.file}: a search for {result.rotation.target_context:,} tokens"


def _lead(result: SearchResult) -> str:
    native = result.rotation.original_context
    return (
        f"Original context {native:,} tokens. {len(result.history):,} evaluations in "
        f"{duration(result.seconds)}."
    )


def _conclusion(result: SearchResult) -> tuple[str, ...]:
    warning = "Quality within the original context dropped: see the short contexts."
    return (result.conclusion, *([] if result.short_context_passed else [warning]))


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [(score.name, score.asked, *_score(score)) for score in comparison.scores]


def _score(score: SchemeScore) -> tuple[str, str]:
    share, loss = score.recall, score.loss
    recall = "–"
    if share is not None and share.value is not None:
        recall = f"{share.value:.1%} ({share.low or 0:.1%} – {share.high or 0:.1%}) of {share.n:,}"
    if loss.value is None or loss.standard_error is None:
        return recall, "–" if loss.value is None else f"{loss.value:.4f}"
    return recall, f"{loss.value:.4f} ± {loss.standard_error:.4f}"


def _difference(comparison: Comparison) -> str:
    found = comparison.difference
    return (
        f"{comparison.scores[0].name} against {comparison.against}: {found.value:+.4f} nat per "
        f"token (95 %: {found.low:+.4f} to {found.high:+.4f}), {comparison.verdict}"
    )


def _factors(result: SearchResult) -> Spec:
    series = {
        curve.name: [(float(pair), factor) for pair, factor in enumerate(curve.factors, 1)]
        for curve in result.curves
    }
    return _lines(series, x="pair of dimensions, fast to slow", y="divided by")


def _losses(result: SearchResult) -> Spec:
    screened = [
        (float(step.number), step.loss)
        for step in result.history
        if step.stage == "screening" and step.haystack == 0
    ]
    return _lines({"screening": screened}, x="candidate", y="loss, nat per token")


def _lines(series: dict[str, list[tuple[float, float]]], *, x: str, y: str) -> Spec:
    return charts.lines(
        [
            Series(model="", scaling=name, kv="", points=tuple(points))
            for name, points in series.items()
        ],
        {"scaling": list(series), "kv": [""]},
        x=x,
        y=y,
        tokens=False,
    )
