"""What a needle run asks: the grid, the haystack and the facts, and nothing left to chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ggufrope.errors import WishError
from ggufrope.evals.facts import ValueKind
from ggufrope.evals.haystack import HaystackKind

NeedleMode: TypeAlias = Literal["one-pass", "isolated"]
Wording: TypeAlias = Literal["fact", "passkey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePlan:
    """A grid of `lengths` (tokens, question and answer included) × `depths` (percent).

    Depth 0 is the start, 100 right before the question. Each of the `samples` has a haystack and
    facts of its own, from `seed`. Facts of different cells less than `spacing` tokens apart become
    one fact. `queries` facts are asked for at once, `needles` (isolated mode) stated in a prompt.
    An answer is ranked among `distractors` others, half of them stated elsewhere in the prompt.
    `control` is a length within the model's native context, added to the grid: failure there is
    the model's, not the extension's. `text` is what a haystack of kind "text" goes round.

    Raises WishError where the numbers contradict each other.
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
    control: int | None = None

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise WishError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.lengths or min(self.all_lengths) < 1:
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
            yield f"{self.queries} facts cannot be asked for where {self.needles} are stated"
        if max(self.queries, self.needles) > len(self.depths):
            yield (
                f"needles stand at the depths of the grid: {len(self.depths)} depths are too few "
                f"for {max(self.queries, self.needles)} of them"
            )
        if self.wording == "passkey" and (self.mode != "isolated" or self.needles > 1):
            yield "there is one pass key to a prompt: passkey needs isolated mode and one needle"

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Every length asked, the control too, ascending and once each."""
        control = () if self.control is None else (self.control,)
        return tuple(sorted({*self.lengths, *control}))


def passkey_plan(
    *, lengths: tuple[int, ...], depths: tuple[float, ...], samples: int = 1, seed: int = 0
) -> NeedlePlan:
    """The passkey task: five digits in a noise haystack, one to a prompt."""
    return NeedlePlan(
        lengths=lengths,
        depths=depths,
        mode="isolated",
        wording="passkey",
        haystack="noise",
        samples=samples,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleCell:
    """What is asked: a place in the grid."""

    context_tokens: int
    depth: float
    sample: int
    control: bool = False

    @property
    def key(self) -> str:
        return f"{self.context_tokens}/{self.depth:g}/{self.sample}"
