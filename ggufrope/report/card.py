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
from ggufrope._plain import decode, encode
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.container.reader import read_header, read_span
from ggufrope.container.remote import Place
from ggufrope.container.shards import names_of_shards, shard_paths
from ggufrope.container.types import Span
from ggufrope.errors import RequestError
from ggufrope.report.caches import CacheAnswer
from ggufrope.report.conclusion import Reach, conclude
from ggufrope.report.evidence import control_rows
from ggufrope.report.summary import SummaryRow
from ggufrope.rope.findings import Finding, error, info
from ggufrope.runs.plan import RunPlan, format_plan

if TYPE_CHECKING:
    from ggufrope.report.record import RunReport
    from ggufrope.runs.store import ModelRecord

VERSION: Literal[1] = 1
MOST_TEXT = 4 << 20
END = "<!-- end of the ggufrope card -->"
BLOCK = re.compile(rf"<!-- ggufrope card (\d+) -->.*?{END}", re.DOTALL)
_DATA = re.compile(r"^(`{3,})json\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)


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
class CardCache:
    """A pair of cache types at a context length, compared with f16 by the task `kv`.

    `divergence` is the mean Kullback-Leibler divergence in nat per token. Of `answered` questions
    that f16 answers exactly, `kept` are answered so with this pair.
    """

    scaling: str
    context_tokens: int
    kv: str
    memory_bytes: int | None
    divergence: float | None
    answered: int
    kept: int
    safety: str


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
    caches: tuple[CardCache, ...] = ()


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
    """Return the card of a run.

    Raises RequestError where nothing was measured, or not a file but what a server has.
    """
    report = without_folders(report)
    found = conclude(report)
    controls = control_rows(report.cells, (record.file for record in report.models))
    models = [
        _model(
            record,
            [reach for reach in found.settings if reach.model == record.file.name],
            report.summary,
            [row for row in controls if row.model == record.file.name],
            [answer for answer in found.caches if answer.model == record.file.name],
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


def read_card(path: Path) -> tuple[Card, ...]:
    """Return the cards in a file of Markdown.

    Raises StorageError, RequestError where there is none, or one that cannot be read.
    """
    text = read_text(path, most=MOST_TEXT)
    cards = []
    for block in BLOCK.finditer(text):
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
    caches: Iterable[CacheAnswer],
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
        caches=tuple(
            CardCache(
                scaling=answer.scaling,
                context_tokens=answer.context_tokens,
                kv=row.kv,
                memory_bytes=row.memory_bytes,
                divergence=None if row.divergence is None else row.divergence.value,
                answered=row.answered,
                kept=row.kept,
                safety="base" if row.verdict is None else row.verdict.word,
            )
            for answer in caches
            for row in answer.rows
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


def without_folders(report: RunReport) -> RunReport:
    """Return the report with the files that it names as they are called in any folder, and without
    the settings of the machine, which no result depends on."""
    plan = report.plan
    if plan.runtime.server is not None:
        raise RequestError("the run measured what a server has, and a card is of a file")
    files = {*plan.models, *plan.files, plan.base}

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items()}
        if isinstance(value, list):
            return [bare(item) for item in value]
        return base_name(value) if isinstance(value, str) and value in files else value

    models = tuple(
        replace(record, file=replace(record.file, path=base_name(record.file.path)))
        for record in report.models
    )
    portable = decode(RunPlan, bare(encode(replace(plan, runtime=RuntimeSettings()), exact=True)))
    return replace(report, models=models, plan=portable)


def base_name(name: str) -> str:
    """Return the name of a file without its folder, of whichever system; names of stores stay."""
    return name if name.startswith(("hf:", "ollama:")) else re.split(r"[/\\]", name)[-1]
