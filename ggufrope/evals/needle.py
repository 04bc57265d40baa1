"""Needle in a haystack: does the model find a fact again, at every length and depth.

A question is scored under teacher forcing, never generated: exact match is what greedy decoding
would give, and the log-probability of the answer tells how near a miss was. The tasks `needle` and
`passkey` fill a grid of lengths, depths and samples; `ask` does the same for a plan of one's own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path

from ggufrope.errors import BackendError
from ggufrope.evals.needle_prompts import GridPoint, NeedlePlan, Question, passkey_plan, prompts
from ggufrope.evals.results import NOT_FINITE, Cell, CellResult, Metric
from ggufrope.evals.stats import Mean, Proportion, mean, proportion
from ggufrope.evals.task import Coordinates, Lengths, Task, TaskRequest, TaskSettings
from ggufrope.evals.texts import read_text
from ggufrope.evals.trunk import Trunk, branch_tokens, common_prefix
from ggufrope.lm import AnswerScore, LanguageModel, OpenContext, Progress

QUESTION_TOKENS = 120
"""A generous estimate of a question with its answer and distractors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleScore:
    """How one question was answered.

    `exact` is whether greedy decoding gives the answer; `log_probability` is the answer's mean, nat
    per token; `rank` is 1 where no wrong answer was as likely. All three are None where the
    question could not be scored, and `reason` says why.
    """

    question: Question
    exact: bool | None = None
    log_probability: float | None = None
    rank: int | None = None
    reason: str | None = None

    @property
    def point(self) -> GridPoint:
        return self.question.point

    def result(self, cell: Cell) -> CellResult:
        """Return the score as the result of `cell`."""
        question = self.question
        return CellResult(
            cell=cell,
            status="ok" if self.exact is not None else "error",
            reason=self.reason,
            metrics=(
                Metric(name="recall", value=_number(self.exact)),
                Metric(
                    name="top_ranked", value=_number(None if self.rank is None else self.rank == 1)
                ),
                Metric(name="log_probability", value=self.log_probability),
                Metric(name="rank", value=_number(self.rank)),
                Metric(name="measured_depth", value=question.measured_depth),
            ),
            notes=(("needle", question.needle), ("answer", question.answer)),
            prompt_tokens=question.prompt_tokens,
        )


def ask(
    plan: NeedlePlan,
    model: LanguageModel,
    open_context: OpenContext,
    *,
    only: Container[GridPoint] | None = None,
    progress: Progress | None = None,
) -> Iterator[NeedleScore]:
    """Yield the score of every question of a plan, or of those at the points in `only`, in the
    order of evaluation, which is not the order of the grid.

    A BackendError becomes the reason of the questions it concerns. Raises RequestError where a
    length has no room for a fact.
    """
    with Trunk(open_context, plan.lengths[-1], progress=progress) as trunk:
        for prompt in prompts(model, plan, only):
            branches = [question.branch for question in prompt.questions]
            try:
                scores = trunk.score(prompt.trunk, branches)
            except BackendError as failure:
                trunk.discard()
                for question in prompt.questions:
                    yield NeedleScore(question=question, reason=str(failure))
            else:
                yield from map(_scored, prompt.questions, scores)


def asking_tokens(
    plan: NeedlePlan, model: LanguageModel, *, only: Container[GridPoint] | None = None
) -> int:
    """Return how many tokens `ask` evaluates. Raises RequestError as it does."""
    total = 0
    before: tuple[int, ...] = ()
    for prompt in prompts(model, plan, only):
        total += len(prompt.trunk) - common_prefix(before, prompt.trunk)
        total += branch_tokens([question.branch for question in prompt.questions])
        before = prompt.trunk
    return total


def _scored(question: Question, answers: tuple[AnswerScore, ...]) -> NeedleScore:
    if not all(isfinite(answer.mean_log_probability) for answer in answers):
        return NeedleScore(question=question, reason=NOT_FINITE)
    true, *others = answers
    likelier = sum(other.mean_log_probability >= true.mean_log_probability for other in others)
    return NeedleScore(
        question=question,
        exact=true.greedy,
        log_probability=true.mean_log_probability,
        rank=1 + likelier,
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Several questions taken together.

    `exact` is the share answered exactly, `top_ranked` the share whose answer no wrong one matched.
    Questions without a score are counted apart, in `unscored`.
    """

    exact: Proportion
    top_ranked: Proportion
    log_probability: Mean
    unscored: int


def recall(scores: Iterable[NeedleScore]) -> Recall:
    """Return the summary of any selection of scores."""
    every = tuple(scores)
    scored = tuple(score for score in every if score.exact is not None)
    return Recall(
        exact=proportion(sum(score.exact is True for score in scored), len(scored)),
        top_ranked=proportion(sum(score.rank == 1 for score in scored), len(scored)),
        log_probability=mean(
            score.log_probability for score in scored if score.log_probability is not None
        ),
        unscored=len(every) - len(scored),
    )


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    """Yield a grid at each context of the plan, and at the native context where the plan goes
    beyond it: a failure there is the model's, not the extension's."""
    native = lengths.native
    beyond = native is not None and native < max(lengths.contexts)
    control = native if settings.control and beyond and native not in lengths.contexts else None
    contexts = {*lengths.contexts, *(() if control is None else (control,))}
    return _grid(settings, sorted(contexts), control)


def _passkey_places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    return _grid(settings, sorted(lengths.contexts), None)


def _grid(
    settings: TaskSettings, contexts: Sequence[int], control: int | None
) -> Iterator[Coordinates]:
    for context, depth, sample in product(
        contexts, settings.depth_percents, range(settings.samples)
    ):
        yield Coordinates(
            context_tokens=context, depth_percent=depth, sample=sample, control=context == control
        )


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    if settings.mode == "isolated":
        return _whole_prompts(settings, cells)
    longest = max(cell.context_tokens for cell in cells)
    return settings.samples * longest + QUESTION_TOKENS * len(cells)


def _whole_prompts(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    return sum(cell.context_tokens for cell in cells)


def _run_needle(request: TaskRequest) -> Iterator[CellResult]:
    settings = request.settings
    file = settings.haystack.file
    plan = NeedlePlan(
        lengths=request.contexts,
        depths=settings.depth_percents,
        samples=settings.samples,
        seed=request.seed,
        mode=settings.mode,
        kind=settings.value,
        haystack=settings.haystack.kind,
        text=None if file is None else read_text(Path(file)).content,
    )
    return _fill(request, plan)


def _run_passkey(request: TaskRequest) -> Iterator[CellResult]:
    settings = request.settings
    plan = passkey_plan(
        lengths=request.contexts,
        depths=settings.depth_percents,
        samples=settings.samples,
        seed=request.seed,
    )
    return _fill(request, plan)


def _fill(request: TaskRequest, plan: NeedlePlan) -> Iterator[CellResult]:
    """Yield the results of the cells still to do, each of which is a point of the plan's grid."""
    cells = {
        GridPoint(cell.context_tokens, cell.depth_percent or 0.0, cell.sample or 0): cell
        for cell in request.todo
    }
    request.plan_tokens(asking_tokens(plan, request.model, only=cells))
    for score in ask(
        plan, request.model, request.open_context, only=cells, progress=request.progress
    ):
        yield score.result(cells[score.point])


NEEDLE = Task(name="needle", places=_places, tokens=_tokens, run=_run_needle)
"""Recall of facts over a grid of lengths and depths."""
PASSKEY = Task(name="passkey", places=_passkey_places, tokens=_whole_prompts, run=_run_passkey)
"""Recall of five digits in a noise haystack, one prompt for each cell."""
