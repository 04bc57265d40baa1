"""The proof card of a run: what a publisher puts into a model card, for people and for programs.

A card is a block of Markdown between two comments. It ends with the same facts as JSON, of which
`Card` is the schema, so that `matches` can say whether a file is the one that was measured. The
format has a version; docs/card.md describes it. A card names files without their folders, and has
nothing of the machine that measured but its software.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ggufrope._files import read_text, sha256_of
from ggufrope._format import byte_size
from ggufrope._plain import decode, encode
from ggufrope.backends import RuntimeSettings
from ggufrope.container.reader import read_header, read_span
from ggufrope.container.remote import Place
from ggufrope.container.shards import names_of_shards, shard_paths
from ggufrope.container.types import Span
from ggufrope.errors import RequestError
from ggufrope.evals.results import Metric
from ggufrope.evals.thresholds import LIMITS
from ggufrope.patching.command import card_command, command_line
from ggufrope.report.conclusion import Reach, conclude
from ggufrope.report.evidence import control_rows
from ggufrope.report.overview import (
    bullets,
    code_block,
    markdown_table,
    overview,
    plain,
    with_interval,
)
from ggufrope.report.summary import SummaryRow
from ggufrope.rope.findings import Finding, error, info
from ggufrope.runs.plan import RunPlan, format_plan

if TYPE_CHECKING:
    from ggufrope.report.record import RunReport
    from ggufrope.runs.store import ModelRecord

VERSION: Literal[1] = 1
_MOST_TEXT = 4 << 20
_END = "<!-- end of the ggufrope card -->"
_BLOCK = re.compile(rf"<!-- ggufrope card (\d+) -->.*?{_END}", re.DOTALL)
_DATA = re.compile(r"^(`{3,})json\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)
_CACHE_METRICS = (
    "mean_divergence",
    "cache_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A metric of a task at a context length, with its 95 % interval where it has one."""

    task: str
    context_tokens: int
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSetting:
    """A scaling with a pair of cache types: how far it holds, and what was measured under it.

    `command` writes the scaling into a copy of the model, where that is worth while.
    """

    scaling: str
    kv: str
    holds_to: int | None
    outcome: Literal["pass", "fail", "undecided"] | None
    measured: tuple[Measured, ...]
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFile:
    """A file of a model, without its folder; `sha256` is None where it was not read whole."""

    name: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardModel:
    """A model as it was measured; contexts in tokens.

    `effective_context` is how far the first of `settings`, the best, holds. `control` is the
    unscaled model within its native context. `header_sha256` is that of all that stands before the
    tensor data of the first file, and `file_size` its size.
    """

    name: str
    files: tuple[CardFile, ...]
    file_size: int
    header_sha256: str
    native_context: int | None
    effective_context: int | None
    control: tuple[Measured, ...]
    settings: tuple[CardSetting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card says to a program. `plan` is TOML for `ggufrope run`; `software` has names and
    versions."""

    ggufrope_card: Literal[1]
    created: str
    headline: str
    models: tuple[CardModel, ...]
    software: tuple[tuple[str, str], ...]
    plan: str


def make_card(report: RunReport) -> Card:
    """Return the card of a run. Raises RequestError where nothing was measured."""
    report = _without_folders(report)
    found = conclude(report)
    controls = control_rows(report.cells, (record.file for record in report.models))
    models = [
        _model(
            record,
            [reach for reach in found.settings if reach.model == record.file.name],
            report.summary,
            [row for row in controls if row.model == record.file.name],
        )
        for record in report.models
    ]
    if not any(model.settings for model in models):
        raise RequestError("nothing was measured that a card could say")
    return Card(
        ggufrope_card=VERSION,
        created=f"{report.created:%Y-%m-%d}",
        headline=found.headline,
        models=tuple(models),
        software=_software(report),
        plan=format_plan(report.plan),
    )


def card_text(report: RunReport, path: Path) -> str:
    """Return what the file at `path` is to say with the card of a run: a new model card, with
    `model-index` in YAML before the block, or that which is there with its block renewed.

    Raises StorageError, RequestError where a file is there without a card, or with several.
    """
    if not path.exists():
        return _front_matter(make_card(report)) + to_block(report)
    text = read_text(path, most=_MOST_TEXT)
    count = len(_BLOCK.findall(text))
    if count != 1:
        raise RequestError(
            f"{path} is there and has {count or 'no'} card{'s' * (count > 1)} of ggufrope, where "
            "one could be renewed; name a new file, and copy the block from it"
        )
    block = to_block(report).rstrip("\n")
    return _BLOCK.sub(lambda _: block, text)


def to_block(report: RunReport) -> str:
    """Return the card of a run as a block of Markdown."""
    report = _without_folders(report)
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
        *_cache_table(card.models),
        bullets([*_files(card.models), _with(card)]),
        "Is a file the one that was measured, and how is it measured again:",
        code_block(_commands(card)),
        "<details><summary>The plan, and all of this for programs</summary>",
        code_block([card.plan.rstrip("\n")], language="toml"),
        code_block([_json(encode(card, nulls=True), indent=1)], language="json"),
        "</details>",
        _END,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def read_card(path: Path) -> tuple[Card, ...]:
    """Return the cards in a file of Markdown.

    Raises StorageError, RequestError where there is none, or one that cannot be read.
    """
    text = read_text(path, most=_MOST_TEXT)
    cards = []
    for block in _BLOCK.finditer(text):
        if int(block[1][:9]) != VERSION:
            raise RequestError(
                f"{path}: a card of version {block[1][:9]}, and this ggufrope reads version "
                f"{VERSION}; install a newer one"
            )
        data = _DATA.search(block[0])
        if data is None:
            raise RequestError(f"{path}: the card has no JSON in it; write it again")
        try:
            plain_data = json.loads(data[2])
        except (ValueError, RecursionError) as reason:
            raise RequestError(f"{path}: the JSON of the card cannot be read: {reason}") from None
        cards.append(decode(Card, plain_data, where=str(path)))
    if not cards:
        raise RequestError(f"{path}: no card of ggufrope in it; `report` writes one")
    return tuple(cards)


def matches(cards: Iterable[Card], name: str, place: Place) -> Finding:
    """Return whether the model at `place` is one that the cards, of a file called `name`, speak of.

    On disk it is read whole, on a server its header alone. Raises FileError.
    """
    models = [model for card in cards for model in card.models]
    header = read_header(place)
    if isinstance(place, Path):
        digest = sha256_of(place, header.data_offset)
    else:
        digest = hashlib.sha256(
            read_span(place, Span(offset=0, length=header.data_offset))
        ).hexdigest()
    same = [
        model
        for model in models
        if (model.header_sha256, model.file_size) == (digest, header.file_size)
    ]
    if not same:
        said = ", ".join(f"{model.name} with {model.header_sha256[:16]}…" for model in models)
        reason = f"the SHA-256 of its header is {digest[:16]}…, and {name} is of {said}"
        return error("card-differs", "", reason)
    of_card = f"that of {same[0].name}, of which {name} speaks"
    digests = [[file.sha256 for file in model.files] for model in same]
    if not isinstance(place, Path):
        return info("card-header-matches", "", f"its header is {of_card}; its data was not read")
    if any(None in each for each in digests):
        return info("card-header-matches", "", f"its header is {of_card}; the card has no more")
    if [sha256_of(path) for path in shard_paths(place)] not in digests:
        return error("card-differs", "", f"its header is {of_card}, and its data is not")
    return info("card-matches", "", f"it is {of_card}, byte for byte")


# What the card says -------------------------------------------------------------------------------


def _model(
    record: ModelRecord,
    reaches: Sequence[Reach],
    summary: Iterable[SummaryRow],
    controls: Iterable[SummaryRow],
) -> CardModel:
    file, digests = record.file, (record.sha256 or "").split()
    names = names_of_shards(file.path)
    return CardModel(
        name=file.name,
        files=tuple(
            CardFile(name=name, sha256=digests[n] if len(digests) == len(names) else None)
            for n, name in enumerate(names)
        ),
        file_size=file.file_size,
        header_sha256=file.header_sha256,
        native_context=file.native_context,
        effective_context=reaches[0].holds_to if reaches else None,
        control=tuple(each for row in controls for each in _measured(row, ("recall",))),
        settings=tuple(
            CardSetting(
                scaling=reach.title,
                kv=reach.kv,
                holds_to=reach.holds_to,
                outcome=reach.outcome,
                measured=tuple(
                    each
                    for row in summary
                    if (row.model, row.scaling, row.kv) == (reach.model, reach.scaling, reach.kv)
                    and not row.control
                    for each in _measured(row)
                ),
                command=reach.keep,
            )
            for reach in reaches
        ),
    )


def _measured(row: SummaryRow, names: Sequence[str] | None = None) -> Iterator[Measured]:
    for metric in row.metrics:
        if metric.value is not None and (names is None or metric.name in names):
            yield Measured(
                task=row.title if row.part is None or row.task == "needle" else row.part,
                context_tokens=row.context_tokens,
                metric=metric.name,
                value=metric.value,
                low=metric.low,
                high=metric.high,
            )


def _software(report: RunReport) -> tuple[tuple[str, str], ...]:
    """Return what measured, each with every version that did."""
    known: dict[str, dict[str, None]] = {}
    for worker in report.workers:
        for name, value in worker.environment:
            if name in ("ggufrope", "llama.cpp", "llama-cpp-python"):
                known.setdefault(name, {})[value] = None
    return tuple((name, ", ".join(values)) for name, values in known.items())


def _without_folders(report: RunReport) -> RunReport:
    """Return the report with the files that it names as they are called in any folder, and without
    the settings of the machine, which no result depends on."""
    plan = report.plan
    files = {*plan.models, *plan.files}

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items()}
        if isinstance(value, list):
            return [bare(item) for item in value]
        return _base_name(value) if isinstance(value, str) and value in files else value

    models = tuple(
        replace(record, file=replace(record.file, path=_base_name(record.file.path)))
        for record in report.models
    )
    portable = decode(RunPlan, bare(encode(replace(plan, runtime=RuntimeSettings()), exact=True)))
    return replace(report, models=models, plan=portable)


def _base_name(name: str) -> str:
    return name if name.startswith(("hf:", "ollama:")) else re.split(r"[/\\]", name)[-1]


# How it says it -----------------------------------------------------------------------------------


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


def _cache_table(models: Iterable[CardModel]) -> Iterator[str]:
    """Yield a table of the cache types under the best scaling of each model, at the longest context
    of each metric."""
    heads = ("KV cache", "holds to", "divergence", "bytes/token", "prefill/s", "decode/s")
    for model in models:
        same = [each for each in model.settings if each.scaling == model.settings[0].scaling]
        rows = []
        for setting in same:
            found = {
                each.metric: _value(each)
                for each in sorted(setting.measured, key=lambda each: each.context_tokens)
            }
            holds_to = "–" if setting.holds_to is None else f"{setting.holds_to:,}"
            values = (found.get(name, "–") for name in _CACHE_METRICS)
            rows.append((setting.kv, holds_to, *values))
        if len(rows) > 1:
            yield plain(f"KV cache types under {model.settings[0].scaling}:")
            yield markdown_table(heads, rows)


def _files(models: Iterable[CardModel]) -> Iterator[str]:
    for model in models:
        size = byte_size(model.file_size)
        for file in model.files:
            digest = file.sha256 or f"(header) {model.header_sha256}"
            yield f"{file.name}{f', {size}' if len(model.files) == 1 else ''}: SHA-256 {digest}"


def _with(card: Card) -> str:
    software = ", ".join(f"{name} {version}" for name, version in card.software)
    return f"Measured on {card.created} with {software}" if software else card.created


def _commands(card: Card) -> tuple[str, ...]:
    checks = (card_command("README.md", model.files[0].name) for model in card.models)
    keep = (
        setting.command
        for model in card.models
        for setting in model.settings
        if setting.command is not None
    )
    return tuple(dict.fromkeys((*checks, command_line("run", "plan.toml"), *keep)))


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
