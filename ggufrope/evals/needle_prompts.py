"""A needle plan's prompts: one haystack a sample, and where its cells' questions branch off.

In a one-pass grid one haystack holds the facts of all cells and is evaluated once; at each length
the questions of all depths branch off it. In isolated mode every cell has a prompt of its own,
the same haystack with only its needles, and the prompts are ordered so that neighbors share the
longest beginnings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from random import Random
from typing import Literal, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.facts import Fact, ValueKind, answer_of, facts, pass_keys, question_of
from ggufrope.evals.haystack import Filler, HaystackKind, Insert, Woven, sentences, weave
from ggufrope.evals.trunk import Layout, lay_out
from ggufrope.lm import Branch, LanguageModel

# What a needle run asks: the grid, the haystack and the facts, and nothing left to chance.

NeedleMode: TypeAlias = Literal["one-pass", "isolated"]
Wording: TypeAlias = Literal["fact", "passkey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent).

    Depth 0 is the start, 100 right before the question. Each of the `samples` has a haystack and
    facts of its own, from `seed`. Facts of different cells less than `spacing` tokens apart become
    one fact. `queries` facts are asked for at once, `needles` (isolated mode) stated in a prompt.
    An answer is ranked among `distractors` others, half of them stated elsewhere in the prompt.
    `control` is a length within the model's native context, added to the grid: failure there is
    the model's, not the extension's. `text` is what a haystack of kind "text" goes round.

    Raises RequestError where the numbers contradict each other.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 1
    seed: int = 0
    mode: NeedleMode = "one-pass"
    wording: Wording = "fact"
    kind: ValueKind = "number"
    haystack: HaystackKind = "essay"
    text: str | None = None
    needles: int = 1
    queries: int = 1
    distractors: int = 4
    spacing: int = 64
    control: int | None = None

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.lengths or min(self.all_lengths) < 1:
            yield f"needle lengths must be at least 1 token, got {list(self.lengths)}"
        if not self.depths:
            yield "the needle needs at least one depth"
        for depth in self.depths:
            if not 0 <= depth <= 100:
                yield f"a depth is a percentage from 0 to 100, got {depth:g}"
        if len(set(self.depths)) != len(self.depths):
            yield f"a depth is given twice in {[f'{depth:g}' for depth in self.depths]}"
        for name in ("samples", "needles", "queries", "spacing"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        if self.distractors < 0:
            yield f"distractors must be 0 or more, got {self.distractors}"
        if self.mode not in ("one-pass", "isolated"):
            yield f"unknown needle mode {self.mode!r}: expected one-pass or isolated"
        if self.kind not in ("number", "word", "uuid"):
            yield f"unknown kind of value {self.kind!r}: expected number, word or uuid"
        if self.mode == "isolated" and self.queries > self.needles:
            yield f"{self.queries} facts cannot be asked for where {self.needles} are stated"
        if max(self.queries, self.needles) > len(self.depths):
            yield (
                f"needles stand at the depths of the grid: {len(self.depths)} depths are too few "
                f"for {max(self.queries, self.needles)} of them"
            )
        if self.wording == "passkey" and (self.mode != "isolated" or self.needles > 1):
            yield "there is one pass key to a prompt: passkey needs isolated mode and one needle"

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Every length asked, the control too, ascending and once each."""
        control = () if self.control is None else (self.control,)
        return tuple(sorted({*self.lengths, *control}))


def passkey_plan(
    *, lengths: tuple[int, ...], depths: tuple[float, ...], samples: int = 1, seed: int = 0
) -> NeedlePlan:
    """The passkey task: five digits in a noise haystack, one to a prompt."""
    return NeedlePlan(
        lengths=lengths,
        depths=depths,
        mode="isolated",
        wording="passkey",
        haystack="noise",
        samples=samples,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleCell:
    """What is asked: a place in the grid."""

    context_tokens: int
    depth: float
    sample: int
    control: bool = False

    @property
    def key(self) -> str:
        return f"{self.context_tokens}/{self.depth:g}/{self.sample}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A cell's question; the first answer of `branch` is the true one.

    `prompt_tokens` counts haystack and question; `measured_depth` is percent.
    """

    cell: NeedleCell
    branch: Branch
    needle: str
    answer: str
    prompt_tokens: int
    measured_depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A haystack, from its first token, and all that is asked of it."""

    trunk: tuple[int, ...]
    asks: tuple[Ask, ...]


def stops(model: LanguageModel, plan: NeedlePlan, sample: int) -> Iterator[Stop]:
    """The prompts of one sample in the order of evaluation.

    Raises RequestError where a length has no room for what is asked.
    """
    sheet = _Sheet(model, plan, sample)
    return _one_pass(sheet) if plan.mode == "one-pass" else _isolated(sheet)


def _one_pass(sheet: _Sheet) -> Iterator[Stop]:
    everything = range(len(sheet.layout.places))
    woven = sheet.weave(everything, sheet.rooms[-1])
    for length, room in enumerate(sheet.rooms):
        cut = woven.cut(room)
        present = bisect_left(woven.starts, cut)
        yield Stop(
            trunk=sheet.beginning + woven.tokens[:cut],
            asks=tuple(
                sheet.ask(length, depth, cut=cut, starts=dict(enumerate(woven.starts[:present])))
                for depth in range(len(sheet.plan.depths))
            ),
        )


def _isolated(sheet: _Sheet) -> Iterator[Stop]:
    cells = [(i, j) for i in range(len(sheet.rooms)) for j in range(len(sheet.plan.depths))]
    present = {cell: sorted(sheet.distinct(*cell, sheet.plan.needles)) for cell in cells}
    # Prompts agree up to the first place that only one of them has: by places, then by length,
    # each continues from the longest beginning that is left.
    for cell in sorted(cells, key=lambda cell: ((*present[cell], inf), cell)):
        length, depth = cell
        woven = sheet.weave(present[cell], sheet.rooms[length])
        cut = woven.cut(sheet.rooms[length])
        starts = dict(zip(present[cell], woven.starts, strict=True))
        yield Stop(
            trunk=sheet.beginning + woven.tokens[:cut],
            asks=(sheet.ask(length, depth, cut=cut, starts=starts),),
        )


class _Sheet:
    """All that one sample's prompts are made of; the same for the same plan and tokenizer."""

    def __init__(self, model: LanguageModel, plan: NeedlePlan, sample: int) -> None:
        self.model = model
        self.plan = plan
        self.sample = sample
        self.beginning = tuple(model.tokenize("", beginning=True))
        self.filler = Filler(model, sentences(plan.haystack, self.rng("haystack"), plan.text))
        self.facts, self.strangers = self._draw()
        self.statements = [tuple(model.tokenize(fact.statement)) for fact in self.facts]
        self.rooms = self._rooms()
        self.layout: Layout = lay_out(
            self.rooms,
            plan.depths,
            fact_tokens=max(map(len, self.statements)),
            spacing=plan.spacing,
        )

    def rng(self, purpose: object) -> Random:
        """A generator for one purpose: what is drawn for another cannot disturb it."""
        return Random(f"{self.plan.seed}/{self.sample}/{purpose}")

    def _draw(self) -> tuple[Sequence[Fact], Sequence[Fact]]:
        """A fact for every place there could be, and facts that are never stated."""
        rng = self.rng("facts")
        source = pass_keys(rng) if self.plan.wording == "passkey" else facts(rng, self.plan.kind)
        stated = list(islice(source, len(self.plan.all_lengths) * len(self.plan.depths)))
        values = {fact.value for fact in stated}
        wanted = self.plan.distractors * self.plan.queries
        return stated, [fact for fact in islice(source, wanted) if fact.value not in values]

    def _rooms(self) -> tuple[int, ...]:
        """Haystack tokens at each length: what the longest question with its answer leaves."""
        asking = self.plan.queries * max(
            len(self.model.tokenize(fact.question)) + len(self.model.tokenize(fact.answer))
            for fact in (*self.facts, *self.strangers)
        )
        around = len(self.beginning) + asking
        least = around + max(map(len, self.statements))
        for length in self.plan.all_lengths:
            if length < least:
                raise RequestError(
                    f"a needle length of {length} tokens is too short: one fact and its question "
                    f"take {least} with this model's tokenizer"
                )
        return tuple(length - around for length in self.plan.all_lengths)

    def weave(self, present: Sequence[int], room: int) -> Woven:
        """The haystack with the facts of these places, in ascending order."""
        return weave(self.filler, [self._insert(place) for place in present], room)

    def _insert(self, number: int) -> Insert:
        place, tokens = self.layout.places[number], self.statements[number]
        if place.closes is None:
            return Insert(target=place.target, tokens=tokens)
        return Insert(target=self.rooms[place.closes] - len(tokens), tokens=tokens)

    def distinct(self, length: int, depth: int, count: int) -> list[int]:
        """`count` places of a length, from that of `depth` on and round. Raises RequestError where
        the length is so short that its depths share too few."""
        of = self.layout.of[length]
        around = list(dict.fromkeys(of[depth:] + of[:depth]))
        if len(around) < count:
            raise RequestError(
                f"{self.plan.all_lengths[length]} tokens have room for {len(around)} needles "
                f"{self.plan.spacing} tokens apart, not {count}"
            )
        return around[:count]

    def ask(self, length: int, depth: int, *, cut: int, starts: dict[int, int]) -> Ask:
        """The question of a cell, to a haystack of `cut` tokens with facts at `starts`."""
        asked = self.distinct(length, depth, self.plan.queries)
        cell = NeedleCell(
            context_tokens=self.plan.all_lengths[length],
            depth=self.plan.depths[depth],
            sample=self.sample,
            control=self.plan.all_lengths[length] == self.plan.control,
        )
        found = [self.facts[place] for place in asked]
        question = tuple(self.model.tokenize(question_of(found)))
        others = [self.facts[place] for place in starts if place not in asked]
        candidates = [[fact.value for fact in found], *self._distractors(cell, found, others)]
        answers = [answer_of(values) for values in candidates]
        span = cut - len(self.statements[asked[0]])
        return Ask(
            cell=cell,
            branch=Branch(
                prompt=question,
                answers=tuple(tuple(self.model.tokenize(answer)) for answer in answers),
            ),
            needle=", ".join(fact.key for fact in found),
            answer=answers[0].strip(),
            prompt_tokens=len(self.beginning) + cut + len(question),
            measured_depth=100 * starts[asked[0]] / span if span else 0.0,
        )

    def _distractors(
        self, cell: NeedleCell, found: Sequence[Fact], others: Sequence[Fact]
    ) -> list[list[str]]:
        """Wrong answers, half of them values stated elsewhere, each value used once."""
        rng = self.rng(cell.key)
        right = {fact.value for fact in found}
        queries = self.plan.queries
        stated = [value for value in dict.fromkeys(f.value for f in others) if value not in right]
        rng.shuffle(stated)
        stated = stated[: self.plan.distractors // 2 * queries]
        never = list(dict.fromkeys(fact.value for fact in self.strangers))
        values = stated[: len(stated) // queries * queries] + never
        sets = [values[i : i + queries] for i in range(0, len(values) - queries + 1, queries)]
        return sets[: self.plan.distractors]
