"""Multikey: one haystack with the facts of a whole grid, and a question about each of them.

This asks which of many alike facts, as RULER's multi-key tasks do: a model that finds every single
needle may still fail to tell them apart. So it says nothing of recall in the usual sense, which is
the task `needle`. One haystack is evaluated once; at each length the questions of all depths branch
off it. An answer is ranked among wrong ones, half of them values stated elsewhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from random import Random

from ggufrope.errors import RequestError
from ggufrope.evals.facts import Fact, ValueKind, facts
from ggufrope.evals.formats import prompt_format
from ggufrope.evals.haystack import Filler, HaystackKind, Insert, sentences, weave
from ggufrope.evals.needle import QUESTION_TOKENS, NeedleScore, score_each
from ggufrope.evals.needle_prompts import GridPoint, Question, grid_problems
from ggufrope.evals.results import Cell, CellResult
from ggufrope.evals.task import Coordinates, FormatName, Lengths, Task, TaskRequest, TaskSettings
from ggufrope.evals.texts import haystack_text
from ggufrope.evals.trunk import Trunk, branch_tokens, common_prefix
from ggufrope.lm import Branch, LanguageModel

DISTRACTORS = 4
SPACING = 64
"""Tokens: facts of different cells that would stand closer become one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultikeyPlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent).

    Each of the `samples` has its own haystack and facts, drawn from `seed`. Lengths are kept in
    ascending order, each once. `text` is what a haystack of kind "text" repeats.

    Raises RequestError where the numbers contradict each other.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 1
    seed: int = 0
    value: ValueKind = "number"
    haystack: HaystackKind = "essay"
    text: str | None = None
    distractors: int = DISTRACTORS
    format: FormatName = "auto"
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if problems := tuple(grid_problems(self.lengths, self.depths, self.samples)):
            raise RequestError("; ".join(problems))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """A haystack from its first token, and every question about it."""

    trunk: tuple[int, ...]
    questions: tuple[Question, ...]


def crowds(model: LanguageModel, plan: MultikeyPlan) -> Iterator[Crowd]:
    """Yield the haystacks of a plan in the order of evaluation: each continues the one before it,
    or is another sample's. Raises RequestError where a length has no room for a fact."""
    for sample in range(plan.samples):
        yield from _Builder(model, plan, sample).crowds()


class _Builder:
    """Everything that the haystacks of one sample consist of.

    There is a fact for each place of the layout. `_budgets` are the haystack tokens of each length.
    """

    def __init__(self, model: LanguageModel, plan: MultikeyPlan, sample: int) -> None:
        self._model = model
        self._plan = plan
        self._sample = sample
        self._format = prompt_format(model, plan.format, plan.thinking)
        self._filler = Filler(model, sentences(plan.haystack, self._rng("haystack"), plan.text))
        self._facts, self._unstated = self._draw()
        self._statements = [self._tokens(fact.statement) for fact in self._facts]
        self._budgets = self._measure()
        self._layout = lay_out(
            self._budgets, plan.depths, fact_tokens=max(map(len, self._statements))
        )

    def crowds(self) -> Iterator[Crowd]:
        """Yield the haystack of each length, with its questions."""
        inserts = [self._insert(place) for place in range(len(self._layout.places))]
        woven = weave(self._filler, inserts, self._budgets[-1])
        for length, budget in enumerate(self._budgets):
            cut = woven.cut(budget)
            present = bisect_left(woven.starts, cut)
            ask = partial(self._question, length, cut=cut, starts=woven.starts[:present])
            yield Crowd(
                trunk=self._format.beginning + woven.tokens[:cut],
                questions=tuple(ask(depth) for depth in range(len(self._plan.depths))),
            )

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._model.tokenize(text))

    def _rng(self, purpose: object) -> Random:
        """Return a generator for one purpose, undisturbed by what is drawn for another."""
        return Random(f"{self._plan.seed}/{self._sample}/{purpose}")

    def _draw(self) -> tuple[Sequence[Fact], Sequence[Fact]]:
        """Draw a fact for every place there could be, and facts that are never stated."""
        source = facts(self._rng("facts"), self._plan.value)
        stated = list(islice(source, len(self._plan.lengths) * len(self._plan.depths)))
        values = {fact.value for fact in stated}
        others = islice(source, self._plan.distractors)
        return stated, [fact for fact in others if fact.value not in values]

    def _measure(self) -> tuple[int, ...]:
        """Return the haystack tokens of each length: what the longest question and answer leave."""
        asking = max(
            len(self._format.ending(fact.question, fact.prefix)) + len(self._tokens(fact.answer))
            for fact in (*self._facts, *self._unstated)
        )
        around = len(self._format.beginning) + asking
        least = around + max(map(len, self._statements))
        for length in self._plan.lengths:
            if length < least:
                raise RequestError(
                    f"a needle length of {length} tokens is too short: one fact and its question "
                    f"take {least} with this model's tokenizer"
                )
        return tuple(length - around for length in self._plan.lengths)

    def _insert(self, number: int) -> Insert:
        place, tokens = self._layout.places[number], self._statements[number]
        if place.ends_length is None:
            return Insert(target=place.target, tokens=tokens)
        return Insert(target=self._budgets[place.ends_length] - len(tokens), tokens=tokens)

    def _question(self, length: int, depth: int, *, cut: int, starts: Sequence[int]) -> Question:
        """Return the question of a cell about a haystack of `cut` tokens with facts at `starts`."""
        place = self._layout.of[length][depth]
        point = GridPoint(self._plan.lengths[length], self._plan.depths[depth], self._sample)
        fact = self._facts[place]
        others = [self._facts[other] for other in range(len(starts)) if other != place]
        answers = (fact.answer, *self._distractors(point, fact, others))
        span = cut - len(self._statements[place])
        return Question(
            point=point,
            branch=Branch(
                prompt=self._format.ending(fact.question, fact.prefix),
                answers=tuple(map(self._tokens, answers)),
            ),
            needle=fact.key,
            answer=fact.value,
            form=self._format.notes,
            haystack_tokens=len(self._format.beginning) + cut,
            measured_depth=100 * starts[place] / span if span else 0.0,
        )

    def _distractors(self, point: GridPoint, fact: Fact, others: Sequence[Fact]) -> list[str]:
        """Return wrong answers, half of them stated elsewhere, each once."""
        stated = list(dict.fromkeys(f.answer for f in others if f.value != fact.value))
        self._rng(str(point)).shuffle(stated)
        never = list(dict.fromkeys(fact.answer for fact in self._unstated))
        return (stated[: self._plan.distractors // 2] + never)[: self._plan.distractors]


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
    budgets: Sequence[int], depths: Sequence[float], *, fact_tokens: int, spacing: int = SPACING
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


# The task ---------------------------------------------------------------------------------------


def _samples(settings: TaskSettings) -> int:
    return settings.samples or 1


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    for context, depth, sample in product(
        sorted(lengths.contexts), settings.depth_percents, range(_samples(settings))
    ):
        yield Coordinates(context_tokens=context, depth_percent=depth, sample=sample)


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    longest = max(cell.context_tokens for cell in cells)
    return _samples(settings) * longest + QUESTION_TOKENS * len(cells)


def _run(request: TaskRequest) -> Iterator[CellResult]:
    settings = request.settings
    plan = MultikeyPlan(
        lengths=request.contexts,
        depths=settings.depth_percents,
        samples=_samples(settings),
        seed=request.seed,
        value=settings.value,
        haystack=settings.haystack.kind,
        text=haystack_text(settings),
        format=settings.format,
        thinking=settings.thinking,
    )
    cells = {GridPoint.of(cell): cell for cell in request.todo}
    every = (
        Crowd(trunk=crowd.trunk, questions=tuple(q for q in crowd.questions if q.point in cells))
        for crowd in crowds(request.model, plan)
    )
    left = [crowd for crowd in every if crowd.questions]
    request.plan_tokens(_asking_tokens(left))
    with Trunk(request.open_context, plan.lengths[-1], progress=request.progress) as trunk:
        for crowd in left:
            scores: Iterator[NeedleScore] = score_each(trunk, crowd.trunk, crowd.questions)
            yield from (score.result(cells[score.point]) for score in scores)


def _asking_tokens(every: Sequence[Crowd]) -> int:
    total = 0
    before: Sequence[int] = ()
    for crowd in every:
        total += len(crowd.trunk) - common_prefix(before, crowd.trunk)
        total += branch_tokens([question.branch for question in crowd.questions])
        before = crowd.trunk
    return total


MULTIKEY = Task(name="multikey", places=_places, tokens=_tokens, run=_run)
"""Recall of one of many facts in the same haystack, over a grid of lengths and depths."""
