"""A needle plan's prompts: one haystack a sample, and where its cells' questions branch off.

In a one-pass grid one haystack holds the facts of all cells and is evaluated once; at each length
the questions of all depths branch off it. In isolated mode every cell has a prompt of its own,
the same haystack with only its needles, and the prompts are ordered so that neighbours share the
longest beginnings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from random import Random

from ggufrope.errors import WishError
from ggufrope.evals.facts import Fact, answer_of, facts, pass_keys, question_of
from ggufrope.evals.haystack import Filler, Insert, Woven, sentences, weave
from ggufrope.evals.needle_plan import NeedleCell, NeedlePlan
from ggufrope.evals.protocol import Branch, LanguageModel
from ggufrope.evals.schedule import Layout, lay_out


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

    Raises WishError where a length has no room for what is asked.
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
                raise WishError(
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
        """`count` places of a length, from that of `depth` on and round. Raises WishError where
        the length is so short that its depths share too few."""
        of = self.layout.of[length]
        around = list(dict.fromkeys(of[depth:] + of[:depth]))
        if len(around) < count:
            raise WishError(
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
