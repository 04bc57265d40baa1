"""The proof card as Markdown: a block for a model card, and the metadata before it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ggufrope._files import read_text
from ggufrope._format import byte_size
from ggufrope._plain import encode
from ggufrope.errors import RequestError
from ggufrope.evals.results import Metric
from ggufrope.evals.thresholds import LIMITS
from ggufrope.patching.command import card_command, command_line
from ggufrope.report.card import (
    BLOCK,
    END,
    MOST_TEXT,
    VERSION,
    Card,
    CardModel,
    Measured,
    make_card,
    without_folders,
)
from ggufrope.report.metrics import format_value
from ggufrope.report.overview import (
    bullets,
    code_block,
    markdown_table,
    overview,
    plain,
    with_interval,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.report.record import RunReport

_CACHE_METRICS = (
    "mean_divergence",
    "cache_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


def card_text(report: RunReport, path: Path) -> str:
    """Return what the file at `path` is to say with the card of a run: a new model card, with
    `model-index` in YAML before the block, or that which is there with its block renewed.

    Raises StorageError, RequestError where a file is there without a card, or with several.
    """
    if not path.exists():
        return _front_matter(make_card(report)) + to_block(report)
    text = read_text(path, most=MOST_TEXT)
    count = len(BLOCK.findall(text))
    if count != 1:
        raise RequestError(
            f"{path} is there and has {count or 'no'} card{'s' * (count > 1)} of ggufrope, where "
            "one could be renewed; name a new file, and copy the block from it"
        )
    block = to_block(report).rstrip("\n")
    return BLOCK.sub(lambda _: block, text)


def to_block(report: RunReport) -> str:
    """Return the card of a run as a block of Markdown."""
    report = without_folders(report)
    card, view = make_card(report), overview(report)
    parts = [
        f"<!-- ggufrope card {VERSION} -->",
        "## Context length, measured",
        bullets(view.conclusion),
    ]
    for model in card.models:
        parts += [f"### {plain(model.name)}" if len(card.models) > 1 else "", *_told(model)]
    parts += [
        markdown_table(view.heads, view.rows),
        plain("; ".join(view.legend)),
        *(table for model in card.models for table in _cache_tables(model)),
        bullets([*_files(card.models), _with(card)]),
        "Is a file the one that was measured, and how is it measured again:",
        code_block(_commands(card, view.commands)),
        "<details><summary>The plan, and all of this for programs</summary>",
        code_block([card.plan.rstrip("\n")], language="toml"),
        code_block([_json(encode(card, nulls=True), indent=1)], language="json"),
        "</details>",
        END,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _told(model: CardModel) -> Iterator[str]:
    """Yield the effective length, the control and the cost in short prompts."""
    best = next(iter(model.settings), None)
    if best is None:
        return
    lines = []
    if model.effective_context is None:
        lines.append("Effective context: none is shown")
    else:
        recall = _named(best.measured, LIMITS["recall"], "recall", model.effective_context)
        lines.append(
            f"Effective context: {model.effective_context:,} tokens ({best.scaling}, {best.kv} "
            f"cache){_joined(recall, '; ')}"
        )
    native = "" if model.native_context is None else f" (native context {model.native_context:,})"
    lines.append(f"Control, the unscaled model{native}: {_joined(model.control) or 'not measured'}")
    cost = _named(best.measured, ("short-context",), "nll_difference")
    words = _joined(cost, suffix=" nat per token above the base")
    lines.append(f"Cost in short prompts: {words or 'not measured'}")
    yield bullets(lines)


def _named(
    measured: Iterable[Measured], tasks: Iterable[str], metric: str, context: int | None = None
) -> list[Measured]:
    """Return what was measured of these tasks, whatever kind of needles theirs were."""
    return [
        each
        for each in measured
        if each.metric == metric
        and each.task.partition(" ")[0] in tasks
        and context in (None, each.context_tokens)
    ]


def _joined(measured: Iterable[Measured], prefix: str = "", suffix: str = "") -> str:
    words = ", ".join(
        f"{each.task} {each.metric.replace('_', ' ')} at {each.context_tokens:,} tokens "
        f"{_value(each)}"
        for each in measured
    )
    return words and f"{prefix}{words}{suffix}"


def _value(measured: Measured) -> str:
    return with_interval(
        Metric(name=measured.metric, value=measured.value, low=measured.low, high=measured.high)
    )


def _cache_tables(model: CardModel) -> Iterator[str]:
    """Yield a table for each answer of the task `kv`; without one, of what was measured of each
    cache type under the best scaling, at the longest context of each metric."""
    for scaling, context in dict.fromkeys((e.scaling, e.context_tokens) for e in model.caches):
        yield plain(f"KV cache types at {context:,} tokens ({scaling}), compared with f16:")
        yield markdown_table(
            ("KV cache", "memory", "divergence", "answers kept", ""),
            [
                (
                    each.kv,
                    "–" if each.memory_bytes is None else byte_size(each.memory_bytes),
                    "–"
                    if each.divergence is None
                    else format_value("mean_divergence", each.divergence),
                    f"{each.kept} of {each.answered}",
                    each.safety,
                )
                for each in model.caches
                if (each.scaling, each.context_tokens) == (scaling, context)
            ],
        )
    same = [each for each in model.settings if each.scaling == model.settings[0].scaling]
    if model.caches or len(same) < 2:
        return
    rows = []
    for setting in same:
        found = {
            each.metric: _value(each)
            for each in sorted(setting.measured, key=lambda each: each.context_tokens)
        }
        holds_to = "–" if setting.holds_to is None else f"{setting.holds_to:,}"
        rows.append((setting.kv, holds_to, *(found.get(name, "–") for name in _CACHE_METRICS)))
    yield plain(f"KV cache types under {model.settings[0].scaling}:")
    yield markdown_table(
        ("KV cache", "holds to", "divergence", "bytes/token", "prefill/s", "decode/s"), rows
    )


def _files(models: Iterable[CardModel]) -> Iterator[str]:
    for model in models:
        size = byte_size(model.file_size)
        for file in model.files:
            digest = file.sha256 or f"(header) {model.header_sha256}"
            yield f"{file.name}{f', {size}' if len(model.files) == 1 else ''}: SHA-256 {digest}"


def _with(card: Card) -> str:
    software = ", ".join(f"{name} {version}" for name, version in card.software)
    return f"Measured on {card.created} with {software}" if software else card.created


def _commands(card: Card, more: Sequence[str]) -> tuple[str, ...]:
    checks = (card_command("README.md", model.files[0].name) for model in card.models)
    return tuple(dict.fromkeys((*checks, command_line("run", "plan.toml"), *more)))


def _json(value: object, indent: int | None = None) -> str:
    """Return JSON that ends no block and no comment, whatever its strings are."""
    text = json.dumps(value, indent=indent)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("`", "\\u0060")


def _front_matter(card: Card) -> str:
    """Return the metadata of a model card: the recall and the perplexity of the best settings as
    the Hub's `model-index` has results. Strings are JSON, which is YAML too."""
    kinds = {"recall": "accuracy", "perplexity": "perplexity"}
    lines = ["---", "model-index:"]
    for model in card.models:
        best = next(iter(model.settings), None)
        found = [each for each in best.measured if each.metric in kinds] if best else []
        if best is None or not found:
            continue
        lines += [f"- name: {_json(model.name)}", "  results:"]
        for each in found:
            title = f"{each.task}, {each.context_tokens} tokens"
            lines += [
                "  - task:",
                "      type: text-generation",
                "    dataset:",
                f"      name: {_json(f'ggufrope {title}')}",
                f"      type: {_json('ggufrope-' + each.task.partition(' ')[0])}",
                "    metrics:",
                f"    - type: {kinds[each.metric]}",
                f"      name: {_json(f'{each.metric} of {title}, {best.scaling}, {best.kv}')}",
                f"      value: {each.value!r}",
            ]
    return "\n".join([*lines, "---"]) + "\n\n" if len(lines) > 2 else ""
