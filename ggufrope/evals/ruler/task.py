"""RULER-style tasks at chosen lengths, asked and scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from ggufrope.errors import BackendError, RequestError
from ggufrope.evals.ruler.counting import coded_words, common_words
from ggufrope.evals.ruler.draft import Draft
from ggufrope.evals.ruler.niah import niah
from ggufrope.evals.ruler.qa import QuestionSet, questions
from ggufrope.evals.ruler.scoring import RulerResult, found
from ggufrope.evals.ruler.sizing import largest_fitting
from ggufrope.evals.ruler.specs import BY_NAME, RULER_TASKS, RulerSpec
from ggufrope.evals.ruler.tracing import variable_tracking
from ggufrope.evals.ruler.wording import Wording, wordings_of
from ggufrope.evals.trunk import Trunk, common_prefix
from ggufrope.evals.types import Sample, Score
from ggufrope.lm import LanguageModel, OpenContext, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerPlan:
    """Tasks by name, or every one there is data for, at `lengths` in tokens, answer included.

    `squad` and `hotpotqa` are what qa_1 and qa_2 ask about; `templates` are a user's wording.

    Raises RequestError for an unknown task, a task without its data, or an invalid template.
    """

    lengths: tuple[int, ...]
    tasks: tuple[str, ...] | None = None
    samples: int = 10
    seed: int = 42
    squad: QuestionSet | None = None
    hotpotqa: QuestionSet | None = None
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise RequestError("; ".join(problems))
        wordings_of(self.templates)

    def _problems(self) -> Iterator[str]:
        if not self.lengths or min(self.lengths) < 1:
            yield f"RULER lengths must be at least 1 token, got {list(self.lengths)}"
        if self.samples < 1:
            yield f"samples must be at least 1, got {self.samples}"
        for name in self.tasks or ():
            if name not in BY_NAME:
                yield f"unknown RULER task {name!r}; expected one of {', '.join(BY_NAME)}"
            elif not self._has_data(BY_NAME[name]):
                yield f"the RULER task {name} needs a {BY_NAME[name].data} file"

    def _has_data(self, spec: RulerSpec) -> bool:
        return spec.data is None or self.data(spec) is not None

    def data(self, spec: RulerSpec) -> QuestionSet | None:
        """What a question task asks about."""
        return self.squad if spec.data == "squad" else self.hotpotqa

    @property
    def specs(self) -> tuple[RulerSpec, ...]:
        """The tasks, in RULER's order."""
        return tuple(
            spec
            for spec in RULER_TASKS
            if (spec.name in self.tasks if self.tasks is not None else self._has_data(spec))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    spec: RulerSpec
    length: int
    sample: int

    @property
    def key(self) -> str:
        return f"{self.spec.name}/{self.length}/{self.sample}"


@dataclass(frozen=True, slots=True)
class RulerTask:
    """A RulerPlan as a task; a cell is a sample."""

    plan: RulerPlan

    @property
    def name(self) -> str:
        return "ruler"

    def planned_tokens(self, model: LanguageModel, *, done: Collection[str] = ()) -> int:
        """Tokens a run will evaluate if every answer is as long as it may be.

        Raises RequestError where a task does not fit a length at all.
        """
        total = 0
        before: tuple[int, ...] = ()
        for cell, sample in self._samples(model, done):
            total += len(sample.prompt) - common_prefix(before, sample.prompt[:-1])
            total += cell.spec.output_tokens
            before = sample.prompt[:-1]
        return total

    def run(
        self,
        model: LanguageModel,
        open_context: OpenContext,
        *,
        done: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Iterator[RulerResult]:
        """Results by length, then task, then sample."""
        with Trunk(open_context, max(self.plan.lengths), progress=progress) as trunk:
            for cell, sample in self._samples(model, done):
                output = ""
                try:
                    context = trunk.move_to(sample.prompt[:-1])
                    tokens = context.generate(
                        sample.prompt[-1:], max_tokens=cell.spec.output_tokens
                    )
                    output = model.detokenize(tokens)
                    score = Score(value=found(output, sample.answers, cell.spec.metric))
                except BackendError as failure:
                    trunk.discard()
                    score = Score(value=None, reason=str(failure))
                else:
                    if progress is not None:
                        progress(1 + cell.spec.output_tokens)
                yield RulerResult(
                    task=cell.spec.name,
                    context_tokens=cell.length,
                    sample=cell.sample,
                    prompt_tokens=len(sample.prompt),
                    output=output,
                    answers=sample.answers,
                    score=score,
                )

    def _samples(
        self, model: LanguageModel, done: Collection[str]
    ) -> Iterator[tuple[_Cell, Sample]]:
        wordings = wordings_of(self.plan.templates)
        for length in sorted(self.plan.lengths):
            for spec in self.plan.specs:
                for number in range(self.plan.samples):
                    cell = _Cell(spec=spec, length=length, sample=number)
                    if cell.key not in done:
                        draft = self._draft(cell, wordings[spec.name])
                        yield cell, _sized(model, cell, draft, wordings[spec.name])

    def _draft(self, cell: _Cell, wording: Wording) -> Draft:
        spec = cell.spec
        rng = Random(f"{self.plan.seed}/{cell.key}")
        if spec.family == "niah":
            return niah(spec, wording, rng)
        if spec.family == "vt":
            return variable_tracking(wording, rng)
        if spec.family == "cwe":
            return common_words(wording, rng, cell.length)
        if spec.family == "fwe":
            return coded_words(spec, rng, cell.length)
        data = self.plan.data(spec)
        if data is None:
            raise RequestError(f"the RULER task {spec.name} needs a {spec.data} file")
        return questions(data, wording, rng, cell.sample)


def _sized(model: LanguageModel, cell: _Cell, draft: Draft, wording: Wording) -> Sample:
    """The draft with as many units as fit; a cell's prompt and its answer fill the length."""

    def tokens(units: int) -> list[int]:
        return model.tokenize(draft.text(wording, units), beginning=True)

    room = cell.length - cell.spec.output_tokens
    units = largest_fitting(
        lambda units: len(tokens(units)), room, least=draft.least, most=draft.most
    )
    if units is None:
        raise RequestError(
            f"{cell.length} tokens are too few for the RULER task {cell.spec.name}: the shortest "
            f"prompt and answer take {len(tokens(draft.least)) + cell.spec.output_tokens}"
        )
    return Sample(prompt=tuple(tokens(units)), answers=draft.answers)
