"""Needle in a haystack: does the model find a fact again, at every length and depth.

A question is scored under teacher forcing, never generated: exact match is what greedy decoding
would give, and the log-probability of the answer tells how near a miss was.

One plain haystack is evaluated once, and each needle is spliced into a fork of it. Whole prompts,
drawn at random among the same needles, stand behind the verdict (`ggufrope.evals.recall`). The
tasks `needle` and `passkey` do so for a grid of lengths, depths and samples; `ask` asks a plan of
one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from math import ceil, isfinite
from random import Random

from ggufrope.errors import BackendError
from ggufrope.evals.needle_kinds import PlanNeedle
from ggufrope.evals.needle_prompts import (
    GridPoint,
    NeedleGrid,
    NeedlePlan,
    Question,
    WholePrompt,
)
from ggufrope.evals.recall import RecallCell, next_look
from ggufrope.evals.results import NOT_FINITE, NOT_NEEDED, Cell, CellResult, Method, Metric
from ggufrope.evals.stats import Mean, Proportion, mean, proportion
from ggufrope.evals.task import Coordinates, Lengths, Task, TaskRequest, TaskSettings
from ggufrope.evals.texts import haystack_text
from ggufrope.evals.trunk import Lanes, Trunk, branch_tokens, common_prefix
from ggufrope.lm import AnswerScore, LanguageModel, OpenContext, Progress

QUESTION_TOKENS = 120
HARDER_QUESTION_TOKENS = 360
"""Generous estimates of a needle and its question, with the answers."""
MOST_ROUNDS = 8
"""Rounds of whole prompts, with as many as there are by default."""
_AT_ONCE = 32
"""Questions between two results that can be kept: enough to fill batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleScore:
    """How one question was answered.

    `exact` is whether greedy decoding gives the answer; `log_probability` is the answer's mean, nat
    per token; `rank` is 1 where no wrong answer was as likely, None without wrong ones. All three
    are None where the question could not be scored, and `reason` says why. `log_probability` alone
    is None where the runtime does not say it. `prompt_tokens` is how long the runtime says that the
    prompt was, None where that is the length of the question's.
    """

    question: Question
    exact: bool | None = None
    log_probability: float | None = None
    rank: int | None = None
    reason: str | None = None
    prompt_tokens: int | None = None

    @property
    def point(self) -> GridPoint:
        return self.question.point

    def result(self, cell: Cell) -> CellResult:
        """Return the score as the result of `cell`."""
        question = self.question
        metrics = [
            Metric(name="recall", value=_number(self.exact)),
            Metric(name="log_probability", value=self.log_probability),
            Metric(name="measured_depth", value=question.measured_depth),
        ]
        if self.rank is not None:
            metrics += [
                Metric(name="top_ranked", value=float(self.rank == 1)),
                Metric(name="rank", value=float(self.rank)),
            ]
        return CellResult(
            cell=cell,
            status="ok" if self.exact is not None else "error",
            reason=self.reason,
            metrics=tuple(metrics),
            notes=(("needle", question.needle), ("answer", question.answer), *question.form),
            prompt_tokens=self.prompt_tokens or question.prompt_tokens,
        )


def ask(
    plan: NeedlePlan,
    model: LanguageModel,
    open_context: OpenContext,
    *,
    method: Method = "spliced",
    progress: Progress | None = None,
) -> Iterator[NeedleScore]:
    """Yield the score of every question of a plan, in the order of evaluation, which is not the
    order of the grid.

    Whole prompts are asked by themselves where the context cannot be spliced. A BackendError
    becomes the reason of the questions it concerns. Raises RequestError where a length has no room
    for a needle.
    """
    asker = Asker(model, plan)
    with _lanes(model, open_context, plan.lengths[-1], progress) as lanes:
        try:
            spliced = method == "spliced" and lanes.trunks[0].whole_only is None
        except BackendError as failure:
            yield from asker.unanswered(plan.points, str(failure))
        else:
            if spliced:
                yield from asker.spliced(lanes.trunks[0], plan.points)
            else:
                yield from asker.whole(lanes, plan.points)


def _lanes(
    model: LanguageModel, open_context: OpenContext, n_ctx: int, progress: Progress | None
) -> Lanes:
    return Lanes(open_context, n_ctx, lanes=model.lanes, progress=progress)


def asking_tokens(plan: NeedlePlan, model: LanguageModel, *, method: Method = "spliced") -> int:
    """Return how many tokens `ask` evaluates. Raises RequestError as it does."""
    asker = Asker(model, plan)
    if method == "whole":
        return asker.whole_tokens(plan.points)
    return asker.spliced_tokens(plan.points)


class Asker:
    """Asks the questions of a grid, and knows what that takes."""

    def __init__(self, model: LanguageModel, plan: NeedlePlan) -> None:
        """Draw the needles. Raises RequestError where a length has no room for one."""
        self._lanes = model.lanes
        self._grid = NeedleGrid(model, plan)

    def spliced(self, trunk: Trunk, points: Iterable[GridPoint]) -> Iterator[NeedleScore]:
        """Yield the scores of needles spliced into one plain haystack."""
        for length, questions in self._by_length(points):
            haystack = self._grid.haystack(length)
            for start in range(0, len(questions), _AT_ONCE):
                yield from score_each(trunk, haystack, questions[start : start + _AT_ONCE])

    def whole(self, lanes: Lanes, points: Iterable[GridPoint]) -> Iterator[NeedleScore]:
        """Yield the scores of whole prompts, in an order in which they share beginnings."""
        return lanes.map(_score_whole, self._whole_prompts(points))

    def unanswered(self, points: Iterable[GridPoint], reason: str) -> Iterator[NeedleScore]:
        """Yield scores that say why nothing could be asked."""
        for point in points:
            yield NeedleScore(question=self._grid.question(point), reason=reason)

    def spliced_tokens(self, points: Iterable[GridPoint]) -> int:
        """Return how many tokens `spliced` evaluates."""
        total = longest = 0
        for length, questions in self._by_length(points):
            longest = max(longest, len(self._grid.haystack(length)))
            total += branch_tokens([question.branch for question in questions])
        return longest + total

    def whole_tokens(self, points: Iterable[GridPoint], lanes: Lanes | None = None) -> int:
        """Return how many tokens `whole` evaluates, in lanes as they stand or in new ones."""
        before: list[Sequence[int]] = [()] * self._lanes
        shares = True
        if lanes is not None:
            before = [trunk.tokens for trunk in lanes.trunks]
            shares = not lanes.trunks[0].append_only
        total = 0
        for number, prompt in enumerate(self._whole_prompts(points)):
            lane = number % self._lanes
            shared = common_prefix(before[lane], prompt.trunk)
            total += len(prompt.trunk) - (shared if shares or shared == len(before[lane]) else 0)
            total += branch_tokens([prompt.branch])
            before[lane] = prompt.trunk
        return total

    def _by_length(self, points: Iterable[GridPoint]) -> Iterator[tuple[int, list[Question]]]:
        """Yield lengths with their questions, shortest first."""
        ordered = sorted(points)
        for length, group in groupby(ordered, key=lambda point: point.context_tokens):
            yield length, [self._grid.question(point) for point in group]

    def _whole_prompts(self, points: Iterable[GridPoint]) -> Iterator[WholePrompt]:
        """Yield whole prompts, the deepest needle first: each keeps the haystack before its needle
        from the one before."""
        questions = [self._grid.question(point) for point in points]
        for question in sorted(questions, key=lambda each: (-each.place, each.point)):
            yield question.whole(self._grid.haystack(question.point.context_tokens))


def _score_whole(trunk: Trunk, prompt: WholePrompt) -> NeedleScore:
    try:
        (answers,) = trunk.score(prompt.trunk, [prompt.branch])
    except BackendError as failure:
        trunk.discard()
        return NeedleScore(question=prompt.question, reason=str(failure))
    return _scored(prompt.question, answers)


def score_each(
    trunk: Trunk, haystack: Sequence[int], questions: Sequence[Question]
) -> Iterator[NeedleScore]:
    """Yield the scores of questions about one haystack; where they fail together, each is asked
    alone, so that only those that fail have no score."""
    try:
        trunk.move_to(haystack)
    except BackendError as failure:
        trunk.discard()
        yield from (NeedleScore(question=question, reason=str(failure)) for question in questions)
        return
    try:
        scores = trunk.score(haystack, [question.branch for question in questions])
    except BackendError as failure:
        if len(questions) == 1:
            yield NeedleScore(question=questions[0], reason=str(failure))
        else:
            for question in questions:
                yield from score_each(trunk, haystack, [question])
    else:
        yield from map(_scored, questions, scores)


def _scored(question: Question, answers: tuple[AnswerScore, ...]) -> NeedleScore:
    true = answers[0]
    known = [value for each in answers if (value := each.mean_log_probability) is not None]
    if not all(map(isfinite, known)):
        return NeedleScore(question=question, reason=NOT_FINITE)
    ranked = len(answers) > 1 and len(known) == len(answers)
    return NeedleScore(
        question=question,
        exact=true.greedy,
        log_probability=true.mean_log_probability,
        rank=sum(value >= known[0] for value in known) if ranked else None,
        prompt_tokens=true.prompt_tokens,
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Several questions taken together: `exact` is the share answered exactly.

    Questions without a score are counted apart, in `unscored`.
    """

    exact: Proportion
    log_probability: Mean
    unscored: int


def recall(scores: Iterable[NeedleScore]) -> Recall:
    """Return the summary of any selection of scores."""
    every = tuple(scores)
    scored = tuple(score for score in every if score.exact is not None)
    return Recall(
        exact=proportion(sum(score.exact is True for score in scored), len(scored)),
        log_probability=mean(
            score.log_probability for score in scored if score.log_probability is not None
        ),
        unscored=len(every) - len(scored),
    )


# The tasks --------------------------------------------------------------------------------------


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    """Yield a grid of needles, and the whole prompts that may be asked, each length's in the order
    in which they are drawn. Needles of a harder kind are a part of their own."""
    part = None if settings.needle == "standard" else settings.needle
    return _grid(settings, lengths, part)


def _passkey_places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    return _grid(settings, lengths, None)


def _grid(settings: TaskSettings, lengths: Lengths, part: str | None) -> Iterator[Coordinates]:
    grid = list(product(settings.depth_percents, range(settings.needle_samples)))
    for context in sorted(lengths.contexts):
        asked: list[tuple[Method, float, int]] = [(settings.mode, *place) for place in grid]
        if settings.mode == "spliced":
            rng, most = Random(f"whole/{context}"), min(settings.whole_prompts, len(grid))
            asked += [("whole", *place) for place in rng.sample(grid, most)]
        for method, depth, sample in asked:
            yield Coordinates(
                context_tokens=context,
                depth_percent=depth,
                sample=sample,
                part=part,
                method=method,
            )


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    """Return the longest haystack once, each whole prompt from its needle on, and the questions.

    A new round of whole prompts begins at its deepest needle, a haystack behind at most.
    """
    longest = max(cell.context_tokens for cell in cells)
    whole = [cell for cell in cells if cell.method == "whole"]
    behind = sum(cell.context_tokens * (1 - (cell.depth_percent or 0) / 100) for cell in whole)
    rounds = 1 + (MOST_ROUNDS if whole else 0)
    asking = QUESTION_TOKENS if settings.needle == "standard" else HARDER_QUESTION_TOKENS
    return rounds * longest + ceil(behind) + asking * len(cells)


def _run_needle(request: TaskRequest) -> Iterator[CellResult]:
    return _run(request, request.settings.needle)


def _run_passkey(request: TaskRequest) -> Iterator[CellResult]:
    return _run(request, "passkey")


def _run(request: TaskRequest, needle: PlanNeedle) -> Iterator[CellResult]:
    settings = request.settings
    plan = NeedlePlan(
        lengths=request.contexts,
        depths=settings.depth_percents,
        samples=settings.needle_samples,
        seed=request.seed,
        needle=needle,
        value=settings.value,
        haystack=settings.haystack.kind,
        text=haystack_text(settings),
        distractors=settings.distractors,
        format=settings.format,
        thinking=settings.thinking,
    )
    return _Grid(request, plan).fill()


class _Grid:
    """The cells of one job, and what is known of them: first the spliced needles are asked, then
    whole prompts, at each length until its recall is decided."""

    def __init__(self, request: TaskRequest, plan: NeedlePlan) -> None:
        self._request = request
        self._longest = plan.lengths[-1]
        self._asker = Asker(request.model, plan)
        self._recalled: dict[Cell, bool | None] = {
            result.cell: _recalled(result) for result in request.done
        }

    def fill(self) -> Iterator[CellResult]:
        """Yield the results of the cells still to do."""
        request = self._request
        progress = request.progress
        with _lanes(request.model, request.open_context, self._longest, progress) as lanes:
            yield from self._fill_spliced(lanes.trunks[0])
            while cells := self._next_whole():
                request.plan_tokens(self._asker.whole_tokens(map(GridPoint.of, cells), lanes))
                yield from self._ask(cells, partial(self._asker.whole, lanes))
        for cell in self._todo("whole"):
            yield CellResult(cell=cell, status="skipped", reason=NOT_NEEDED)

    def _fill_spliced(self, trunk: Trunk) -> Iterator[CellResult]:
        cells = self._todo("spliced")
        if not cells:
            return
        try:
            refusal = trunk.whole_only
        except BackendError as failure:
            # No context can be opened: that is the reason of every cell.
            for cell in self._request.todo:
                self._recalled[cell] = None
                yield CellResult(cell=cell, status="error", reason=str(failure))
            return
        if refusal is None:
            self._request.plan_tokens(self._asker.spliced_tokens(map(GridPoint.of, cells)))
            yield from self._ask(cells, partial(self._asker.spliced, trunk))
        for cell in self._todo("spliced"):
            self._recalled[cell] = None
            reason = f"asked in whole prompts only: {refusal}"
            yield CellResult(cell=cell, status="skipped", reason=reason)

    def _ask(
        self, cells: Sequence[Cell], asked: Callable[[Iterable[GridPoint]], Iterator[NeedleScore]]
    ) -> Iterator[CellResult]:
        """Ask for the needles of `cells`, and note what is recalled."""
        at = {GridPoint.of(cell): cell for cell in cells}
        for score in asked(at):
            result = score.result(at[score.point])
            self._recalled[result.cell] = _recalled(result)
            yield result

    def _todo(self, method: Method) -> list[Cell]:
        return [
            cell
            for cell in self._request.cells
            if cell.method == method and cell not in self._recalled
        ]

    def _next_whole(self) -> list[Cell]:
        """Return the whole prompts to ask next, at every length that is not decided."""
        left = self._todo("whole")
        if self._request.settings.mode == "whole":
            return left
        chosen: list[Cell] = []
        for length in sorted({cell.context_tokens for cell in left}):
            ahead = [cell for cell in left if cell.context_tokens == length]
            chosen += ahead[: self._look(length)]
        return chosen

    def _look(self, length: int) -> int:
        """Return how many whole prompts of a length to ask before it is looked at again."""
        found: dict[GridPoint, dict[Method | None, bool | None]] = {}
        limit = 0
        for cell in self._request.cells:
            if cell.context_tokens == length:
                limit += cell.method == "whole"
                found.setdefault(GridPoint.of(cell), {})[cell.method] = self._recalled.get(cell)
        pairs = [
            RecallCell(spliced=by.get("spliced"), whole=by.get("whole")) for by in found.values()
        ]
        minimum = self._request.recall_minimum
        if minimum is None:
            return limit
        return next_look(pairs, minimum, limit)


def _recalled(result: CellResult) -> bool | None:
    value = result.value("recall")
    return None if value is None else value == 1


NEEDLE = Task(name="needle", places=_places, tokens=_tokens, run=_run_needle, has_control=True)
"""Recall of one fact in prose, over a grid of lengths, depths and samples."""
PASSKEY = Task(
    name="passkey", places=_passkey_places, tokens=_tokens, run=_run_passkey, has_control=True
)
"""Recall of five digits in noise, over the same grid."""
