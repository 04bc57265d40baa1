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
from itertools import islice, product
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from ggufrope.errors import RequestError
from ggufrope.evals.facts import Fact, ValueKind, facts, pass_keys
from ggufrope.evals.haystack import Filler, HaystackKind, sentences, weave
from ggufrope.lm import Branch, LanguageModel, Splice

Wording: TypeAlias = Literal["fact", "passkey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent) × `samples`.

    Depth 0 is the start, 100 right before the question. Lengths are kept in ascending order, each
    once. Everything is drawn from `seed`: one haystack, and a needle for each cell. An answer is
    ranked among `distractors` wrong ones. `text` is what a haystack of kind "text" repeats.

    Raises RequestError where the numbers contradict each other.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 1
    seed: int = 0
    wording: Wording = "fact"
    value: ValueKind = "number"
    haystack: HaystackKind = "essay"
    text: str | None = None
    distractors: int = 0

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))

    def _problems(self) -> Iterator[str]:
        yield from grid_problems(self.lengths, self.depths, self.samples)
        if self.distractors < 0:
            yield f"distractors must be 0 or more, got {self.distractors}"
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

    def __str__(self) -> str:
        return f"{self.context_tokens}/{self.depth_percent:g}/{self.sample}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question of one grid point; the first answer of `branch` is the true one.

    `needle` names what it asks for, `answer` is what should follow. `haystack_tokens` counts the
    plain haystack. `measured_depth` is where the needle really stands, in percent.
    """

    point: GridPoint
    branch: Branch
    needle: str
    answer: str
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
        self._beginning = tuple(model.tokenize("", beginning=True))
        self._drafts = {point: self._draft(point) for point in plan.points}
        self._ends = {length: self._end(length) for length in plan.lengths}

    def haystack(self, length: int) -> tuple[int, ...]:
        """Return the plain haystack of a length, from the first token: what all its questions are
        asked about. It ends with a sentence."""
        return self._filler[0][: self._ends[length]]

    def question(self, point: GridPoint) -> Question:
        """Return the question of a cell."""
        draft, end = self._drafts[point], self._ends[point.context_tokens]
        first, size = len(self._beginning), len(draft.statement)
        splices: tuple[Splice, ...] = ()
        answers = tuple(tuple(self._model.tokenize(answer)) for answer in draft.answers)
        if point.depth_percent == 100:
            place, prompt = end, draft.statement + draft.question
        else:
            place = self._place(first + (end - first) * point.depth_percent / 100, end - size)
            prompt = draft.question
            splices = (Splice(position=place, tokens=draft.statement),)
        span = max(end - size - first, 1)
        return Question(
            point=point,
            branch=Branch(prompt=prompt, answers=answers, splices=splices),
            needle=draft.key,
            answer=draft.answers[0].strip(),
            haystack_tokens=end,
            measured_depth=min(100.0, 100 * (place - first) / span),
        )

    def _draft(self, point: GridPoint) -> _Draft:
        rng = Random(f"{self.plan.seed}/{point}")
        source = pass_keys(rng) if self.plan.wording == "passkey" else facts(rng, self.plan.value)
        fact: Fact
        fact, *others = islice(source, 1 + self.plan.distractors)
        return _Draft(
            statement=tuple(self._model.tokenize(fact.statement)),
            question=tuple(self._model.tokenize(fact.question)),
            answers=(fact.answer, *(other.answer for other in others)),
            key=fact.key,
        )

    @cached_property
    def _filler(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The haystack of the longest length, and where its sentences end."""
        kind = "noise" if self.plan.wording == "passkey" else self.plan.haystack
        rng = Random(f"{self.plan.seed}/haystack")
        filler = Filler(self._model, sentences(kind, rng, self.plan.text))
        first = len(self._beginning)
        woven = weave(filler, (), max(self.plan.lengths[-1] - first, 0))
        return self._beginning + woven.tokens, tuple(first + end for end in woven.boundaries)

    def _place(self, target: float, latest: int) -> int:
        """Return the last place between two sentences that is not after `target` and `latest`."""
        boundaries = self._filler[1]
        return boundaries[bisect_right(boundaries, min(target, latest)) - 1]

    def _end(self, length: int) -> int:
        """Return how many tokens the haystack of a length has: what its longest needle, question
        and answer leave, to the end of a sentence."""
        drafts = [draft for point, draft in self._drafts.items() if point.context_tokens == length]
        asking = max(draft.tokens(self._model) for draft in drafts)
        statement = max(len(draft.statement) for draft in drafts)
        first, boundaries = len(self._beginning), self._filler[1]
        end = boundaries[max(bisect_right(boundaries, length - asking) - 1, 0)]
        if end - first < statement:
            raise RequestError(
                f"a needle length of {length} tokens is too short: a needle and its question take "
                f"{asking} with this model's tokenizer, and some filler has to stand around them"
            )
        return end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A needle before it has a place: tokens of its statement and question, texts of answers."""

    statement: tuple[int, ...]
    question: tuple[int, ...]
    answers: tuple[str, ...]
    key: str

    def tokens(self, model: LanguageModel) -> int:
        """Return the most tokens that it takes beside the haystack."""
        answer = max(len(model.tokenize(answer)) for answer in self.answers)
        return len(self.statement) + len(self.question) + answer
