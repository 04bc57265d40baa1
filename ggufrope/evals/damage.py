"""The damage tasks: what a damaged cache costs in work that agents do, and needles do not feel.

At each length one haystack holds the texts of as many puzzles as fit (`evals/puzzles`),
spread over it, and is evaluated once; the puzzles are asked at its end. What one text decides is
scored under teacher forcing, the rest is generated and graded. Either way `exact` is 0 or 1.

The control has the same puzzles in a short context, unscaled and with an f16 cache: what the model
cannot do there is no damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random

from ggufrope.errors import BackendError
from ggufrope.evals.formats import prompt_format
from ggufrope.evals.haystack import Filler, Insert, sentences, weave
from ggufrope.evals.needle import NeedleScore, score_each
from ggufrope.evals.needle_prompts import GridPoint, Question
from ggufrope.evals.puzzles.puzzle import Grade, Group, Puzzle
from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS, groups
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.task import Coordinates, Lengths, Task, TaskName, TaskRequest, TaskSettings
from ggufrope.evals.texts import haystack_text
from ggufrope.evals.trunk import Trunk, branch_tokens, common_prefix
from ggufrope.lm import Branch, LanguageModel

SAMPLES = 16
"""Puzzles of each task at each length, by default."""
CONTROL_TOKENS = 1024
"""Length of the control: room for the texts of several puzzles, and little else."""
_PUZZLE_TOKENS = 250
"""A generous estimate of the texts of a puzzle, its question and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A puzzle with its question in tokens."""

    puzzle: Puzzle
    question: Question

    @property
    def tokens(self) -> int:
        """The most tokens that asking takes."""
        return branch_tokens([self.question.branch]) + self.puzzle.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A haystack from its first token, and the puzzles about it."""

    trunk: tuple[int, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drafted:
    """A group with its pieces in tokens; `samples` number its puzzles."""

    group: Group
    pieces: tuple[tuple[int, ...], ...]
    samples: range


class Worlds:
    """The haystacks of one task, made of the settings, a seed and a model's tokenizer."""

    def __init__(
        self, model: LanguageModel, task: TaskName, settings: TaskSettings, seed: int
    ) -> None:
        self._model = model
        self._form = prompt_format(model, settings.format, settings.thinking)
        rng = Random(f"{seed}/haystack")
        kind = settings.haystack.kind
        self._filler = Filler(model, sentences(kind, rng, haystack_text(settings)))
        self._drafts = tuple(self._draft(task, seed, _samples(settings)))
        self._asking = max(
            len(self._ending(puzzle)) + self._answer_tokens(puzzle)
            for draft in self._drafts
            for puzzle in draft.group.puzzles[: len(draft.samples)]
        )

    def of(self, length: int) -> Iterator[World]:
        """Yield the haystacks of a length, as few as hold all texts; none where not even one group
        fits (`least`)."""
        room = length - len(self._form.beginning) - self._asking
        packed: list[_Drafted] = []
        for draft in self._drafts:
            if packed and _size([*packed, draft]) > room:
                yield self._world(packed, length, room)
                packed = []
            packed.append(draft)
        if packed:
            yield self._world(packed, length, room)

    @property
    def least(self) -> int:
        """The shortest length that has room for every group alone."""
        largest = max(_size([draft]) for draft in self._drafts)
        return len(self._form.beginning) + largest + self._asking

    def _draft(self, task: TaskName, seed: int, samples: int) -> Iterator[_Drafted]:
        drawn = 0
        for group in groups(task, Random(f"{seed}/{task}")):
            taken = range(drawn, min(drawn + len(group.puzzles), samples))
            pieces = tuple(tuple(self._model.tokenize(piece)) for piece in group.pieces)
            yield _Drafted(group=group, pieces=pieces, samples=taken)
            drawn = taken.stop
            if drawn == samples:
                return

    def _world(self, packed: Sequence[_Drafted], length: int, room: int) -> World:
        """Return the haystack that has the pieces of these groups spread over it."""
        placed = sorted(
            ((number + 0.5) / len(draft.pieces), at, piece)
            for at, draft in enumerate(packed)
            for number, piece in enumerate(draft.pieces)
        )
        spare, before, inserts = room - _size(packed), 0, []
        for share, _, piece in placed:
            inserts.append(Insert(target=before + int(share * spare), tokens=piece))
            before += len(piece)
        trunk = self._form.beginning + weave(self._filler, inserts, room).tokens
        asked = [
            self._ask(GridPoint(length, 0.0, sample), puzzle, len(trunk))
            for draft in packed
            for sample, puzzle in zip(draft.samples, draft.group.puzzles, strict=False)
        ]
        return World(trunk=trunk, asked=tuple(asked))

    def _ask(self, point: GridPoint, puzzle: Puzzle, haystack_tokens: int) -> Asked:
        answers = () if puzzle.grade else (puzzle.answer, *puzzle.wrong)
        branch = Branch(
            prompt=self._ending(puzzle),
            answers=tuple(tuple(self._model.tokenize(answer)) for answer in answers),
        )
        question = Question(
            point=point,
            branch=branch,
            needle=puzzle.key,
            answer=puzzle.answer.strip(),
            form=self._form.notes,
            haystack_tokens=haystack_tokens,
            measured_depth=100.0,
        )
        return Asked(puzzle=puzzle, question=question)

    def _ending(self, puzzle: Puzzle) -> tuple[int, ...]:
        return self._form.ending(puzzle.question, puzzle.prefix)

    def _answer_tokens(self, puzzle: Puzzle) -> int:
        if puzzle.grade:
            return puzzle.output_tokens
        return max(len(self._model.tokenize(text)) for text in (puzzle.answer, *puzzle.wrong))


def _size(packed: Sequence[_Drafted]) -> int:
    return sum(len(piece) for draft in packed for piece in draft.pieces)


def _samples(settings: TaskSettings) -> int:
    return settings.samples or SAMPLES


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    for context, sample in product(sorted(lengths.contexts), range(_samples(settings))):
        yield Coordinates(context_tokens=context, sample=sample)


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    lengths = {cell.context_tokens for cell in cells}
    return sum(lengths) + _PUZZLE_TOKENS * len(cells)


def _run(task: TaskName, request: TaskRequest) -> Iterator[CellResult]:
    """Yield first the cells of lengths that are too short, found before anything is evaluated."""
    worlds = Worlds(request.model, task, request.settings, request.seed)
    cells = {GridPoint.of(cell): cell for cell in request.todo}
    for cell in request.todo:
        if cell.context_tokens < worlds.least:
            reason = (
                f"{cell.context_tokens} tokens are too few: the texts of one puzzle and its "
                f"question take {worlds.least} with this model's tokenizer"
            )
            yield CellResult(cell=cell, status="skipped", reason=reason)
    left = [
        World(trunk=world.trunk, asked=asked)
        for length in request.contexts
        if length >= worlds.least
        for world in worlds.of(length)
        if (asked := tuple(each for each in world.asked if each.question.point in cells))
    ]
    request.plan_tokens(_asking_tokens(left))
    with Trunk(request.open_context, request.contexts[-1], progress=request.progress) as trunk:
        for world in left:
            scored = [each.question for each in world.asked if each.puzzle.grade is None]
            if scored:
                for score in score_each(trunk, world.trunk, scored):
                    yield _scored(cells[score.point], score)
            for each in world.asked:
                if (grade := each.puzzle.grade) is not None:
                    cell = cells[each.question.point]
                    yield _generated(request, trunk, world, each, grade, cell)


def _scored(cell: Cell, score: NeedleScore) -> CellResult:
    exact, rank = score.exact, score.rank
    metrics = {} if exact is None else {"exact": float(exact)}
    if score.log_probability is not None:
        metrics["log_probability"] = score.log_probability
    if rank is not None:
        metrics["top_ranked"] = float(rank == 1)
    return _result(cell, score.question, metrics, reason=score.reason)


def _generated(
    request: TaskRequest, trunk: Trunk, world: World, asked: Asked, grade: Grade, cell: Cell
) -> CellResult:
    """Return what the model generates, graded."""
    puzzle, question = asked.puzzle, asked.question
    try:
        context = trunk.move_to(world.trunk)
        tokens = context.generate(question.branch.prompt, max_tokens=puzzle.output_tokens)
    except BackendError as failure:
        trunk.discard()
        return _result(cell, question, {}, reason=str(failure))
    if request.progress is not None:
        request.progress(asked.tokens)
    said = request.model.detokenize(tokens)
    # Where no answer can be begun, as in the chat of a server, the model begins it itself: with the
    # prefix, in another form, or not at all.
    outputs = {output: grade(output) for output in (puzzle.prefix + said, said)}
    output, metrics = max(outputs.items(), key=lambda graded: sum(graded[1].values()))
    return _result(cell, question, metrics, output=output)


def _result(
    cell: Cell,
    question: Question,
    metrics: Mapping[str, float],
    *,
    output: str | None = None,
    reason: str | None = None,
) -> CellResult:
    said = () if output is None else (("output", output),)
    return CellResult(
        cell=cell,
        status="ok" if reason is None else "error",
        reason=reason,
        metrics=tuple(Metric(name=name, value=value) for name, value in metrics.items()),
        notes=(("asked", question.needle), ("answer", question.answer), *said, *question.form),
        prompt_tokens=question.prompt_tokens,
    )


def _asking_tokens(worlds: Sequence[World]) -> int:
    total = 0
    before: Sequence[int] = ()
    for world in worlds:
        total += len(world.trunk) - common_prefix(before, world.trunk)
        total += sum(each.tokens for each in world.asked)
        before = world.trunk
    return total


DAMAGE: Mapping[TaskName, Task] = {
    name: Task(
        name=name,
        places=_places,
        tokens=_tokens,
        run=partial(_run, name),
        has_control=True,
        control_tokens=CONTROL_TOKENS,
    )
    for name in DAMAGE_TASKS
}
"""The damage tasks by their names."""
