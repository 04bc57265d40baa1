"""The prompts of a needle grid: haystacks with facts at chosen depths, and questions about them.

A `NeedlePlan` is a grid of lengths and depths. In one-pass mode one haystack holds the facts of all
cells and is evaluated once; at each length the questions of all depths branch off it. In isolated
mode every cell has a prompt of its own, the same haystack with only its needles, and the prompts
are ordered so that neighbors share the longest beginnings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.facts import Fact, ValueKind, answer_of, facts, pass_keys, question_of
from ggufrope.evals.haystack import Filler, HaystackKind, Insert, Woven, sentences, weave
from ggufrope.evals.task import NeedleMode
from ggufrope.lm import Branch, LanguageModel

Wording: TypeAlias = Literal["fact", "passkey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent).

    Depth 0 is the start, 100 right before the question. Lengths are kept in ascending order, each
    once. Each of the `samples` has its own haystack and facts, drawn from `seed`. Facts of
    different cells less than `spacing` tokens apart become one fact. A question asks for `queries`
    facts at once; an isolated prompt states `needles` of them. An answer is ranked among
    `distractors` wrong ones, half of them values stated elsewhere in the prompt. `text` is what a
    haystack of kind "text" repeats.

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

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))

    def _problems(self) -> Iterator[str]:
        if not self.lengths or min(self.lengths) < 1:
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
            yield f"a question about {self.queries} facts needs as many needles, got {self.needles}"
        if max(self.queries, self.needles) > len(self.depths):
            yield (
                f"needles stand at the depths of the grid: {len(self.depths)} depths are too few "
                f"for {max(self.queries, self.needles)} of them"
            )
        if self.wording == "passkey" and (self.mode != "isolated" or self.needles > 1):
            yield "a prompt has one pass key: passkey needs isolated mode and one needle"


def passkey_plan(
    *, lengths: tuple[int, ...], depths: tuple[float, ...], samples: int = 1, seed: int = 0
) -> NeedlePlan:
    """Return the plan of the passkey task: five digits in a noise haystack, one in each prompt."""
    return NeedlePlan(
        lengths=lengths,
        depths=depths,
        mode="isolated",
        wording="passkey",
        haystack="noise",
        samples=samples,
        seed=seed,
    )


class GridPoint(NamedTuple):
    """A place in the grid; `str()` is unique within a plan and the same in every run of it."""

    context_tokens: int
    depth_percent: float
    sample: int

    def __str__(self) -> str:
        return f"{self.context_tokens}/{self.depth_percent:g}/{self.sample}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question of one grid point; the first answer of `branch` is the true one.

    `needle` names the keys it asks for, `answer` is their values. `prompt_tokens` counts haystack
    and question. `measured_depth` is where the fact really stands, in percent.
    """

    point: GridPoint
    branch: Branch
    needle: str
    answer: str
    prompt_tokens: int
    measured_depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A haystack from its first token, `trunk`, and every question about it."""

    trunk: tuple[int, ...]
    questions: tuple[Question, ...]


def prompts(
    model: LanguageModel, plan: NeedlePlan, only: Container[GridPoint] | None = None
) -> Iterator[Prompt]:
    """Yield the prompts of a plan in the order of evaluation; with `only`, those with a question
    about one of these points, and no other questions.

    Raises RequestError where a length has no room for a fact and its question.
    """
    for sample in range(plan.samples):
        builder = PromptBuilder(model, plan, sample)
        for prompt in _one_pass(builder) if plan.mode == "one-pass" else _isolated(builder):
            questions = tuple(q for q in prompt.questions if only is None or q.point in only)
            if questions:
                yield Prompt(trunk=prompt.trunk, questions=questions)


def _one_pass(builder: PromptBuilder) -> Iterator[Prompt]:
    everything = range(len(builder.layout.places))
    woven = builder.weave(everything, builder.budgets[-1])
    for length, budget in enumerate(builder.budgets):
        cut = woven.cut(budget)
        present = bisect_left(woven.starts, cut)
        starts = dict(enumerate(woven.starts[:present]))
        yield Prompt(
            trunk=builder.beginning + woven.tokens[:cut],
            questions=tuple(
                builder.question(length, depth, cut=cut, starts=starts)
                for depth in range(len(builder.plan.depths))
            ),
        )


def _isolated(builder: PromptBuilder) -> Iterator[Prompt]:
    cells = [(i, j) for i in range(len(builder.budgets)) for j in range(len(builder.plan.depths))]
    present = {cell: sorted(builder.distinct(*cell, builder.plan.needles)) for cell in cells}
    # Prompts agree up to the first place that only one of them has: by places, then by length,
    # each continues from the longest beginning that is left.
    for cell in sorted(cells, key=lambda cell: ((*present[cell], inf), cell)):
        length, depth = cell
        woven = builder.weave(present[cell], builder.budgets[length])
        cut = woven.cut(builder.budgets[length])
        starts = dict(zip(present[cell], woven.starts, strict=True))
        yield Prompt(
            trunk=builder.beginning + woven.tokens[:cut],
            questions=(builder.question(length, depth, cut=cut, starts=starts),),
        )


class PromptBuilder:
    """Everything that the prompts of one sample consist of: the same for the same plan and
    tokenizer.

    `facts` has one fact for each place of the `layout`, `unstated` the facts that no haystack
    states. `budgets` are the haystack tokens of each length.
    """

    def __init__(self, model: LanguageModel, plan: NeedlePlan, sample: int) -> None:
        self.model = model
        self.plan = plan
        self.sample = sample
        self.beginning = tuple(model.tokenize("", beginning=True))
        self.filler = Filler(model, sentences(plan.haystack, self.rng("haystack"), plan.text))
        self.facts, self.unstated = self._draw()
        self.statements = [tuple(model.tokenize(fact.statement)) for fact in self.facts]
        self.budgets = self._budgets()
        self.layout: Layout = lay_out(
            self.budgets,
            plan.depths,
            fact_tokens=max(map(len, self.statements)),
            spacing=plan.spacing,
        )

    def rng(self, purpose: object) -> Random:
        """Return a generator for one purpose, undisturbed by what is drawn for another."""
        return Random(f"{self.plan.seed}/{self.sample}/{purpose}")

    def _draw(self) -> tuple[Sequence[Fact], Sequence[Fact]]:
        """Draw a fact for every place there could be, and facts that are never stated."""
        rng = self.rng("facts")
        source = pass_keys(rng) if self.plan.wording == "passkey" else facts(rng, self.plan.kind)
        stated = list(islice(source, len(self.plan.lengths) * len(self.plan.depths)))
        values = {fact.value for fact in stated}
        wanted = self.plan.distractors * self.plan.queries
        return stated, [fact for fact in islice(source, wanted) if fact.value not in values]

    def _budgets(self) -> tuple[int, ...]:
        """Return the haystack tokens of each length: what the longest question and answer leave."""
        asking = self.plan.queries * max(
            len(self.model.tokenize(fact.question)) + len(self.model.tokenize(fact.answer))
            for fact in (*self.facts, *self.unstated)
        )
        around = len(self.beginning) + asking
        least = around + max(map(len, self.statements))
        for length in self.plan.lengths:
            if length < least:
                raise RequestError(
                    f"a needle length of {length} tokens is too short: one fact and its question "
                    f"take {least} with this model's tokenizer"
                )
        return tuple(length - around for length in self.plan.lengths)

    def weave(self, present: Sequence[int], budget: int) -> Woven:
        """Return the haystack with the facts of these places, in ascending order."""
        return weave(self.filler, [self._insert(place) for place in present], budget)

    def _insert(self, number: int) -> Insert:
        place, tokens = self.layout.places[number], self.statements[number]
        if place.ends_length is None:
            return Insert(target=place.target, tokens=tokens)
        return Insert(target=self.budgets[place.ends_length] - len(tokens), tokens=tokens)

    def distinct(self, length: int, depth: int, count: int) -> list[int]:
        """Return `count` places of a length: that of `depth` and the next ones, the first after
        the last. Raises RequestError where the length is so short that its depths share too few."""
        of = self.layout.of[length]
        around = list(dict.fromkeys(of[depth:] + of[:depth]))
        if len(around) < count:
            raise RequestError(
                f"{self.plan.lengths[length]} tokens have room for {len(around)} needles "
                f"{self.plan.spacing} tokens apart, not {count}"
            )
        return around[:count]

    def question(self, length: int, depth: int, *, cut: int, starts: dict[int, int]) -> Question:
        """Return the question of a cell about a haystack of `cut` tokens with facts at `starts`."""
        places = self.distinct(length, depth, self.plan.queries)
        point = GridPoint(self.plan.lengths[length], self.plan.depths[depth], self.sample)
        wanted = [self.facts[place] for place in places]
        prompt = tuple(self.model.tokenize(question_of(wanted)))
        others = [self.facts[place] for place in starts if place not in places]
        candidates = [[fact.value for fact in wanted], *self._distractors(point, wanted, others)]
        answers = [answer_of(values) for values in candidates]
        span = cut - len(self.statements[places[0]])
        return Question(
            point=point,
            branch=Branch(
                prompt=prompt,
                answers=tuple(tuple(self.model.tokenize(answer)) for answer in answers),
            ),
            needle=", ".join(fact.key for fact in wanted),
            answer=answers[0].strip(),
            prompt_tokens=len(self.beginning) + cut + len(prompt),
            measured_depth=100 * starts[places[0]] / span if span else 0.0,
        )

    def _distractors(
        self, point: GridPoint, wanted: Sequence[Fact], others: Sequence[Fact]
    ) -> list[list[str]]:
        """Return wrong answers, half of them values stated elsewhere, each value used once."""
        rng = self.rng(str(point))
        right = {fact.value for fact in wanted}
        queries = self.plan.queries
        stated = [value for value in dict.fromkeys(f.value for f in others) if value not in right]
        rng.shuffle(stated)
        stated = stated[: self.plan.distractors // 2 * queries]
        never = list(dict.fromkeys(fact.value for fact in self.unstated))
        values = stated[: len(stated) // queries * queries] + never
        sets = [values[i : i + queries] for i in range(0, len(values) - queries + 1, queries)]
        return sets[: self.plan.distractors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a fact goes: `target` tokens into the haystack, never later.

    `ends_length` is the length (its index) whose haystack ends with this fact, or None.
    """

    target: int
    ends_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Places in ascending order; `of[length][depth]` is the index of the place a cell asks for."""

    places: tuple[Place, ...]
    of: tuple[tuple[int, ...], ...]


def lay_out(
    budgets: Sequence[int], depths: Sequence[float], *, fact_tokens: int, spacing: int
) -> Layout:
    """Return places for a grid, as few as serve every cell to within `spacing` tokens.

    `budgets` are the haystack tokens of each length, ascending; `depths` are percent. Lengths are
    taken in order, so that a place already there lies inside every length that may share it, and
    the ends of a length before its middle, so that they are exact.
    """
    spacing = max(spacing, fact_tokens)
    found: list[Place] = []
    chosen: dict[tuple[int, int], Place] = {}
    for length, budget in enumerate(budgets):
        for depth in sorted(range(len(depths)), key=lambda d: (0 < depths[d] < 100, depths[d])):
            target = round((budget - fact_tokens) * depths[depth] / 100)
            nearest = min(found, key=lambda place: abs(place.target - target), default=None)
            if nearest is None or abs(nearest.target - target) >= spacing:
                nearest = Place(target=target, ends_length=length if depths[depth] == 100 else None)
                found.append(nearest)
            chosen[length, depth] = nearest
    places = tuple(sorted(found, key=lambda place: place.target))
    index = {place: i for i, place in enumerate(places)}
    return Layout(
        places=places,
        of=tuple(
            tuple(index[chosen[length, depth]] for depth in range(len(depths)))
            for length in range(len(budgets))
        ),
    )
