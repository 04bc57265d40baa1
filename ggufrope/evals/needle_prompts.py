"""The prompts of a needle grid: one plain haystack, and the needle of each cell at its place in it.

A `NeedlePlan` is a grid of lengths, depths and samples; every cell has a needle of its own. The
needle stands in the place of as many tokens of filler. So a prompt is the same whether the needle
is spliced into a fork of the plain haystack (`Question.branch`) or evaluated in a prompt of its own
(`Question.whole`): the two differ only in what the tokens behind the needle have seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from random import Random
from typing import NamedTuple, get_args

from ggufrope.errors import RequestError
from ggufrope.evals.facts import NeedleKind, ValueKind
from ggufrope.evals.formats import prompt_format
from ggufrope.evals.haystack import Filler, HaystackKind, sentences, weave
from ggufrope.evals.needle_kinds import Needle, PlanNeedle, needles
from ggufrope.evals.results import Cell
from ggufrope.evals.task import FormatName
from ggufrope.lm import Branch, LanguageModel, Splice


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent) × `samples`.

    Depth 0 is the start, 100 right before the question. Lengths are kept in ascending order, each
    once. Everything is drawn from `seed`: one haystack, and a needle for each cell. An answer is
    ranked among `distractors` wrong ones, or among those that a needle of a harder kind suggests
    where these are more. `text` is what a haystack of kind "text" repeats. `format` and `thinking`
    are those of `ggufrope.evals.formats.prompt_format`.

    Raises RequestError where the numbers contradict each other.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 1
    seed: int = 0
    needle: PlanNeedle = "standard"
    value: ValueKind = "number"
    haystack: HaystackKind = "essay"
    text: str | None = None
    distractors: int = 0
    format: FormatName = "auto"
    thinking: bool | None = None

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))

    def _problems(self) -> Iterator[str]:
        yield from grid_problems(self.lengths, self.depths, self.samples)
        if self.distractors < 0:
            yield f"distractors must be 0 or more, got {self.distractors}"
        if self.needle not in (*get_args(NeedleKind), "passkey"):
            yield (
                f"unknown kind of needle {self.needle!r}: "
                f"expected passkey, {', '.join(get_args(NeedleKind))}"
            )
        if self.value not in ("number", "word", "uuid"):
            yield f"unknown kind of value {self.value!r}: expected number, word or uuid"

    @property
    def points(self) -> Iterator[GridPoint]:
        """Every cell of the grid, shortest length first."""
        for length, depth, sample in product(self.lengths, self.depths, range(self.samples)):
            yield GridPoint(length, depth, sample)


def grid_problems(lengths: Sequence[int], depths: Sequence[float], samples: int) -> Iterator[str]:
    """Say what is wrong with the axes of a grid, one sentence for each problem."""
    if not lengths or min(lengths) < 1:
        yield f"needle lengths must be at least 1 token, got {list(lengths)}"
    if not depths:
        yield "the needle needs at least one depth"
    for depth in depths:
        if not 0 <= depth <= 100:
            yield f"a depth is a percentage from 0 to 100, got {depth:g}"
    if len(set(depths)) != len(depths):
        yield f"a depth is given twice in {[f'{depth:g}' for depth in depths]}"
    if samples < 1:
        yield f"samples must be at least 1, got {samples}"


class GridPoint(NamedTuple):
    """A place in the grid; `str()` is unique within a plan and the same in every run of it."""

    context_tokens: int
    depth_percent: float
    sample: int

    @classmethod
    def of(cls, cell: Cell) -> GridPoint:
        """Return the place of a cell."""
        return cls(cell.context_tokens, cell.depth_percent or 0.0, cell.sample or 0)

    def __str__(self) -> str:
        return f"{self.context_tokens}/{self.depth_percent:g}/{self.sample}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question of one grid point; the first answer of `branch` is the true one.

    `needle` names what it asks for, `answer` is what should follow, `form` says how it is asked.
    `haystack_tokens` counts the plain haystack. `measured_depth` is where the needle really stands,
    in percent.
    """

    point: GridPoint
    branch: Branch
    needle: str
    answer: str
    form: tuple[tuple[str, str], ...]
    haystack_tokens: int
    measured_depth: float

    @property
    def prompt_tokens(self) -> int:
        """Tokens of haystack, needle and question."""
        return self.haystack_tokens + len(self.branch.prompt)

    @property
    def place(self) -> int:
        """The position from which on its prompt differs from the plain haystack."""
        splices = self.branch.splices
        return splices[0].position if splices else self.haystack_tokens

    def whole(self, haystack: Sequence[int]) -> WholePrompt:
        """Return the prompt of its own, made of the plain haystack of its length."""
        tokens = list(haystack)
        for splice in self.branch.splices:
            tokens[splice.position : splice.end] = splice.tokens
        branch = replace(self.branch, splices=())
        return WholePrompt(question=self, trunk=tuple(tokens), branch=branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholePrompt:
    """A question in a prompt of its own: `trunk` is its haystack, with the needle."""

    question: Question
    trunk: tuple[int, ...]
    branch: Branch


class NeedleGrid:
    """The haystack and the questions of a plan: the same for the same plan and tokenizer.

    Raises RequestError where a length has no room for a needle and its question.
    """

    def __init__(self, model: LanguageModel, plan: NeedlePlan) -> None:
        self.plan = plan
        self._model = model
        self._format = prompt_format(model, plan.format, plan.thinking)
        self._beginning = self._format.beginning
        self._drafts = {point: self._draft(point) for point in plan.points}
        self._ends = {length: self._end(length) for length in plan.lengths}

    def haystack(self, length: int) -> tuple[int, ...]:
        """Return the plain haystack of a length, from the first token: what all its questions are
        asked about. It ends with a sentence."""
        return self._filler[0][: self._ends[length]]

    def question(self, point: GridPoint) -> Question:
        """Return the question of a cell."""
        draft, end = self._drafts[point], self._ends[point.context_tokens]
        needle, first = draft.needle, len(self._beginning)
        places = self._places_of(draft, end, point.depth_percent)
        placed = list(zip(places, draft.statements, strict=True))
        splices = tuple(Splice(position=at, tokens=words) for at, words in placed if at < end)
        # A statement at the end of the haystack stands before the question, in the place of none.
        at_end = [token for at, words in placed if at == end for token in words]
        span = max(end - len(draft.statements[needle.at]) - first, 1)
        return Question(
            point=point,
            branch=Branch(
                prompt=(*at_end, *draft.question), answers=draft.answers, splices=splices
            ),
            needle=needle.key,
            answer=needle.answer.strip(),
            form=self._format.notes,
            haystack_tokens=end,
            measured_depth=min(100.0, 100 * (places[needle.at] - first) / span),
        )

    def _draft(self, point: GridPoint) -> _Draft:
        plan = self.plan
        rng = Random(f"{plan.seed}/{point}")
        needle = next(needles(plan.needle, rng, plan.value, distractors=plan.distractors))
        tokenize = self._model.tokenize
        return _Draft(
            needle=needle,
            statements=tuple(tuple(tokenize(text)) for text in needle.statements),
            question=self._format.ending(needle.question, needle.prefix),
            answers=tuple(tuple(tokenize(answer)) for answer in (needle.answer, *needle.wrong)),
        )

    @cached_property
    def _filler(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The haystack of the longest length, and where its sentences end."""
        kind = "noise" if self.plan.needle == "passkey" else self.plan.haystack
        rng = Random(f"{self.plan.seed}/haystack")
        filler = Filler(self._model, sentences(kind, rng, self.plan.text))
        first = len(self._beginning)
        woven = weave(filler, (), max(self.plan.lengths[-1] - first, 0))
        return self._beginning + woven.tokens, tuple(first + end for end in woven.boundaries)

    def _places_of(self, draft: _Draft, end: int, depth: float) -> list[int]:
        """Return where the statements of a needle go in a haystack that ends at `end`: between two
        sentences or right behind each other, as late as possible but not after their depths and
        with room for those that follow. The `end` itself is the place of depth 100.
        """
        first, boundaries = len(self._beginning), self._filler[1]
        depths = draft.needle.depths(depth)
        inside = [
            (at, len(words)) for at, words in zip(depths, draft.statements, strict=True) if at < 100
        ]
        left = sum(size for _, size in inside)
        places: list[int] = []
        free = first
        for at, size in inside:
            target = min(first + (end - first) * at / 100, end - left)
            places.append(max(boundaries[bisect_right(boundaries, target) - 1], free))
            free, left = places[-1] + size, left - size
        return places + [end] * (len(depths) - len(places))

    def _end(self, length: int) -> int:
        """Return how many tokens the haystack of a length has: what its longest needle, question
        and answer leave, to the end of a sentence where that is enough for the needle."""
        drafts = [draft for point, draft in self._drafts.items() if point.context_tokens == length]
        asking = max(draft.tokens for draft in drafts)
        stated = max(sum(map(len, draft.statements)) for draft in drafts)
        first, boundaries = len(self._beginning), self._filler[1]
        room = length - asking
        end = boundaries[max(bisect_right(boundaries, room) - 1, 0)]
        if end - first < stated:
            end = min(room, len(self._filler[0]))
        if end - first < stated:
            raise RequestError(
                f"a needle length of {length} tokens is too short: a needle and its question take "
                f"{asking} with this model's tokenizer, and some filler has to stand around them"
            )
        return end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A needle in tokens, before it has a place."""

    needle: Needle
    statements: tuple[tuple[int, ...], ...]
    question: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """The most tokens that it takes beside the haystack."""
        return sum(map(len, self.statements)) + len(self.question) + max(map(len, self.answers))
