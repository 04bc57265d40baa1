"""RULER-style tasks: prompts that fill a length, answered by generation and scored by their words.

A cell is one sample of one of the thirteen tasks at one length. Its prompt and the longest answer
it may get fill the length, and its score is the share of the right answers in the output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.formats import PromptFormat, prompt_format
from ggufrope.evals.results import Cell, CellResult, Metric
from ggufrope.evals.ruler.drafts import (
    Draft,
    coded_words,
    common_words,
    largest_fitting,
    niah,
    variable_tracking,
)
from ggufrope.evals.ruler.qa import QuestionSet, questions, read_hotpotqa, read_squad
from ggufrope.evals.ruler.specs import BY_NAME, RulerSpec, found
from ggufrope.evals.ruler.wording import Wording, read_templates, wordings_of
from ggufrope.evals.task import (
    Coordinates,
    Lengths,
    RulerSettings,
    Task,
    TaskRequest,
    TaskSettings,
)
from ggufrope.evals.trunk import Lanes, Trunk, common_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSource:
    """Everything that samples are made of beside their cell: a seed, the data of the question
    tasks, and a user's templates."""

    seed: int = 0
    squad: QuestionSet | None = None
    hotpotqa: QuestionSet | None = None
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, settings: RulerSettings, seed: int) -> RulerSource:
        """Read the files that the settings name. Raises StorageError, RequestError."""
        squad, hotpotqa, templates = settings.squad, settings.hotpotqa, settings.templates
        return cls(
            seed=seed,
            squad=None if squad is None else read_squad(Path(squad)),
            hotpotqa=None if hotpotqa is None else read_hotpotqa(Path(hotpotqa)),
            templates={} if templates is None else read_templates(Path(templates)),
        )

    def questions(self, spec: RulerSpec) -> QuestionSet:
        """Return the data of a question task. Raises RequestError where there is none."""
        data = self.squad if spec.data == "squad" else self.hotpotqa
        if data is None:
            raise RequestError(f"the RULER task {spec.name} needs a {spec.data} file")
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSample:
    """The prompt of one cell in tokens, and the right answers.

    A prompt that does not fit the length with its answer is the shortest that there is.
    """

    cell: Cell
    spec: RulerSpec
    prompt: tuple[int, ...]
    answers: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of the longest answer that it may get."""
        return len(self.prompt) + self.spec.output_tokens

    @property
    def fits(self) -> bool:
        return self.tokens <= self.cell.context_tokens


def samples(
    form: PromptFormat, cells: Iterable[Cell], source: RulerSource
) -> Iterator[RulerSample]:
    """Yield the sample of each cell, in order. Raises RequestError where a template is invalid."""
    wordings = wordings_of(source.templates)
    for cell in cells:
        spec = BY_NAME[cell.part or ""]
        draft = _draft(spec, cell, source, wordings[spec.name])
        yield _sized(form, spec, cell, draft, wordings[spec.name])


def _draft(spec: RulerSpec, cell: Cell, source: RulerSource, wording: Wording) -> Draft:
    number = cell.sample or 0
    rng = Random(f"{source.seed}/{spec.name}/{cell.context_tokens}/{number}")
    match spec.family:
        case "niah":
            return niah(spec, wording, rng)
        case "vt":
            return variable_tracking(wording, rng)
        case "cwe":
            return common_words(wording, rng, cell.context_tokens)
        case "fwe":
            return coded_words(spec, rng, cell.context_tokens)
        case "qa":
            return questions(source.questions(spec), wording, rng, number)


def _sized(
    form: PromptFormat, spec: RulerSpec, cell: Cell, draft: Draft, wording: Wording
) -> RulerSample:
    """Return the draft with as many units as fit beside the answer, at least its least."""

    def prompt(units: int) -> tuple[int, ...]:
        return form.prompt(draft.prompt(wording, units), draft.prefix(wording))

    units = largest_fitting(
        lambda units: len(prompt(units)),
        cell.context_tokens - spec.output_tokens,
        least=draft.least,
        most=draft.most,
    )
    return RulerSample(
        cell=cell,
        spec=spec,
        prompt=prompt(draft.least if units is None else units),
        answers=draft.answers,
    )


def answering_tokens(every: Iterable[RulerSample], lanes: int = 1) -> int:
    """Return how many tokens the samples take if every answer is as long as it may be."""
    total = 0
    before: list[tuple[int, ...]] = [()] * lanes
    for number, sample in enumerate(every):
        prompt = sample.prompt[:-1]
        total += len(sample.prompt) - common_prefix(before[number % lanes], prompt)
        total += sample.spec.output_tokens
        before[number % lanes] = prompt
    return total


def _places(settings: TaskSettings, lengths: Lengths) -> Iterator[Coordinates]:
    contexts, parts = sorted(lengths.contexts), settings.ruler.parts
    for context, part, sample in product(contexts, parts, range(settings.samples or 1)):
        yield Coordinates(context_tokens=context, part=part, sample=sample)


def _tokens(settings: TaskSettings, cells: Sequence[Cell]) -> int:
    return sum(cell.context_tokens for cell in cells)


def _run(request: TaskRequest) -> Iterator[CellResult]:
    """Yield first the cells that are too short, found before anything is evaluated."""
    settings = request.settings
    form = prompt_format(request.model, settings.format, settings.thinking)
    source = RulerSource.read(settings.ruler, request.seed)
    unfit: dict[Cell, RulerSample] = {}

    def fitting() -> Iterator[RulerSample]:
        left = [cell for cell in request.todo if cell not in unfit]
        for sample in samples(form, left, source):
            if sample.fits:
                yield sample
            else:
                unfit[sample.cell] = sample

    lanes, longest = request.model.lanes, request.contexts[-1]
    request.plan_tokens(answering_tokens(fitting(), lanes))
    yield from _skipped(unfit.values())
    with Lanes(request.open_context, longest, lanes=lanes, progress=request.progress) as trunks:
        yield from trunks.map(partial(_answer, request, form), fitting())


def _skipped(unfit: Collection[RulerSample]) -> Iterator[CellResult]:
    """Yield the results of samples that do not fit, with one reason for all of a length."""
    needed: dict[int, dict[str, int]] = {}
    for sample in unfit:
        most = needed.setdefault(sample.cell.context_tokens, {})
        most[sample.spec.name] = max(sample.tokens, most.get(sample.spec.name, 0))
    for sample in unfit:
        length = sample.cell.context_tokens
        tasks = ", ".join(f"{name} ({tokens})" for name, tokens in needed[length].items())
        reason = f"{length} tokens are too few for the shortest prompt and its answer of {tasks}"
        yield CellResult(cell=sample.cell, status="skipped", reason=reason)


def _answer(
    request: TaskRequest, form: PromptFormat, trunk: Trunk, sample: RulerSample
) -> CellResult:
    """Return what the model generates after the prompt, and its score."""
    output, reason, score = "", None, None
    try:
        context = trunk.move_to(sample.prompt[:-1])
        tokens = context.generate(sample.prompt[-1:], max_tokens=sample.spec.output_tokens)
        output = request.model.detokenize(tokens)
        score = found(output, sample.answers, sample.spec.scoring)
    except BackendError as failure:
        trunk.discard()
        reason = str(failure)
    else:
        if request.progress is not None:
            request.progress(1 + sample.spec.output_tokens)
    return CellResult(
        cell=sample.cell,
        status="ok" if reason is None else "error",
        reason=reason,
        metrics=(Metric(name="score", value=score),),
        notes=(("output", output), ("answers", ", ".join(sample.answers)), *form.notes),
        prompt_tokens=len(sample.prompt),
    )


RULER = Task(name="ruler", places=_places, tokens=_tokens, run=_run)
"""RULER's tasks: the share of the right answers in what the model generates."""
